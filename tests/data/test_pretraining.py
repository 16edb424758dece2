"""What BERT is pretrained on: every draw a function of (seed, step), with the paper's rates."""

import math

import numpy as np
import pytest

from jaxnlp.data import pretraining
from jaxnlp.data.pretraining import Vocabulary, full_sentences, hide, masked, next_sentences

PAD, CLS, SEP, MASK, FIRST, V = 0, 1, 2, 3, 4, 20_004
SPECIAL = np.arange(V) < FIRST
KNOWN = Vocabulary(MASK, SPECIAL, np.arange(V) % 3 != 0)  # every third token goes on with a word


def join(a, b=None):
    ids = np.int32([CLS, *a, SEP] if b is None else [CLS, *a, SEP, *b, SEP])
    return {"input_ids": ids} | ({} if b is None else {"token_type_ids": np.int32(np.arange(len(ids)) > len(a) + 1)})


@pytest.fixture(scope="module")
def documents():
    """Token n of document d is 4 + 500 d + n, so that a token says where it is from; sentences of 1 to 12 tokens."""
    rng = np.random.default_rng(0)
    records = []
    for d, n in enumerate([1, 2, 400, 37, 60, 250, 9, 33]):
        starts = np.zeros(n, np.int32)
        starts[np.cumsum([0, *rng.integers(1, 13, n)])[:n].clip(0, n - 1)] = 1
        records.append({"input_ids": FIRST + 500 * d + np.arange(n), "sentence_starts": starts})
    return records


@pytest.fixture(scope="module")
def cache(make_cache, documents):
    return make_cache(documents)


def pairs(cache, seed=0, batch_size=8, length=33, **options):
    given = {"length": length, "room": length - 3, "join": join, "batch_size": batch_size, "seed": seed, "pad_id": PAD}
    return next_sentences(cache, **given | options)


def texts_of(batch):
    """A and B of each row that is no filling."""
    for ids, kinds, real in zip(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]):
        if real.any():
            n = int(real.sum())
            assert ids[0] == CLS and ids[n - 1] == SEP and not ids[n:].any() and not kinds[n:].any()
            middle = int(np.flatnonzero(ids == SEP)[0])
            assert np.array_equal(kinds[:n], np.arange(n) > middle)
            yield ids[1:middle], ids[middle + 1 : n - 1]


