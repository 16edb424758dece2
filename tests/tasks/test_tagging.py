"""Tagging: words and their tokens, windows of long sentences, spans."""

import itertools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp import metrics
from jaxnlp.data import cache
from jaxnlp.data.tokenizers import ByteBPE, Tokenizer, WordPiece, build
from jaxnlp.models import bert
from jaxnlp.tasks.inputs import template
from jaxnlp.tasks.tagging import Tagging, parts, split
from jaxnlp.training.step import measure

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "tagging.py"))
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
CONFIG = bert.Config(vocab_size=64, n_positions=64, n_layers=1, d_model=8, n_heads=2)


@pytest.fixture(scope="module")
def tokenizer():
    return build(WordPiece(vocab_size=64), ["ann went to new york with bo and cy"] * 3)


@pytest.fixture(scope="module")
def model():
    return CONFIG.build(Tagging(labels=BIO).heads)


@pytest.fixture(scope="module")
def params(model):
    made = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), made)


def test_words_have_the_tokens_that_transformers_gives_them(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(ORACLE["PIECES"]), encoding="utf-8")
    tokenizer, golden = Tokenizer.load(tmp_path), np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz"))
    for i, words in enumerate(ORACLE["SENTENCES"]):
        ((window,),) = Tagging(labels=("O",), length=256).windows([words], tokenizer)
        word_ids = golden[f"{i}/word_ids"]
        np.testing.assert_array_equal(window.input_ids, golden[f"{i}/input_ids"])
        np.testing.assert_array_equal(window.words, np.arange(len(words)))
        np.testing.assert_array_equal(window.places, [word_ids.tolist().index(w) for w in range(len(words))])


def test_byte_level_words_are_those_of_the_text():
    tokenizer = build(ByteBPE(vocab_size=300), ["the old dog saw the old cat"] * 9)
    ((window,),) = Tagging(labels=("O",)).windows([["the", "old", "cat"]], tokenizer)
    np.testing.assert_array_equal(window.input_ids, [*tokenizer.encode("the old cat"), tokenizer.eos_id])


def test_windows_count_each_word_once_where_it_has_most_context():
    rng = np.random.default_rng(0)
    for _ in range(300):
        room = int(rng.integers(3, 20))
        sizes = rng.integers(1, room + 1, rng.integers(0, 40)).tolist()
        overlap = int(rng.integers(0, room))
        found = parts(sizes, room, overlap)
        assert list(itertools.chain(*(range(p.first, p.last) for p in found))) == list(range(len(sizes)))
        for p in found:
            assert sum(sizes[p.start : p.stop]) <= room and p.start <= p.first < p.last <= p.stop
        for a, b in itertools.pairwise(found):
            assert b.start > a.start and b.start <= a.last <= a.stop
    found = parts([1] * 30, room=10, overlap=4)  # of four words that two windows share each has two
    assert [(p.start, p.stop, p.first, p.last) for p in found][:3] == [(0, 10, 0, 8), (6, 16, 8, 14), (12, 22, 14, 20)]


def test_the_loss_is_of_each_word_once(tokenizer, model, params, tmp_path):
    """By hand, of sentences of one window and of several."""
    task = Tagging(labels=BIO, length=12, overlap=4)
    rng = np.random.default_rng(0)
    words = [
        rng.choice(["ann", "went", "to", "new", "york", "with", "bo", "and", "cy"], n).tolist() for n in (3, 25, 1, 8)
    ]
    source = [{"tokens": w, "tags": rng.integers(0, 5, len(w))} for w in words]
    encoded = cache.build(source, lambda e: task.encode(e, tokenizer), key=task.key, cache_dir=tmp_path, progress=False)
    batches = task.batches(encoded, tokenizer, batch_size=4, seed=None)
    total = weight = right = 0.0
    for step in range(batches.steps_per_epoch):
        sums = jax.jit(lambda b: measure(model, task, params, b, None))(jax.tree.map(jnp.asarray, batches(step)))
        total, weight, right = total + sums["loss"][0], weight + sums["loss"][1], right + sums["accuracy"][0]
    assert weight == sum(map(len, words))
    expected = correct = 0.0
    for windows, example in zip(task.windows(words, tokenizer), source, strict=True):
        for w in windows:
            log_p = jax.nn.log_softmax(model.apply({"params": params}, jnp.asarray(w.input_ids)[None])["logits"][0])
            rows = np.asarray(log_p)[w.places]
            expected -= rows[np.arange(len(w.words)), example["tags"][w.words]].sum()
            correct += (rows.argmax(1) == example["tags"][w.words]).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert right == correct


