"""Likelihoods of what follows a prompt: against Hugging Face's, and against each whole text read on its own."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data import tokenizers
from jaxnlp.models import gpt, heads, rnn
from jaxnlp.tasks import scoring
from jaxnlp.tasks.scoring import log_likelihoods

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "decoding.npz")
PAIRS = [
    ("the quick brown", [" fox jumps", " dog", "s"]),
    ("", ["the lazy dog", "q"]),
    ("a dog  ", ["jumps", "a", "s"]),
    ("the lazy dog jumps over", []),
    ("fox", [" over" * n for n in (1, 3, 4)]),
]
MODELS = {
    "gpt": gpt.Config(n_layers=2, d_model=16, n_heads=2, vocab_size=290, n_positions=24),
    "gpt, scanned": gpt.Config(n_layers=2, d_model=16, n_heads=2, vocab_size=290, n_positions=24, scan=True),
    "gpt, in bands": gpt.Config(n_layers=2, d_model=16, n_heads=2, vocab_size=290, n_positions=24, windows=(None, 3)),
    "rnn": rnn.Config(n_layers=1, d_model=16, vocab_size=290, cell="rnn"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.build(tokenizers.ByteBPE(vocab_size=290), ["the quick brown fox jumps over the lazy dog"] * 9)


@pytest.fixture(scope="module", params=MODELS)
def made(request):
    """A model whose tokens are far from equally likely."""
    model = MODELS[request.param].build()
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return model, jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else 5 * leaf, params)


@functools.partial(jax.jit, static_argnums=0)
def log_softmax(model, params, ids):
    return jax.nn.log_softmax(model.apply({"params": params}, ids)["logits"][0])


def alone(made, context, text):
    """log p of the text's tokens, and whether each is the likeliest, by one call on both, padded on the right."""
    whole = np.zeros((1, 24), np.int32)
    whole[0, : len(context) + len(text) - 1] = [*context, *text][:-1]
    log_p = np.asarray(log_softmax(*made, whole))[len(context) - 1 :]
    return [float(log_p[i, t]) for i, t in enumerate(text)], [int(log_p[i].argmax()) == t for i, t in enumerate(text)]


def test_likelihoods_are_hugging_faces():
    params = {}
    for name in GOLDEN:
        if name.startswith("generated/params/"):
            *path, leaf = name.split("/")[2:]
            inner = params
            for key in path:
                inner = inner.setdefault(key, {})
            inner[leaf] = jnp.asarray(GOLDEN[name])
    model = gpt.GPT(gpt.Config(n_layers=2, d_model=16, n_heads=2, vocab_size=64, n_positions=48))
    ids, log_p, likeliest = (GOLDEN[f"generated/{name}"] for name in ("scored", "log_probs", "likeliest"))
    ids = ids[0].tolist()
    cuts = [1, 8, 9, 30, 47]
    trees = [(ids[:cut], [ids[cut : cut + 1], ids[cut:], [5]]) for cut in cuts]
    found = scoring.of_tokens(model, params, trees)
    assert 19 < likeliest.sum() < 30
    for cut, ((first, is_first), (rest, are), _) in zip(cuts, found, strict=True):
        np.testing.assert_allclose(rest, log_p[cut - 1 :], rtol=1e-5)
        np.testing.assert_allclose(first, log_p[cut - 1 : cut], rtol=1e-5)
        np.testing.assert_array_equal(are, likeliest[cut - 1 :])
        np.testing.assert_array_equal(is_first, likeliest[cut - 1 : cut])


def test_a_shared_prompt_changes_nothing(made, tokenizer, monkeypatch):
    found = log_likelihoods(*made, tokenizer, PAIRS)
    monkeypatch.setattr(scoring, "TOKENS", 1)  # a prompt at a time
    apart = log_likelihoods(*made, tokenizer, PAIRS)
    trees = scoring.encode(tokenizer, PAIRS)
    assert [len(texts) for texts in found] == [3, 2, 3, 0, 3]
    for (context, texts), scores, others in zip(trees, found, apart, strict=True):
        for text, score, other in zip(texts, scores, others, strict=True):
            log_p, likeliest = alone(made, context, text)
            np.testing.assert_allclose([score.log_prob, other.log_prob], sum(log_p), rtol=1e-5)
            assert score[1:] == other[1:] == (len(text), all(likeliest))