def test_b_follows_or_is_of_another_document(cache, documents):
    batches, followed = pairs(cache), 0
    for step in range(60):
        batch = batches(step)
        assert batch["input_ids"].shape == (8, 33) and np.all(batch["next_sentence_weights"] == 1)
        for (a, b), label in zip(texts_of(batch), batch["next_sentence_labels"], strict=True):
            document = (a[0] - FIRST) // 500
            for text in (a, b):  # each a piece of one document as it stands there
                assert len(text) >= 1 and np.all(np.diff(text) == 1)
            assert ((b[0] - FIRST) // 500 != document) == label
            if not label:  # what lies between was cut from A's back or B's front, less than a sentence
                assert 1 <= b[0] - a[-1] <= 12
                followed += b[0] == a[-1] + 1
    assert followed > 50


def test_half_follow_and_a_tenth_is_short(make_cache):
    """Of two long documents, whose rows are full: the rates within four deviations."""
    texts = [
        {"input_ids": FIRST + np.arange(n) % 100 + 500 * d, "sentence_starts": np.arange(n) % 7 == 0}
        for d, n in enumerate([9000, 8000])
    ]
    batches = pairs(make_cache(texts), batch_size=64)
    found = [batches(step) for step in range(20)]
    labels = np.concatenate([batch["next_sentence_labels"] for batch in found])
    short = np.concatenate([batch["attention_mask"].sum(1) < 33 for batch in found])
    n = len(labels)
    assert abs(labels.mean() - 0.5) < 4 * math.sqrt(0.25 / n)
    assert abs(short.mean() - 0.1 * 28 / 29) < 4 * math.sqrt(0.09 / n)  # one of 2 … 30 tokens is all
    lengths = np.concatenate([batch["attention_mask"].sum(1) for batch in found])
    assert lengths.min() < 12 and pairs(make_cache(texts), short_rate=0.0)(0)["attention_mask"].all()


def test_a_ends_where_a_sentence_does(cache, documents):
    """Where nothing was cut off, B begins with a sentence."""
    starts = np.zeros(V, bool)
    for record in documents:
        starts[record["input_ids"]] = record["sentence_starts"]
    batches = pairs(cache, short_rate=0.0, length=400)
    checked = 0
    for step in range(8):
        batch = batches(step)
        for (a, b), label in zip(texts_of(batch), batch["next_sentence_labels"], strict=True):
            document = documents[(a[0] - FIRST) // 500]
            uncut = len(a) + len(b) < 397
            if not label and uncut and document["sentence_starts"][1:].any():
                assert starts[a[0]] and starts[b[0]] and b[0] == a[-1] + 1
                checked += 1
    assert checked > 10


def test_truncation_is_of_the_longer_at_either_end():
    """Against the loop of one token at a time; fronts and backs as often as each other."""
    rng = np.random.default_rng(0)
    for n in range(1, 9):
        for m in range(1, 9):
            for room in range(2, 12):
                sizes = [n, m]
                while sum(sizes) > room:
                    sizes[sizes[1] >= sizes[0]] -= 1
                found = pretraining._fit(np.arange(n), np.arange(m), room, rng)
                assert [len(x) for x in found] == sizes
                assert all(np.all(np.diff(x) == 1) for x in found)
    fronts = [pretraining._fit(np.arange(60), np.arange(10), 50, rng)[0][0] for _ in range(2000)]
    assert abs(np.mean(fronts) - 10) < 4 * math.sqrt(20 / 4 / 2000)


def everything(cache, seed):
    return masked(pairs(cache, seed, batch_size=6), KNOWN, rate=0.15, whole_words=False, seed=seed)


@pytest.mark.parametrize("seed", [0, None])
def test_a_step_is_a_function_of_seed_and_step(cache, seed):
    """Whoever asks, in whatever order, for whatever rows."""
    one, other = everything(cache, seed), everything(cache, seed)
    steps = range(one.steps_per_epoch)
    for step in reversed(steps):
        other(step)
    for step in steps:
        whole = one(step)
        for rows in (slice(2, 5), np.array([5, 0])):
            for name, part in other(step, rows).items():
                np.testing.assert_array_equal(part, whole[name][rows])
                assert part.dtype == whole[name].dtype


def test_evaluation_is_one_pass_that_never_changes(cache):
    batches = everything(cache, None)
    rows = [batches(step) for step in range(batches.steps_per_epoch)]
    real = np.concatenate([batch["next_sentence_weights"] for batch in rows])
    assert real.sum() == batches.texts.n_rows == sum(-(-n // 30) for n in cache.lengths) and not real[-1]
    assert np.all(real == np.concatenate([batch["attention_mask"].any(1) for batch in rows]))
    assert not rows[-1]["weights"][real[-6:] == 0].any()
    with pytest.raises(IndexError, match="allowed: 0 to"):
        batches(batches.steps_per_epoch)


def test_epochs_and_seeds_differ(make_cache):
    text = [{"input_ids": FIRST + 500 * d + np.arange(300), "sentence_starts": np.arange(300) % 7 == 0} for d in (0, 1)]
    cache = make_cache(text)
    a = everything(cache, 0)
    again = a.steps_per_epoch
    for x, y in ((a(0), a(again)), (a(0), everything(cache, 1)(0))):
        assert not np.array_equal(x["input_ids"], y["input_ids"])
        assert not np.array_equal(x["masked_positions"], y["masked_positions"])
    rows = np.concatenate([a.texts._order(0), a.texts._order(1)])
    assert np.array_equal(np.sort(rows), np.repeat(np.arange(a.texts.n_rows), 2))


def test_a_text_that_runs_on(make_cache):
    """Evaluation reads every token once, with [CLS] and [SEP] around each row; documents end with [SEP]."""
    documents = [[7, 8, SEP], [10, 11, 12, 13, 14, SEP], [16, SEP]]
    options = {"length": 5, "room": 3, "join": join, "batch_size": 3, "pad_id": PAD}
    batches = full_sentences(make_cache(documents), seed=None, **options)
    rows = np.concatenate([batches(step)["input_ids"] for step in range(batches.steps_per_epoch)])
    expected = [[1, 7, 8, 2, 2], [1, 10, 11, 12, 2], [1, 13, 14, 2, 2], [1, 16, 2, 2, 0]]
    np.testing.assert_array_equal(rows[:4], expected)
    assert not rows[4:].any()
    mask = np.concatenate([batches(step)["attention_mask"] for step in range(batches.steps_per_epoch)])
    np.testing.assert_array_equal(mask[:4].sum(1), [5, 5, 5, 4])
    assert np.all(full_sentences(make_cache(documents), seed=0, **options)(5)["attention_mask"] == 1)


class TestHide:
    rng = np.random.default_rng(0)

    def hidden(self, n=130, rows=2000, whole_words=False):
        for _ in range(rows):
            ids = self.rng.integers(0, V, n).astype(np.int32)
            ids[[0, n // 2, n - 1]] = CLS, SEP, SEP
            yield ids, hide(ids, KNOWN, rate=0.15, whole_words=whole_words, rng=self.rng, most=20)

    @pytest.mark.parametrize("whole_words", [False, True])
    def test_rates(self, whole_words):
        """15 % of the tokens; of these 80 % [MASK], 10 % a random word, 10 % as they were: within four deviations."""
        masks = kept = tokens = n = 0
        for ids, (new, at, labels) in self.hidden(whole_words=whole_words):
            assert np.array_equal(labels, ids[at]) and np.all(np.diff(at) > 0) and len(at) <= 20
            assert not SPECIAL[labels].any() and not (SPECIAL[new[at]] & (new[at] != MASK)).any()
            unchosen = np.ones(len(ids), bool)
            unchosen[at] = False
            assert np.array_equal(new[unchosen], ids[unchosen])
            tokens += int((~SPECIAL[ids]).sum())
            n += len(at)
            masks += int((new[at] == MASK).sum())
            kept += int((new[at] == labels).sum())
        assert abs(n / tokens - 0.15) < 0.002  # a fixed number a row: 19 of 127
        for count, rate in ((masks, 0.8), (kept, 0.1), (n - masks - kept, 0.1)):
            assert abs(count / n - rate) < 4 * math.sqrt(rate * (1 - rate) / n)

    def test_every_place_is_chosen_as_often(self):
        counts = np.zeros(130)
        for _, (_, at, _) in self.hidden(rows=4000):
            counts[at] += 1
        inner = np.delete(counts, [0, 65, 129]) / 4000
        assert counts[[0, 65, 129]].sum() == 0
        assert np.abs(inner - 19 / 127).max() < 5 * math.sqrt(0.15 * 0.85 / 4000)

    def test_words_are_whole(self):
        begins = KNOWN.begins_word
        for ids, (_, at, _) in self.hidden(rows=300, whole_words=True):
            chosen = np.zeros(len(ids), bool)
            chosen[at] = True
            for i in range(1, len(ids)):
                if not begins[ids[i]] and not SPECIAL[ids[i]] and not SPECIAL[ids[i - 1]]:
                    assert chosen[i] == chosen[i - 1]

    def test_short_texts(self):
        """At least one token, never more than the slots, and nothing of special tokens alone; no part of a word."""
        options = {"rate": 0.15, "whole_words": False, "rng": self.rng}
        assert len(hide(np.int32([CLS, 9, SEP]), KNOWN, most=20, **options).positions) == 1
        assert len(hide(np.int32([CLS, SEP]), KNOWN, most=20, **options).positions) == 0
        assert len(hide(np.arange(FIRST, 104, dtype=np.int32), KNOWN, most=3, **options).positions) == 3
        options["whole_words"] = True  # 5 begins a word that 6 goes on with
        assert len(hide(np.int32([CLS, 5, 6, SEP]), KNOWN, most=20, **options).positions) == 0


def test_bad_input_is_named(make_cache):
    alone = make_cache([{"input_ids": [5, 6], "sentence_starts": [1, 0]}])
    with pytest.raises(ValueError, match="found 1 documents; allowed: two and more"):
        pairs(alone)
    with pytest.raises(ValueError, match="mask_rate=1.5; allowed: 0 < mask_rate < 1"):
        masked(pairs(make_cache([[5], [6]])), KNOWN, rate=1.5, whole_words=False, seed=0)