def test_predictions_are_those_of_each_sentence_alone(tokenizer, model, params):
    task = Tagging(labels=BIO, length=12, overlap=4)
    items = [["ann", "went"], "new york, and bo!", [], ["cy"] * 30, "  "]
    together = task.predict(model, params, tokenizer, items)
    for item, found in zip(items, together, strict=True):
        (alone,) = task.predict(model, params, tokenizer, [item])
        assert alone["tags"] == found["tags"]
        np.testing.assert_allclose(alone["scores"], found["scores"], atol=1e-5)
        assert len(found["tags"]) == len(found["words"]) == len(found["scores"])
    assert together[1]["words"] == ["new", "york", ",", "and", "bo", "!"]
    assert together[2]["tags"] == together[4]["spans"] == []


def test_spans_are_of_words_or_of_characters(tokenizer, model, params, monkeypatch):
    """Labels as the model is made to say them: a B that begins anew, and an I without a B."""
    task = Tagging(labels=BIO)
    told = iter([[1, 2, 1, 0, 4, 3]] * 2)

    def made(run, records, **_):
        probabilities = np.full((len(records[0]["input_ids"]), 5), 0.1)
        ((window,),) = task.windows([words], tokenizer)
        probabilities[window.places, next(told)] = 0.6
        return [probabilities]

    monkeypatch.setattr("jaxnlp.tasks.tagging.by_length", made)
    words, text = ["ann", "bo", "cy", "to", "new", "york"], "ann bo cy  to new york"
    (listed,) = task.predict(model, params, tokenizer, [words])
    (whole,) = task.predict(model, params, tokenizer, [text])
    expected = [("PER", "ann bo"), ("PER", "cy"), ("LOC", "new"), ("LOC", "york")]
    for found in (listed, whole):
        assert [(s["label"], s["text"]) for s in found["spans"]] == expected
    assert all(s["score"] == pytest.approx(0.6) for s in listed["spans"])
    assert [(s["start"], s["end"]) for s in listed["spans"]] == [(0, 2), (2, 3), (4, 5), (5, 6)]
    assert all(text[s["start"] : s["end"]] == s["text"] for s in whole["spans"])


