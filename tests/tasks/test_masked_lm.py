"""BERT's pretraining: which rows are made, what of them is asked for, and the loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data import cache
from jaxnlp.data.pretraining import chosen, replaced, sentences
from jaxnlp.data.tokenizers import Characters, WordPiece, build
from jaxnlp.models import bert
from jaxnlp.tasks.masked_lm import MaskedLM, vocabulary
from jaxnlp.training.step import measure

LENGTH, ROWS = 24, 8
CONFIG = bert.Config(
    vocab_size=128, n_positions=LENGTH, n_layers=1, d_model=8, n_heads=2, dropout=0.0, attention_dropout=0.0
)


class Source:
    """Documents whose sentences name the document and count on: `d3 s4 w w .`"""

    def __init__(self, n=40):
        rng = np.random.default_rng(0)
        self.documents = []
        for d in range(n):
            lengths = rng.integers(1, 6, rng.integers(1, 9))
            lines = [f"d{d} s{s} {'word ' * k}." for s, k in enumerate(lengths.tolist())]
            self.documents.append({"text": "\n".join(lines)})

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, i):
        return self.documents[i]


@pytest.fixture(scope="module")
def tokenizer():
    names = [f"d{i} s{i}" for i in range(40)]
    return build(WordPiece(vocab_size=200), ["word . words wording " * 50, *names * 3])


def make(tokenizer, path, task, seed=0, rows=ROWS):
    encode = functools.partial(task.encode, tokenizer=tokenizer)
    encoded = cache.build(Source(), encode, key=dict(task.key), cache_dir=path, progress=False)
    return task.batches(encoded, tokenizer, batch_size=rows, seed=seed)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pairs(tokenizer, paths):
    return make(tokenizer, paths, MaskedLM(length=LENGTH))


def original(batch, row):
    """The row's tokens before anything was replaced."""
    ids = batch["input_ids"][row].copy()
    used = batch["weights"][row] > 0
    ids[batch["masked_positions"][row][used]] = batch["labels"][row][used]
    return ids[batch["attention_mask"][row] == 1]


def halves(batch, row, tokenizer):
    ids = original(batch, row)
    ends = np.flatnonzero(ids == tokenizer.eos_id)
    assert ids[0] == tokenizer.bos_id and ends[-1] == len(ids) - 1 and len(ends) == 2
    kinds = batch["token_type_ids"][row][: len(ids)]
    np.testing.assert_array_equal(kinds, np.arange(len(ids)) > ends[0])
    return [tokenizer.decode(part.tolist()).split() for part in (ids[1 : ends[0]], ids[ends[0] + 1 : -1])]


def test_sentences_end_with_lines_and_points():
    assert sentences("One. Two two! Is it?\n\n  three\n") == ["One.", "Two two!", "Is it?", "three"]
    assert sentences("v1.2 is e.g. this") == ["v1.2 is e.g.", "this"] and sentences(" \n") == []


def test_half_of_the_second_texts_go_on_from_the_first(pairs, tokenizer):
    """The first's last sentence and the second's first say whether they are neighbours of one document."""
    kinds, shorter = [], 0
    for step in range(120):
        batch = pairs(step)
        kinds += batch["next_sentence_labels"].tolist()
        shorter += int((batch["attention_mask"].sum(1) < LENGTH).sum())
        for row in range(ROWS):
            first, second = halves(batch, row, tokenizer)
            documents = [{word for word in half if word[0] == "d"} for half in (first, second)]
            if all(documents):
                assert len(documents[0] | documents[1]) == 1 + int(batch["next_sentence_labels"][row])
    assert abs(np.mean(kinds) - 0.5) < 4 * 0.5 / len(kinds) ** 0.5
    assert 0 < shorter < 120 * ROWS


def test_neighbours_are_one_text(tmp_path, tokenizer):
    """Where nothing is cut, a second text that follows goes on with the very next token."""
    task = MaskedLM(length=128, short=0.0)
    batches = make(tokenizer, tmp_path, task)
    whole = [" ".join(tokenizer.decode(tokenizer.encode(d["text"])).split()) for d in Source().documents]
    seen = 0
    for step in range(4):
        batch = batches(step)
        for row in np.flatnonzero(batch["next_sentence_labels"] == 0):
            first, second = halves(batch, row, tokenizer)
            assert any(" ".join(first + second) in document for document in whole)
            seen += 1
    assert seen > 5


def test_a_part_is_asked_for_and_replaced_by_three_kinds(tokenizer):
    v, rng = vocabulary(tokenizer), np.random.default_rng(0)
    ordinary = np.flatnonzero(~v.special)
    kinds, drawn = np.zeros(3), 0
    for _ in range(300):
        tokens = np.concatenate(
            [[v.cls_id], rng.choice(ordinary, 60), [v.sep_id], rng.choice(ordinary, 20), [v.sep_id]]
        )
        at = chosen(tokens, v, 0.15, False, 30, rng)
        assert len(at) == 12 and not v.special[tokens[at]].any() and (np.diff(at) > 0).all()
        new = replaced(tokens[at], v, rng)
        assert not v.special[new[new != v.mask_id]].any()
        kinds += [(new == v.mask_id).sum(), ((new != v.mask_id) & (new != tokens[at])).sum(), (new == tokens[at]).sum()]
        drawn += len(at)
    expected = np.array([0.8, 0.1 * (1 - 1 / len(ordinary)), 0.1 * (1 + 1 / len(ordinary))])
    assert (np.abs(kinds / drawn - expected) < 4 * np.sqrt(expected * (1 - expected) / drawn)).all()


