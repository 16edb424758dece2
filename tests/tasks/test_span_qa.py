"""Spans of a context: windows, places in the text, the loss, and the best of all spans."""

import dataclasses
import functools
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from jaxnlp.data import cache
from jaxnlp.data.batches import collate
from jaxnlp.data.tokenizers import ByteBPE, Characters, WordPiece, build
from jaxnlp.models import bert
from jaxnlp.run import Run
from jaxnlp.tasks.inputs import outputs, read, template
from jaxnlp.tasks.span_qa import SpanQA
from jaxnlp.tasks.task import Samples, Table
from jaxnlp.training.step import measure

CONFIG = bert.Config(vocab_size=128, n_positions=32, n_layers=1, d_model=8, n_heads=2)
TASK = SpanQA(length=16, stride=3, max_question_tokens=4, max_answer_tokens=5, n_best=4)
SIDES = ("start", "end")
LETTERS = [chr(ord("a") + i) for i in range(26)]
HARD = [
    "Été à Zürich: naïve CAFÉ, İstanbul.",
    unicodedata.normalize("NFD", "Été à Zürich: naïve CAFÉ."),
    "한국어는 서울에서 쓴다",
    unicodedata.normalize("NFD", "한국어는 서울에서 쓴다"),
    "smile 👍🏽 or 👩‍👩‍👧 now",
    "unknown ⵣ and\u00a0tabs\t\tand\nlines  ",
    "日本語 (にほんご)",
]


@pytest.fixture(scope="module")
def pieces():
    return build(WordPiece(vocab_size=128), [" ".join(LETTERS)] * 2)


@pytest.fixture(scope="module")
def params():
    """So large that the logits differ."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(lambda: jax.tree.map(lambda x: 30 * x, CONFIG.build(TASK.heads).init(jax.random.key(0), ids)))()[
        "params"
    ]


class Says(nn.Module):
    """A model whose start and end logits are what a table holds for each token id."""

    table: tuple[tuple[float, float], ...]

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None):
        start, end = jnp.moveaxis(jnp.array(self.table)[input_ids], -1, 0)
        return {"start_logits": start, "end_logits": end}


def example(context, answer=None, question="q", start=None):
    at = [] if answer is None else [context.index(answer) if start is None else start]
    return {"question": question, "context": context, "answers": {"text": [answer] * len(at), "answer_start": at}}


def says(tokenizer, starts, ends, null=(-9.0, -9.0)):
    """Logits by token; 0 of the others."""
    table = np.zeros((tokenizer.vocab_size, 2))
    for side, named in enumerate((starts, ends)):
        for token, logit in named.items():
            table[tokenizer.encode(token)[0], side] = logit
    table[tokenizer.bos_id] = null
    return Says(tuple(map(tuple, table.tolist())))


def text(tokenizer, record):
    """What the model reads, with a bar between each two tokens."""
    return "|".join(tokenizer.token(i) for i in record["input_ids"].tolist())


def test_windows_are_those_of_the_library(pieces):
    """`only_second` of tokenizers, by which transformers cuts contexts; and every token of the context is in one."""
    backend = Backend.from_str(pieces.backend.to_str())
    backend.post_processor = processors.BertProcessing(*((t, backend.token_to_id(t)) for t in ("[SEP]", "[CLS]")))
    for length, stride in ((16, 3), (12, 0), (13, 4), (32, 8)):
        task = dataclasses.replace(TASK, length=length, stride=stride)
        backend.enable_truncation(length, stride=stride, strategy="only_second")
        for n in (1, 2, 7, 8, 9, 10, 11, 13, 18, 19, 26):
            question, context = " ".join(LETTERS[: n % 4]), " ".join(LETTERS[:n])
            theirs = backend.encode(question, context)
            ours = task.encode([example(context, "a", question)], pieces)
            assert [r["input_ids"].tolist() for r in ours] == [e.ids for e in (theirs, *theirs.overflowing)]
            assert [r["token_type_ids"].tolist() for r in ours] == [e.type_ids for e in (theirs, *theirs.overflowing)]
            assert set(pieces.encode(context)) <= {i for r in ours for i in r["input_ids"].tolist()}


def test_where_the_answer_is_learned(pieces):
    records = TASK.encode([example(" ".join(LETTERS), "k l m", "q q q q q q")], pieces)
    assert [text(pieces, r) for r in records] == [
        "[CLS]|q|q|q|q|[SEP]|" + "|".join(LETTERS[first : first + 9]) + "|[SEP]" for first in (0, 6, 12)
    ] + ["[CLS]|q|q|q|q|[SEP]|" + "|".join(LETTERS[18:]) + "|[SEP]"]
    assert [(r["start_positions"].item(), r["end_positions"].item()) for r in records] == [
        (0, 0), (10, 12), (0, 0), (0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("spec", [WordPiece(90), WordPiece(90, lowercase=False), ByteBPE(280), Characters()], ids=str)
@pytest.mark.parametrize("context", HARD, ids=range(len(HARD)))
def test_words_come_back_as_they_stand_in_the_context(spec, context):
    """Each word is an answer: its tokens' place in the text is its own, though unknown, lower-cased or decomposed."""
    tokenizer = build(spec, [HARD[0], HARD[2], "unknown tabs and lines"] * 2)
    task = SpanQA(length=192, stride=8, max_question_tokens=8, max_answer_tokens=60)
    form = template(tokenizer)
    model = says(tokenizer, {}, {})
    at = 0
    for word in context.split():
        start = context.index(word, at)
        at = start + len(word)
        (record,) = task.encode([example(context, word, start=start)], tokenizer)
        s, e = record["start_positions"].item(), record["end_positions"].item()
        shift = len(form.start) + 1 + len(form.between)
        _, offsets = tokenizer.offsets([context])[0]
        assert context[offsets[s - shift][0] : offsets[e - shift][1]].strip() == word
    everything = task.predict(model, {}, tokenizer, [("q", context)])[0]["n_best"]
    assert everything and all(one["answer"] == context[one["start"] : one["end"]] for one in everything)
    assert all(one["answer"] == one["answer"].strip() != "" for one in everything)


