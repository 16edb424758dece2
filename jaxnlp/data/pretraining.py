"""Batches of what BERT is pretrained on (Devlin et al., 2019, section 3.1 and appendix A): words to be guessed, and
whether a text goes on from another. As everything in batches.py, a pure function of (seed, step).

    >>> texts = next_sentences(cache, length=128, room=125, join=join, batch_size=256, seed=0, pad_id=0)
    >>> masked(texts, vocabulary, rate=0.15, whole_words=False, seed=0)(7)["masked_positions"].shape
    (256, 20)

`next_sentences` gives [CLS] A [SEP] B [SEP], `full_sentences` one long text (RoBERTa: Liu et al., 2019, section 4.2),
and `masked` hides words of either, others at each step. Evaluation, the seed None, is one pass in order, in which the
choices are drawn too, always the same ones.
Letters: B batch, T length, M masked positions, V vocabulary; n tokens of a text.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxnlp.data.batches import Batch, Batches, Rows, check, check_step, generator, windows
from jaxnlp.data.cache import Cache

PAIRS, PAIR, MASKS = range(5, 8)  # what a random stream is for, after those of batches.py
EVALUATION = 2**32 - 1  # in the place of a seed
MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the others stay as they are

Tokens = Int[np.ndarray, " _"]
Join = Callable[..., Batch]  # one text's tokens, or two's, with the special ones: {"input_ids", "token_type_ids"}


def _random(seed: int | None, *of: int) -> np.random.Generator:
    return generator(EVALUATION if seed is None else seed, *of)


# Two texts ------------------------------------------------------------------------------------------------------------


class NextSentences:
    """See `next_sentences`."""

    def __init__(
        self,
        cache: Cache,
        length: int,
        room: int,
        join: Join,
        batch_size: int,
        seed: int | None,
        pad_id: int,
        short_rate: float,
    ):
        check(batch_size, length, seed)
        if len(cache) < 2:
            raise ValueError(f"next_sentences: found {len(cache)} documents; allowed: two and more, B being of another")
        self.cache, self.length, self.room, self.join = cache, length, room, join
        self.batch_size, self.seed, self.pad_id, self.short_rate = batch_size, seed, pad_id, short_rate
        self.ends = np.cumsum(-(-cache.lengths // room))  # where the rows of each document end, in one line of them
        self.n_rows = int(self.ends[-1])
        self.steps_per_epoch = -(-self.n_rows // batch_size)
        self.shapes = ((batch_size, length),)
        self._order = functools.lru_cache(maxsize=2)(self._make_order)  # a step may lie on two epochs

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch:
        check_step(step, self.seed, self.steps_per_epoch)
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        tokens = {name: np.zeros([len(numbers), self.length], np.int32) for name in ("input_ids", "token_type_ids")}
        tokens["input_ids"][:] = self.pad_id
        mask, labels = np.zeros([len(numbers), self.length], np.int32), np.zeros(len(numbers), np.int32)
        weights = np.zeros(len(numbers), np.float32)
        for row, number in enumerate(numbers.tolist()):
            epoch, place = (0, number) if self.seed is None else divmod(number, self.n_rows)
            if place >= self.n_rows:  # what evaluation's last batch lacks
                continue
            a, b, labels[row] = self.pair(epoch, int(self._order(epoch)[place]))
            for name, values in self.join(a, b).items():
                tokens[name][row, : len(values)] = values
                mask[row, : len(values)] = 1
            weights[row] = 1
        return {**tokens, "attention_mask": mask, "next_sentence_labels": labels, "next_sentence_weights": weights}

    def pair(self, epoch: int, row: int) -> tuple[Tokens, Tokens, int]:
        """A, B and whether B is of another document, of a row's number among those of the epoch."""
        rng = _random(self.seed, epoch, row, PAIR)
        document = int(np.searchsorted(self.ends, row, side="right"))
        first, n = (int(self.ends[document - 1]) if document else 0), int(self.cache.lengths[document])
        another = bool(rng.random() < 0.5)
        room = int(rng.integers(2, self.room + 1)) if rng.random() < self.short_rate else self.room
        # The document's rows begin all over it, as far apart as there are rows, and as far as there is a row to fill.
        share = (row - first + rng.random()) / (int(self.ends[document]) - first)
        text, starts = self._read(document, int(share * max(n - room + 1, 1)), room)
        borders = np.flatnonzero(starts[1:]) + 1
        cut = int(rng.choice(borders)) if len(borders) else int(rng.integers(1, max(len(text), 2)))
        a, b = text[:cut], text[cut:]
        another |= len(b) == 0  # a document of one token
        if another:
            other = int(rng.integers(len(self.cache) - 1))
            other += other >= document
            b, _ = self._read(other, int(rng.integers(self.cache.lengths[other])), max(room - len(a), 1))
        return *_fit(a, b, room, rng), int(another)

    def _read(self, document: int, at: int, n: int) -> tuple[Tokens, Bool[np.ndarray, " _"]]:
        """Whole sentences from the one that holds token `at`, n tokens or the sentences' more; and where each starts.

        Of a sentence longer than a row only what is within a row's length.
        """
        low, stop = max(at - self.room, 0), min(at + n + self.room, int(self.cache.lengths[document]))
        found = self.cache.slice(document, low, stop)
        ids, starts = found["input_ids"], found["sentence_starts"].astype(bool)
        before = np.flatnonzero(starts[: at - low + 1])
        first = int(before[-1]) if len(before) else at - low
        after = np.flatnonzero(starts[first + n :])
        last = first + n + int(after[0]) if len(after) else len(ids)
        return ids[first:last], starts[first:last]

    def _make_order(self, epoch: int) -> Int[np.ndarray, " R"]:
        numbers = np.arange(self.n_rows)
        return numbers if self.seed is None else _random(self.seed, epoch, PAIRS).permutation(numbers)