def test_whole_words_are_asked_for_together(tokenizer):
    v, rng = vocabulary(tokenizer), np.random.default_rng(1)
    ids = tokenizer.encode("words wording wordings d3 s4 " * 6)
    assert not v.begins[ids].all()
    tokens = np.array([v.cls_id, *ids, v.sep_id])
    words = np.cumsum(v.begins[tokens] | v.special[tokens])
    for _ in range(50):
        at = chosen(tokens, v, 0.15, True, 99, rng)
        assert 0 < len(at) <= round(0.15 * len(ids))
        assert set(np.flatnonzero(np.isin(words, words[at]))) == set(at)


def test_a_row_depends_on_seed_and_step_alone(pairs, tokenizer, paths):
    again = make(tokenizer, paths, MaskedLM(length=LENGTH))
    for step in (0, 7):
        batch, part = pairs(step), again(step, slice(2, 5))
        for name in batch:
            np.testing.assert_array_equal(part[name], batch[name][2:5])
    first, other_step, other_seed = pairs(0), pairs(1), make(tokenizer, paths, MaskedLM(length=LENGTH), seed=1)(0)
    for other in (other_step, other_seed):
        assert (first["masked_positions"] != other["masked_positions"]).any()


@pytest.mark.parametrize("next_sentence", [True, False])
def test_evaluation_is_one_pass_with_the_same_masks(next_sentence, tokenizer, paths):
    task = MaskedLM(length=LENGTH, next_sentence=next_sentence)
    batches, again = (make(tokenizer, paths, task, seed=None) for _ in range(2))
    rows = 0
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        for name, x in again(step).items():
            np.testing.assert_array_equal(x, batch[name])
        rows += int((batch["weights"].sum(1) > 0).sum())
    assert rows == batches.windows.n_windows
    with pytest.raises(IndexError, match="step: found"):
        batches(batches.steps_per_epoch)


def test_without_next_sentences_rows_are_full_and_documents_part_them(tokenizer, paths):
    """Every token of the texts once an evaluation, each document with its end."""
    batches = make(tokenizer, paths, MaskedLM(length=LENGTH, next_sentence=False), seed=None)
    tokens = []
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        assert "token_type_ids" not in batch and "next_sentence_labels" not in batch
        for row in np.flatnonzero(batch["weights"].sum(1)):
            ids = original(batch, row)
            assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
            tokens += ids[1:-1].tolist()
    expected = [token for d in Source().documents for token in (*tokenizer.encode(d["text"]), tokenizer.eos_id)]
    assert tokens == expected


@pytest.mark.parametrize("next_sentence", [True, False])
def test_the_loss_is_that_of_words_and_of_next_sentences(next_sentence, tokenizer, paths):
    """By hand from the logits; with rows that ask for as many words, the sum of both means."""
    task = MaskedLM(length=LENGTH, next_sentence=next_sentence)
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    model = config.build(task.heads)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    batch = jax.tree.map(jnp.asarray, make(tokenizer, paths, task)(3))
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
    out = model.apply({"params": params}, **given)
    logits = out["prediction_logits" if next_sentence else "logits"]
    log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(ROWS)[:, None], batch["masked_positions"]]
    nats = -np.take_along_axis(log_p, np.asarray(batch["labels"])[..., None], -1)[..., 0] * batch["weights"]
    counts = np.asarray(batch["weights"].sum(1))
    expected = nats.sum()
    if next_sentence:
        log_q = np.asarray(jax.nn.log_softmax(out["seq_relationship_logits"]))
        follows = -log_q[np.arange(ROWS), batch["next_sentence_labels"]]
        expected += (counts * follows).sum()
    for rng in (None, jax.random.key(0)):
        sums = jax.jit(functools.partial(measure, model, task))(params, batch, rng)
        np.testing.assert_allclose(sums["loss"], (expected, counts.sum()), rtol=1e-5)
        np.testing.assert_allclose(sums["mlm_loss"], (nats.sum(), counts.sum()), rtol=1e-5)
        if next_sentence:
            np.testing.assert_allclose(sums["nsp_loss"], (follows.sum(), ROWS), rtol=1e-5)
    assert set(task.shapes(ROWS)) == set(batch)
    assert all(task.shapes(ROWS)[name].shape == batch[name].shape for name in batch)


def test_masks_in_a_text_are_filled(tokenizer):
    task = MaskedLM(length=LENGTH, next_sentence=False, n_best=3)
    model = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size).build(task.heads)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    word = tokenizer.encode("word")[0]
    bias = params["heads"]["masked_lm"]["output_bias"].at[word].set(9.0)
    params = {**params, "heads": {"masked_lm": {**params["heads"]["masked_lm"], "output_bias": bias}}}
    (found,) = task.predict(model, params, tokenizer, ["d1 [MASK] s2 [MASK]."])
    assert found["text"] == "d1 word s2 word." and [len(best) for best in found["masks"]] == [3, 3]
    assert found["masks"][0][0][0] == "word" and found["masks"][0][0][1] > 0.9
    with pytest.raises(ValueError, match=r"'word' has no \[MASK\]; allowed: one or more"):
        task.predict(model, params, tokenizer, ["word"])
    with pytest.raises(ValueError, match=r"has 31 tokens; allowed: 22"):
        task.predict(model, params, tokenizer, ["word " * 30 + "[MASK]"])


def test_what_cannot_be_is_named(tokenizer, paths):
    with pytest.raises(ValueError, match=r"task.rate=0.0; allowed: between 0 and 1"):
        MaskedLM(rate=0.0)
    with pytest.raises(ValueError, match=r"task.length=4; allowed: 5 and more"):
        MaskedLM(length=4)
    with pytest.raises(ValueError, match=r"no token to mask with; allowed: WordPiece"):
        vocabulary(build(Characters(), ["ab"]))