def test_a_continuation_is_greedy_where_the_model_itself_would_say_it(made, tokenizer):
    context = tokenizer.encode("the lazy")
    text = []
    for _ in range(3):
        text.append(next(t for t in range(290) if alone(made, context, [*text, t])[1][-1]))
    last = [*text[:2], (text[2] + 1) % 290]
    (texts,) = scoring.of_tokens(*made, [(context, [text, last])])
    assert [likeliest.tolist() for _, likeliest in texts] == [[True] * 3, [True, True, False]]


def test_tokens_are_the_harnesses(tokenizer):
    def pieces(prompt, *continuations):
        ((context, texts),) = scoring.encode(tokenizer, [(prompt, continuations)])
        return [[tokenizer.token(i) for i in ids] for ids in (context, *texts)]

    assert pieces("the ", "dog", "fox") == [["the"], ["Ġdog"], ["Ġfox"]]
    assert pieces("the", " dog") == [["the"], ["Ġdog"]]
    assert pieces("", "the") == [["<|endoftext|>"], ["the"]]
    assert pieces("the qu", "ick fox") == [["the", "Ġqu"], ["Ġfox"]]  # Ġquick is one token, and beyond the first two


def test_a_long_prompt_loses_its_beginning(tokenizer):
    model = MODELS["gpt"].build()
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    context, texts = list(range(40)), [[7], list(range(9)), list(range(24))]
    (found,) = scoring.of_tokens(model, params, [(context, texts)])
    for text, (log_p, _) in zip(texts, found, strict=True):
        expected, _ = alone((model, params), context[len(text) - 25 :], text)
        np.testing.assert_allclose(log_p, expected, rtol=1e-5)


def test_more_continuations_than_a_row_holds_go_in_several(tokenizer, made, monkeypatch):
    trees = scoring.encode(tokenizer, [("the fox", [" dog" * n for n in (1, 2, 5, 3, 1, 4)])])
    (expected,) = scoring.of_tokens(*made, trees)
    monkeypatch.setattr(scoring, "TOKENS", 7)
    (found,) = scoring.of_tokens(*made, trees)
    for (log_p, best), (other, same) in zip(found, expected, strict=True):
        np.testing.assert_allclose(log_p, other, rtol=1e-5)
        np.testing.assert_array_equal(best, same)


def test_few_programs_serve_many_prompts(tokenizer):
    traces = []

    class Counted(gpt.GPT):
        def init_cache(self, *args):
            traces.append(args)
            return super().init_cache(*args)

    model = Counted(MODELS["gpt"])
    params = jax.jit(gpt.GPT(model.config).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    pairs = [("the" + " dog" * (5 + i % 4), [" fox", " quick fox"]) for i in range(8)]
    log_likelihoods(model, params, tokenizer, pairs)
    log_likelihoods(model, params, tokenizer, [("the quick fox" + " dog" * 4, [" quick", " dog"])] * 7)
    assert traces == [(1, 1), (8, 8)]  # the first asks what kind of cache it is


@pytest.mark.parametrize(
    "pairs, error, message",
    [
        ([("a", "bc")], TypeError, "continuations are one string, 'bc'; allowed: a list of strings"),
        ([("a", ["b", ""])], ValueError, "continuation '' adds no token to 'a'; allowed: one and more"),
        ([("the quic", ["k"])], ValueError, "continuation 'k' adds no token to 'the quic'"),
        ([("a", ["q" * 25])], ValueError, "continuation 0 of prompt 0 has 25 tokens; allowed: .*n_positions=24"),
    ],
)
def test_what_cannot_be_scored_is_refused(tokenizer, pairs, error, message):
    model = MODELS["gpt"].build()
    with pytest.raises(error, match=message):
        log_likelihoods(model, {}, tokenizer, pairs)


def test_a_language_model_beside_another_head_scores_as_it_does_alone(tokenizer):
    both = MODELS["gpt"].build((heads.LanguageModel(), heads.Choice()))
    params = jax.jit(both.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    alone = {name: x for name, x in params.items() if name != "heads"}
    expected = log_likelihoods(MODELS["gpt"].build(), alone, tokenizer, PAIRS)
    assert log_likelihoods(both, params, tokenizer, PAIRS) == expected


def test_a_model_that_does_not_speak_is_refused(tokenizer):
    model = MODELS["gpt"].build((heads.Classification(2),))
    with pytest.raises(ValueError, match="the model has the heads .*Classification.* no language model's output"):
        log_likelihoods(model, {}, tokenizer, PAIRS)
    with pytest.raises(ValueError, match="prompt 0 or its continuation 0 has token id 299; allowed: .*vocab_size=290"):
        scoring.of_tokens(MODELS["gpt"].build(), {}, [([1], [[299]])])
