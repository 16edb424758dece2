"""Summaries: ROUGE's figures by hand, the TL;DR: form, and the set that is made of docstrings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.corpora.python_summaries import taken_apart
from jaxnlp.data.sources import TFDS, open_source
from jaxnlp.data.tokenizers import Characters, build
from jaxnlp.models import gpt
from jaxnlp.tasks.summarization import Summarization, rouge


def test_rouge_is_rouge_scores_and_of_any_script():
    from rouge_score.rouge_scorer import RougeScorer

    found, references = ["It's running: 3 files_left!", "a b"], ["It runs; 3 files left.", "b c"]
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        each = [theirs.score(a, b)[kind].fmeasure for a, b in zip(references, found, strict=True)]
        assert rouge(found, references)[0][name] == pytest.approx(50 * sum(each))
    assert rouge(["서울은 한국의 수도이다."], ["서울은 한국의 수도이다"])[0]["rouge_2"] == 100


def test_rouge_by_hand():
    """ "the cat sat" of "the cat was sitting": 2 of 3 and 2 of 4 words, 1 of 2 and 1 of 3 pairs; the stem is "sit"."""
    values, table = rouge(["the cat sat", "same"], ["the cat was sitting", "same"])
    f = lambda precision, recall: 100 * 2 * precision * recall / (precision + recall)  # noqa: E731
    assert values["rouge_1"] == pytest.approx((f(2 / 3, 2 / 4) + 100) / 2)
    assert values["rouge_2"] == pytest.approx(f(1 / 2, 1 / 3) / 2)  # one word has no pairs
    assert values["rouge_l"] == pytest.approx((f(2 / 3, 2 / 4) + 100) / 2)
    assert values["exact_match"] == 0.5
    assert [row[0] for row in table.rows] == ["rouge_1", "rouge_2", "rouge_l", "exact_match"]
    with pytest.raises(ValueError, match="1 summaries for 2 references"):
        rouge(["a"], ["a", "b"])


@pytest.fixture(scope="module")
def tokenizer():
    """<|endoftext|> is 0, <unk> 1, and a, b, c, :, > are in the order of their codes: ":" 2, ">" 3, a 4, b 5, c 6."""
    return build(Characters(), ["abc:>"])


def test_a_separator_of_text(tokenizer):
    task = Summarization(form="prefix", separator=">:", length=16)
    (record,) = task.encode([{"text": "ab", "summary": "c"}], tokenizer)
    assert {name: x.tolist() for name, x in record.items()} == {
        "input_ids": [4, 5, 3, 2, 6],
        "labels": [5, 3, 2, 6, 0],
        "weights": [0, 0, 0, 1, 1],
        "prefix_lengths": 3,
    }
    with pytest.raises(ValueError, match=r"task.separator='>' with task.form='encoder-decoder'; allowed: None"):
        Summarization(separator=">")
    with pytest.raises(ValueError, match=r"task.separator='' has no token"):
        Summarization(form="causal", separator="").encode([{"text": "a", "summary": "b"}], tokenizer)


def test_a_long_text_keeps_its_beginning_and_what_belongs_after_it(tokenizer):
    example = {"text": "abcabcabc", "summary": "cb"}
    (record,) = Summarization(length=6).encode([example], tokenizer)
    assert record["input_ids"].tolist() == [4, 5, 6, 4, 5, 0] and record["labels"].tolist() == [6, 5, 0]
    one = Summarization(form="causal", separator=">:", length=6)
    (record,) = one.encode([example], tokenizer)
    assert record["input_ids"].tolist() == [4, 5, 3, 2, 6, 5] and record["labels"].tolist() == [5, 3, 2, 6, 5, 0]
    assert one.key != Summarization(form="causal", separator=">:", length=7).key


@pytest.mark.parametrize("form", ["causal", "prefix"])
def test_the_search_reads_what_training_reads(form, tokenizer):
    """Greedy over the cache gives the tokens that are each the best of the logits for the whole sequence."""
    config = gpt.Config(vocab_size=7, n_positions=32, n_layers=2, d_model=8, n_heads=2, dropout=0.0)
    params = config.build().init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    task = Summarization(form=form, separator=">:", length=16, n_beams=1)
    found = task.predict(config.build(), params, tokenizer, ["abca", "b"])
    apply = jax.jit(config.build().apply)  # of one length: what follows a token does not matter
    for text, one in zip(("abca", "b"), found, strict=True):
        prompt, new = [*tokenizer.encode(text), 3, 2], []
        prefix = {"prefix_lengths": jnp.array([len(prompt) - 1])} if form == "prefix" else {}
        while len(new) < 8 and (not new or new[-1] != 0):
            tokens = prompt + new
            logits = apply({"params": params}, jnp.array([tokens + [1] * (16 - len(tokens))]), **prefix)["logits"]
            new.append(int(logits[0, len(tokens) - 1].argmax()))
        assert one["summary"] == tokenizer.decode(t for t in new if t != 0)


def test_docstrings_taken_apart():
    assert taken_apart("Return the sum.\n\nOf all\nnumbers.") == ("Of all\nnumbers.", "Return the sum.")
    for other in ("Return the sum.", "Return it all\nat once.\n\nMore.", "Sum.\n\nMore.", "Return the sum\n\nMore."):
        assert taken_apart(other) is None


@pytest.mark.slow
def test_the_set_is_made_here(tmp_path_factory):
    data_dir = str(tmp_path_factory.getbasetemp() / "summaries")
    sizes = {split: len(open_source(TFDS("python_summaries", split), data_dir)) for split in ("train", "test")}
    assert sizes["train"] > 1500 and sizes["test"] > 100
    example = open_source(TFDS("python_summaries", "validation"), data_dir)[0]
    assert set(example) == {"text", "summary", "title"} and example["summary"].endswith(".")
    assert np.all([len(text) > 0 for text in example.values()])