def test_accents_stay_on_their_letters():
    tokenizer = build(WordPiece(90), [HARD[0], HARD[2]] * 2)
    for context in (HARD[1], HARD[3]):
        for start, end in tokenizer.offsets([context])[0][1]:
            letter = context[start:end]
            assert unicodedata.normalize("NFC", context).count(unicodedata.normalize("NFC", letter)) >= 1


def test_the_loss_is_the_mean_of_both_ends(pieces, params, tmp_path):
    """By the formula, over all positions of a row."""
    model, encode = CONFIG.build(TASK.heads), functools.partial(TASK.encode, tokenizer=pieces)
    examples = [example("a b c d", "b c"), example(" ".join(LETTERS), "y")]
    records = encode(examples)
    rows = cache.build(examples, encode, key={}, cache_dir=tmp_path, progress=False)
    batch = TASK.batches(rows, pieces, batch_size=5, seed=None)(0)
    assert batch["input_ids"].shape == (5, 16) and batch["weights"].tolist() == [1, 1, 1, 1, 0]
    out = outputs(model, params, read(batch))
    expected, right = 0.0, 0
    for row, record in enumerate(records):
        hits = []
        for side in SIDES:
            logits, place = np.float64(out[f"{side}_logits"][row]), record[f"{side}_positions"].item()
            expected += (np.log(np.exp(logits).sum()) - logits[place]) / 2
            hits.append(logits.argmax() == place)
        right += all(hits)
    sums = jax.jit(lambda batch: measure(model, TASK, params, batch, None))(batch)
    np.testing.assert_allclose(sums["loss"], (expected, 4), rtol=1e-5)
    np.testing.assert_allclose(sums["accuracy"], (right, 4))