def test_scores_are_seqevals_and_of_plain_labels_their_own():
    """The example of seqeval's own description; and a count by hand."""
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert metrics.spans(true, found) == {"accuracy": 0.8, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert metrics.by_kind(true, found) == {"MISC": (0.0, 0.0, 0.0), "PER": (1.0, 1.0, 1.0)}
    plain = metrics.labels([["O", "X", "Y", "X"]], [["X", "X", "O", "X"]])
    assert metrics.by_kind([["O", "a-x", "b-x"]], [["a-x", "a-x", "O"]]) == {
        "a-x": (0.5, 1.0, pytest.approx(2 / 3)), "b-x": (0.0, 0.0, 0.0),
    }  # fmt: skip
    assert plain["accuracy"] == 0.5 and plain["precision"] == plain["recall"] == pytest.approx(2 / 3)


def test_what_cannot_be_is_named(tokenizer):
    task = Tagging(labels=BIO)
    with pytest.raises(ValueError, match="2 words and 1 tags in the example 'seven'; allowed: a tag a word"):
        task.encode([{"id": "seven", "tokens": ["a", "b"], "tags": [0]}], tokenizer)
    with pytest.raises(ValueError, match=r"tags='B-ORG' in the data; allowed: 0 … 4, or O, B-PER"):
        task.encode([{"tokens": ["a"], "tags": ["B-ORG"]}], tokenizer)
    for tag in (5, -1, 0.5, None):
        with pytest.raises(ValueError, match=rf"tags={tag} in the data; allowed: 0 … 4"):
            task.encode([{"tokens": ["a"], "tags": [tag]}], tokenizer)
    with pytest.raises(ValueError, match=r"task.tokens='tokens' is no feature of the data; allowed: words"):
        task.encode([{"words": ["a"]}], tokenizer)
    for words in ("ab", b"ab"):
        with pytest.raises(ValueError, match=rf"task.tokens='tokens' is {words!r} in an example; allowed: a list"):
            task.encode([{"tokens": words, "tags": [0, 1]}], tokenizer)
    with pytest.raises(ValueError, match="task.tags='tags' is 'OX' in an example; allowed: a list"):
        Tagging(labels=("O", "X")).encode([{"tokens": ["a", "b"], "tags": "OX"}], tokenizer)
    with pytest.raises(ValueError, match=r"task.overlap=126; allowed: 0 to 125, with length 128"):
        Tagging(labels=BIO, overlap=126)
    assert task.encode([{"tokens": [], "tags": []}], tokenizer) == []
    assert template(tokenizer).room(task.length, 1) == 126


@pytest.mark.parametrize("item", [{"tokens": ["new", "york"]}, ("new", "york"), np.array([b"new", b"york"], object)])
def test_words_come_alone_or_by_name(tokenizer, model, params, item):
    task = Tagging(labels=BIO)
    assert task.predict(model, params, tokenizer, [item]) == task.predict(model, params, tokenizer, [["new", "york"]])


@pytest.mark.parametrize("item", [{"words": ["new"]}, {"tokens": "new york"}, b"new", 5, None])
def test_what_has_no_words_is_named(tokenizer, model, params, item):
    with pytest.raises(ValueError, match=r"to predict; allowed: a text, its words, or the words as 'tokens'"):
        Tagging(labels=BIO).predict(model, params, tokenizer, [["new"], item])


@pytest.mark.parametrize(
    "words",
    [
        ["It", "'", "s", "3", ".", "5", "km", "/", "h", "!", "!"],
        ["한국어", "문장", ",", "日本語"],
        ["e\u0301te\u0301", "हिन्दी", "ไทย์", "שָׁלוֹם"],  # accents and vowel signs are no letters to Python's re
        ["\u2764\ufe0f", "\U0001f600", "snake_case"],
    ],
)
def test_a_text_is_split_with_its_places(words):
    for space in (" ", "  \n", "\u3000"):
        text = space.join(words)
        assert [text[a:b] for a, b in split(text)] == words


def test_a_word_without_tokens_has_a_tag(tokenizer, model, params):
    """Of a variation selector, a null and a word of spaces the tokenizer makes nothing: each is the unknown token."""
    words = ["ann", "\ufe0f", "\x00", " ", "", "bo"]
    (found,) = Tagging(labels=BIO).predict(model, params, tokenizer, [words])
    assert len(found["tags"]) == len(found["scores"]) == 6
    ((window,),) = Tagging(labels=BIO).windows([words], tokenizer)
    assert window.input_ids[window.places[1:5]].tolist() == [tokenizer.unk_id] * 4
    examples = [{"tokens": words, "tags": np.arange(6) % 5}]
    (record,) = Tagging(labels=BIO).encode(examples, tokenizer)
    assert record["weights"].sum() == 6


@pytest.mark.parametrize("labels", [BIO, ("O", "X", "Y")])
def test_a_report_has_scores_kinds_confusion_and_sentences(tokenizer, labels):
    task = Tagging(labels=labels, n_shown=1)
    model = CONFIG.build(task.heads)
    made = model.init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
    examples = [{"tokens": ["ann", "went"], "tags": [1, 0]}, {"tokens": ["to", "york", "cy"], "tags": [0, 2, 1]}]
    scores, kinds, picture, samples = task.show(model, made, tokenizer, examples)
    assert dict(scores.rows) == {k: round(v, 4) for k, v in task.score(model, made, tokenizer, examples).items()}
    assert [row[0] for row in kinds.rows] == (["PER"] if labels == BIO else ["X", "Y"])
    assert picture.columns == labels and picture.rows[:3] == ("O (2)", f"{labels[1]} (2)", f"{labels[2]} (1)")
    np.testing.assert_allclose(np.sum(picture.values, axis=1), [1, 1, 1, *[0] * (len(labels) - 3)])
    assert len(samples.texts) == 1 and samples.texts[0][0] == "ann went"
    assert task.show(model, made, tokenizer, []) == ()
