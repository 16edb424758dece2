"""The last word of passages, against transformers on whole texts."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp import metrics
from jaxnlp.data.tokenizers import Characters, build
from jaxnlp.models import gpt
from jaxnlp.tasks.lambada import LastWord

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "evaluation.npz")
ALPHABET = runpy.run_path(str(FOLDER / "evaluation.py"))["ALPHABET"]


@pytest.fixture(scope="module")
def golden():
    """transformers' GPT-2 with random weights, whose tokens are characters."""
    oracle, arrays = runpy.run_path(str(FOLDER / "gpt2.py")), np.load(FOLDER / "gpt2.npz")
    state = {name.removeprefix("params/"): arrays[name] for name in arrays if name.startswith("params/")}
    config = gpt.Config(n_layers=2, d_model=32, n_heads=4, vocab_size=61, n_positions=24)
    params = jax.tree.map(jnp.asarray, oracle["params_of"](state))
    return gpt.GPT(config), params, build(Characters(), [ALPHABET])


def test_last_words_are_transformers(golden):
    passages = GOLDEN["passages"].tolist()
    found = LastWord().predict(*golden, passages)
    log_p = GOLDEN["word_log_prob"]
    atol = 1e-5 * np.abs(log_p).max()
    np.testing.assert_allclose([one["log_prob"] for one in found], log_p, rtol=0, atol=atol)
    assert [one["word"] for one in found] == [text.split(" ")[2] for text in passages]
    assert [len(one["likeliest"]) for one in found] == GOLDEN["word_tokens"].tolist()
    assert LastWord().predict(*golden, [{"passage": passages[0]}, passages[1]]) == LastWord().predict(
        *golden, passages[:2]
    )
    measured = LastWord("text").score(*golden, [{"text": text} for text in passages])
    right = int(GOLDEN["word_right"].sum())
    assert (right, int(GOLDEN["last_right"].sum())) == (2, 4)  # the last character alone is easier
    assert measured == pytest.approx(
        {
            "accuracy": right / 8,
            "accuracy_low": metrics.interval(right, 8)[0],
            "accuracy_high": metrics.interval(right, 8)[1],
            "last_token_accuracy": 4 / 8,
            "perplexity": np.exp(-log_p.mean()),
            "token_perplexity": np.exp(-log_p.sum() / GOLDEN["word_tokens"].sum()),
        },
        rel=1e-4,
    )


@pytest.mark.parametrize(
    "text, parts",
    [
        ("to be\n", ("to", " be")),
        ('He said,\n\n"Shane', ("He said,", '\n\n"Shane')),
        (" a  b c", (" a  b", " c")),
    ],
)
def test_the_last_word_is_what_follows_the_last_white_space(text, parts):
    assert LastWord().parts(text) == parts


@pytest.mark.parametrize("text", ["", "word", " word "])
def test_a_passage_of_one_word_is_refused(text):
    with pytest.raises(ValueError, match=r"has not two words; allowed: a last word, and some before it"):
        LastWord().parts(text)


def test_what_is_no_passage_is_refused(golden):
    for item in (None, {"text": "a b"}, ("a b", "c d")):
        with pytest.raises(ValueError, match="found .* to predict; allowed: the texts passage, in order or by name"):
            LastWord().predict(*golden, [item])


def test_no_passages_are_refused(golden):
    with pytest.raises(ValueError, match="no examples; allowed: one and more"):
        LastWord().score(*golden, [])


def test_a_missing_feature_is_named(golden):
    with pytest.raises(ValueError, match="task.text='passage' is no feature of the data; allowed: text"):
        LastWord().score(*golden, [{"text": "a b"}])