def test_the_best_spans_are_those_of_an_enumeration(pieces, params):
    """Over all windows, all starts and all ends; each span once, with its best window's score."""
    rng = np.random.default_rng(0)
    contexts = [" ".join(rng.choice(LETTERS, n)) for n in (1, 3, 9, 17, 26, 40)]
    for no_answer in (False, True):
        task = dataclasses.replace(TASK, no_answer=no_answer, n_best=6)
        model = CONFIG.build(task.heads)
        for context, found in zip(contexts, task.predict(model, params, pieces, [("q a", c) for c in contexts])):
            spans, nulls = {}, []
            ids, offsets = pieces.offsets([context])[0]
            for first in range(0, max(len(ids) - 3, 1), 8):
                row = template(pieces).join(pieces.encode("q a"), ids[first : first + 11])
                out = outputs(model, params, collate([row], 0, 16))
                starts, ends = (np.asarray(out[f"{side}_logits"][0][: len(row["input_ids"])]) for side in SIDES)
                nulls.append(starts[0] + ends[0])
                for s in range(4, len(starts) - 1):
                    for e in range(s, min(s + 5, len(starts) - 1)):
                        place = offsets[s - 4 + first][0], offsets[e - 4 + first][1]
                        spans[place] = max(spans.get(place, -np.inf), starts[s] + ends[e])
            best = sorted(((score, place) for place, score in spans.items()), key=lambda x: (-x[0], x[1]))[:6]
            if no_answer:
                null = (min(nulls), (0, 0))
                np.testing.assert_allclose(found["no_answer_score"], null[0] - best[0][0], rtol=1e-4, atol=1e-4)
                kept = sorted([*best, null], key=lambda x: -x[0])[:6]
                kept = kept if null in kept else [*kept, null]
                assert found["answer"] == ("" if null[0] > best[0][0] else context[slice(*best[0][1])])
                best = kept
            else:
                assert found["answer"] == context[slice(*best[0][1])]
            assert [(one["start"], one["end"]) for one in found["n_best"]] == [place for _, place in best]
            expected = jax.nn.softmax(np.array([score for score, _ in best], np.float32))
            np.testing.assert_allclose([one["score"] for one in found["n_best"]], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_an_answer_anywhere_in_many_windows_is_found(pieces, at):
    words = ["a"] * 60
    words[at : at + 3] = ["x", "y", "z"]
    context = "  ".join(words[:60]).upper()
    model = says(pieces, {"x": 5.0, "y": 4.9}, {"z": 5.0, "y": 4.8})
    (found,) = TASK.predict(model, {}, pieces, [{"context": context, "question": "b " * 9}])
    assert (found["answer"], found["start"]) == ("X  Y  Z"[: len(found["answer"])], context.index("X"))
    assert context[found["start"] : found["end"]] == found["answer"]
    if at <= 57:
        assert found["answer"] == "X  Y  Z"
    assert [one["answer"] for one in found["n_best"][:4]] == ["X  Y  Z", "Y  Z", "X  Y", "Y"]
    one = dataclasses.replace(TASK, max_answer_tokens=1).predict(model, {}, pieces, [("b", context)])[0]
    assert one["answer"] == "Y"


def test_questions_and_special_tokens_hold_no_answer(pieces):
    model = says(pieces, {"x": 5.0, "c": 1.0}, {"x": 5.0, "c": 1.0}, null=(9.0, 9.0))
    (found,) = TASK.predict(model, {}, pieces, [("x", "a b c d")])
    assert (found["answer"], found["start"], found["end"]) == ("c", 4, 5)
    assert "no_answer_score" not in found and all(one["answer"] for one in found["n_best"])


def test_no_answer_where_its_score_is_above_the_threshold(pieces):
    model = says(pieces, {"c": 1.0}, {"c": 1.0}, null=(2.0, 1.5))
    task = dataclasses.replace(TASK, no_answer=True)
    for threshold, answer in ((0.0, ""), (1.49, ""), (1.5, "c"), (2.0, "c")):
        one = dataclasses.replace(task, null_threshold=threshold)
        (found,) = one.predict(model, {}, pieces, [("q", "a b c d")])
        assert (found["answer"], found["no_answer_score"]) == (answer, 1.5)
        assert [one["answer"] for one in found["n_best"]][:2] == ["", "c"] and len(found["n_best"]) == 4
    np.testing.assert_allclose(sum(one["score"] for one in found["n_best"]), 1.0)
    scores = task.score(model, {}, pieces, [example("a b c d", "c"), example("a b d")])
    assert scores["exact_match"] == scores["f1"] == 50.0
    assert scores["best_exact"] == scores["best_f1"] == 100.0
    assert scores["best_exact_thresh"] == scores["best_f1_thresh"] == 1.5


def test_a_tokenizer_without_cls_says_no_answer_at_the_end():
    tokenizer = build(Characters(), ["abc? xyz"])
    task = dataclasses.replace(TASK, no_answer=True)
    (record,) = task.encode([example("x y")], tokenizer)
    assert record["start_positions"] == record["end_positions"] == len(record["input_ids"]) - 1
    model = says(tokenizer, {"y": 2.0}, {"y": 2.0}, null=(1.0, 1.0))
    (found,) = task.predict(model, {}, tokenizer, [("a?", "x y")])
    assert (found["answer"], found["no_answer_score"]) == ("y", -2.0)
    assert all(one["answer"] != " " for one in found["n_best"])


def test_empty_texts_have_defined_results(pieces):
    model = says(pieces, {"b": 3.0}, {"b": 3.0})
    found = TASK.predict(model, {}, pieces, [("", "a b"), ("q", ""), ("q", " \n"), ("", "")])
    assert found[0]["answer"] == "b"
    assert found[1:] == [{"answer": "", "start": 0, "end": 0, "score": 0.0, "n_best": []}] * 3
    task = dataclasses.replace(TASK, no_answer=True)
    (found,) = task.predict(model, {}, pieces, [("q", "")])
    null = {"answer": "", "start": 0, "end": 0, "score": 1.0}
    assert found == {**null, "no_answer_score": -18.0, "n_best": [null]}
    assert TASK.predict(model, {}, pieces, []) == []
    (record,) = task.encode([example("")], pieces)
    assert text(pieces, record) == "[CLS]|q|[SEP]|[SEP]" and record["start_positions"] == 0


def test_a_run_predicts_what_the_task_takes(pieces):
    run = Run(says(pieces, {"b": 3.0}, {"b": 3.0}), {}, pieces, TASK)
    found = run.predict([("q", "a b"), {"question": "q", "context": "b"}])
    assert [(one["answer"], one["start"]) for one in found] == [("b", 2), ("b", 0)]


def test_many_questions_keep_their_order(pieces):
    model = says(pieces, {"b": 3.0}, {"b": 3.0})
    places = [i % 11 for i in range(600)]
    found = TASK.predict(model, {}, pieces, [("q", "a " * i + "b") for i in places])
    assert [one["start"] for one in found] == [2 * i for i in places]


def test_a_long_text_is_read_in_windows(pieces):
    words = ["a"] * 100_000
    words[77_777] = "x"
    context = " ".join(words)
    model = says(pieces, {"x": 5.0}, {"x": 5.0})
    task = SpanQA(n_best=2)
    (found,) = task.predict(model, {}, pieces, [("q", context)])
    assert (found["answer"], found["start"]) == ("x", 2 * 77_777)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["c"], "answer_start": [0]}}, r"question 'q': the answer 'c' is not at 0 .* 'a' is"),
        (
            {"id": "5a", "answers": {"text": [b"c"], "answer_start": np.array([9])}},
            r"example '5a': .* 9 .* where '' is",
        ),
        ({"answers": {"text": ["c"], "answer_start": [-1]}}, r"the answer 'c' is not at -1 of the context"),
        ({"answers": {"text": ["c"], "answer_start": []}}, "1 answers at 0 places; allowed: one each"),
        ({"answers": {"text": [], "answer_start": []}}, "question 'q': no answer; allowed with task.no_answer=True"),
        ({"answers": {"text": "c", "answer_start": 4}}, "question 'q': answers={'text': 'c', 'answer_start': 4}; allo"),
        ({"answers": ["c"]}, r"question 'q': answers=\['c'\]; allowed: {'text': \[…\], 'answer_start': \[…\]}"),
        ({"answers": None}, "task.answers='answers' is no feature of the data; allowed: context, question"),
    ],
)
def test_answers_that_are_not_there(pieces, change, message):
    bad = {name: value for name, value in (example("a b c") | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        TASK.encode([example("a b", "b"), bad], pieces)


def test_answers_of_every_kind_of_array(pieces):
    for texts, starts in ((["b"], [2]), (np.array([b"b"], object), np.array([2])), (np.array(["b"]), (2,))):
        (record,) = TASK.encode([example("a b") | {"answers": {"text": texts, "answer_start": starts}}], pieces)
        assert record["start_positions"] == record["end_positions"] == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": -1}, "task.stride=-1; allowed: 0 and more"),
        ({"n_best": 0}, "task.n_best=0; allowed: 1 and more"),
        ({"n_best": 1, "no_answer": True}, "task.n_best=1 with task.no_answer; allowed: 2 and more"),
    ],
)
def test_fields_that_cannot_be_meant(fields, message):
    with pytest.raises(ValueError, match=message):
        SpanQA(**fields)


def test_a_stride_that_goes_nowhere(pieces):
    message = "task.length=16 leaves 9 tokens of context beside 4 of the question; allowed: more than task.stride=9"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, stride=9).encode([example("a", "a")], pieces)


def test_logits_that_are_no_numbers(pieces):
    with pytest.raises(ValueError, match="the model's logits are nan for 'a b'; allowed: finite numbers"):
        TASK.predict(says(pieces, {"a": float("nan")}, {}), {}, pieces, [("q", "a b")])


def test_what_is_shown(pieces):
    model = says(pieces, {"b": 3.0}, {"b": 3.0})
    table, samples = TASK.show(model, {}, pieces, [example("a b", "b"), example("c d", "c d")])
    assert table == Table("Scores", ("metric", "value"), (("exact_match", 50.0), ("f1", 83.3333)))
    assert samples == Samples("Answers (and references)", (("q", "b\n(b)"), ("q", "c\n(c d)")))
    assert TASK.show(model, {}, pieces, []) == ()