def _fit(a: Tokens, b: Tokens, room: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
    """While both have no room the longer loses a token, its first or its last by the toss of a coin."""
    # Theirs is half of the room, A's the larger, and what the other leaves of its own.
    sizes = min(len(a), max(room - len(b), room - room // 2)), min(len(b), max(room - len(a), room // 2))
    fronts = [int(rng.binomial(len(x) - size, 0.5)) for x, size in zip((a, b), sizes, strict=True)]
    a, b = (x[front : front + size] for x, front, size in zip((a, b), fronts, sizes, strict=True))
    return a, b


def next_sentences(
    cache: Cache,
    *,
    length: int,
    room: int,
    join: Join,
    batch_size: int,
    seed: int | None,
    pad_id: int,
    short_rate: float = 0.1,
) -> NextSentences:
    """Two texts a row, of which the second follows the first in its document, or is of another one.

    input_ids, attention_mask, token_type_ids [B, T], next_sentence_labels, next_sentence_weights [B]. Documents of
    sentences "ab", "cde" and "fg", "h"; [ and ] stand for [CLS] and [SEP]:

        input_ids  [ a b ] c d e ]    token_type_ids  0 0 0 0 1 1 1 1    next_sentence_labels  0    weights  1
                   [ f g ] c d e ]                    0 0 0 0 1 1 1 1                          1             1

    Records hold input_ids and sentence_starts, 1 where a sentence begins. `join` adds the special tokens, which leave
    `room` tokens to the texts. A document of n tokens has ceil(n / room) rows an epoch. Each reads sentences from some
    place of the document until they fill the room, or with probability `short_rate` a number of tokens from 2 to it;
    a border between two of them, drawn at random, ends A. B is the rest, or half of the time sentences from anywhere
    in another document, which fill up what A left. What is then too long loses tokens from the front or the back of the
    longer.

    Differs from google-research/bert: rows of a document may overlap, so that any one can be made without the others;
    one sentence alone is cut between any two tokens, where theirs always has a B of another document.
    """
    return NextSentences(cache, length, room, join, batch_size, seed, pad_id, short_rate)


# One text -------------------------------------------------------------------------------------------------------------


class FullSentences:
    """See `full_sentences`."""

    def __init__(
        self, cache: Cache, length: int, room: int, join: Join, batch_size: int, seed: int | None, pad_id: int
    ):
        self.windows = windows(cache, length=room, batch_size=batch_size, seed=seed, apart=True)
        self.length, self.join, self.pad_id = length, join, pad_id
        self.batch_size, self.steps_per_epoch = batch_size, self.windows.steps_per_epoch
        self.shapes = ((batch_size, length),)

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch:
        found = self.windows(step, rows)
        batch = {
            "input_ids": np.full([len(found["input_ids"]), self.length], self.pad_id, np.int32),
            "attention_mask": np.zeros([len(found["input_ids"]), self.length], np.int32),
        }
        for row, (ids, real) in enumerate(zip(found["input_ids"], found["segment_ids"] > 0, strict=True)):
            if real.any():
                ids = self.join(ids[real])["input_ids"]
                batch["input_ids"][row, : len(ids)], batch["attention_mask"][row, : len(ids)] = ids, 1
        return batch


def full_sentences(
    cache: Cache, *, length: int, room: int, join: Join, batch_size: int, seed: int | None, pad_id: int
) -> FullSentences:
    """Windows over all documents, one after another, each with its special tokens: input_ids, attention_mask [B, T].

    Documents "ab]" and "cde]" with [ and ] for [CLS] and [SEP], length 5, in evaluation:

        input_ids  [ a b ] ]    attention_mask  1 1 1 1 1
                   [ c d e ]                    1 1 1 1 1

    Differs from RoBERTa: a row may begin and end within a sentence, so that all are full.
    """
    return FullSentences(cache, length, room, join, batch_size, seed, pad_id)


# What is hidden -------------------------------------------------------------------------------------------------------


class Vocabulary(NamedTuple):
    """What masking needs to know of the tokens."""

    mask_id: int
    special: Bool[np.ndarray, " V"]  # never hidden, and never in a hidden one's place
    begins_word: Bool[np.ndarray, " V"]


class Hidden(NamedTuple):
    """A text with words hidden, and what they were; positions rise."""

    input_ids: Tokens
    positions: Int[np.ndarray, " m"]
    labels: Int[np.ndarray, " m"]


def hide(
    ids: Tokens, vocabulary: Vocabulary, *, rate: float, whole_words: bool, rng: np.random.Generator, most: int
) -> Hidden:
    """`rate` of the tokens that are not special, at least one and at most `most`: 80 % become the mask token, 10 % a
    random one, 10 % stay. Whole words, each token of which has a fate of its own, are drawn one after another, and
    passed over where they are larger than what is left: then it may be fewer tokens, of a short text none at all.

    >>> hide(np.array([2, 7, 8, 9, 3]), vocabulary, rate=0.3, whole_words=False, rng=rng, most=2)
    Hidden(input_ids=array([2, 7, 4, 9, 3]), positions=array([2]), labels=array([8]))
    """
    places = np.flatnonzero(~vocabulary.special[ids])
    n = min(max(round(rate * len(places)), 1), most, len(places))
    if whole_words:
        # A word begins where its first token says so, and after what is never hidden.
        begins = vocabulary.begins_word[ids[places]] | (np.diff(places, prepend=-1) > 1)
        begins[:1] = True
        words = np.append(np.flatnonzero(begins), len(places)).tolist()  # where each begins, and the last one ends
        taken: list[np.ndarray] = []
        for i in rng.permutation(len(words) - 1).tolist():
            if (size := words[i + 1] - words[i]) <= n:
                taken.append(places[words[i] : words[i + 1]])
                n -= size
            if n == 0:
                break
        chosen = np.sort(np.concatenate([places[:0], *taken]))
    else:
        chosen = np.sort(rng.choice(places, n, replace=False))
    fate = rng.random(len(chosen))
    words = rng.choice(np.flatnonzero(~vocabulary.special), len(chosen))
    kept = ids[chosen]
    new = np.where(fate < MASKED, vocabulary.mask_id, np.where(fate < MASKED + RANDOM, words, kept))
    hidden = ids.copy()
    hidden[chosen] = new
    return Hidden(hidden, chosen, kept)


class Masked:
    """See `masked`."""

    def __init__(self, texts: Batches, vocabulary: Vocabulary, rate: float, whole_words: bool, seed: int | None):
        if not 0 < rate < 1:
            raise ValueError(f"mask_rate={rate}; allowed: 0 < mask_rate < 1")
        self.texts, self.vocabulary, self.rate, self.whole_words, self.seed = texts, vocabulary, rate, whole_words, seed
        self.batch_size, self.steps_per_epoch, self.shapes = texts.batch_size, texts.steps_per_epoch, texts.shapes

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch:
        batch = self.texts(step, rows)
        ids, mask = batch["input_ids"].copy(), batch["attention_mask"]
        slots = n_slots(ids.shape[1], self.rate)
        positions, labels = (np.zeros([len(ids), slots], np.int32) for _ in range(2))
        weights = np.zeros([len(ids), slots], np.float32)
        for row, number in enumerate(np.arange(self.batch_size)[rows].tolist()):
            n = int(mask[row].sum())
            if n:
                rng = _random(self.seed, step, number, MASKS)
                options = {"rate": self.rate, "whole_words": self.whole_words, "rng": rng, "most": slots}
                ids[row, :n], at, were = hide(ids[row, :n], self.vocabulary, **options)
                positions[row, : len(at)], labels[row, : len(at)], weights[row, : len(at)] = at, were, 1
        return {**batch, "input_ids": ids, "masked_positions": positions, "labels": labels, "weights": weights}


def n_slots(length: int, rate: float) -> int:
    """Masked positions of a row: 20 of 128 tokens, 77 of 512."""
    return math.ceil(rate * length)


def masked(texts: Batches, vocabulary: Vocabulary, *, rate: float, whole_words: bool, seed: int | None) -> Masked:
    """The texts, padded on the right, with words hidden, others at each step: see `hide`.

    Adds masked_positions, labels, weights [B, M]. M = ceil(rate * T), and what a row does not use has weight 0:

        input_ids  [ a b ] c # e ]    masked_positions  5 0    labels  d 0    weights  1 0
    """
    return Masked(texts, vocabulary, rate, whole_words, seed)
