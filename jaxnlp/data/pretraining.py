"""Rows for the pretraining of BERT (Devlin et al., 2019, 3.1), as a pure function of (seed, step).

    [CLS] a a a a [SEP] b b b [SEP]       b goes on from a, or comes from another document, half of the time each
    [CLS] a a a a a a a a a a [SEP]       without next sentences: whatever fits, over the ends of documents
                                          (Liu et al., 2019, 4.2: FULL-SENTENCES)

Of the texts' tokens 15 % are asked for; of these 80 % are replaced by [MASK], 10 % by a random token, 10 % stay. Which
ones is drawn anew for every row of every step.

A row's place in the texts is a window's (see `batches.windows`): all documents are one line, a circle in training, cut
at a random phase each epoch; a row begins with the first sentence that begins in its window. Where BERT's own files
were written once, and repeated with ten masks, nothing repeats here.

Letters: B batch, T length, M masked positions.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from jaxnlp.data import batches
from jaxnlp.data.batches import Batch, Rows
from jaxnlp.data.cache import Cache

PLACES, MASKS = 10, 11  # what a random stream is for
SHORTEST = 2  # tokens of a pair that is made short
EVALUATION = 2**31  # the seed of evaluation, which has none
ENDS = re.compile(r"(?<=[.!?。！？])\s+")  # of sentences


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What masking knows of the tokens."""

    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    begins: Bool[np.ndarray, " V"]  # whether a token begins a word
    special: Bool[np.ndarray, " V"]  # never drawn, never asked for


def slots(length: int, rate: float) -> int:
    """Masked positions that a row has room for."""
    return max(1, round(rate * length))


class Pretraining:
    """See `pretraining`."""

    def __init__(
        self,
        cache: Cache,
        vocabulary: Vocabulary,
        *,
        length: int,
        batch_size: int,
        seed: int | None,
        next_sentence: bool,
        rate: float,
        whole_words: bool,
        short: float,
    ):
        self.room = length - (3 if next_sentence else 2)
        # Windows of the texts alone; the special tokens come on top.
        self.windows = batches.windows(cache, length=self.room, batch_size=batch_size, seed=seed)
        if next_sentence and len(cache) < 2:
            raise ValueError("next_sentence: found one document; allowed: two and more, for texts that do not go on")
        self.cache, self.vocabulary, self.length, self.seed = cache, vocabulary, length, seed
        self.next_sentence, self.rate, self.whole_words, self.short = next_sentence, rate, whole_words, short
        self.batch_size, self.steps_per_epoch = batch_size, self.windows.steps_per_epoch
        self.shapes = ((batch_size, length),)

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch:
        batches.check_step(step, self.seed, self.steps_per_epoch)
        numbers = np.arange(self.batch_size)[rows]
        plain = {} if self.next_sentence else self.windows(step, rows)
        batch = _empty(len(numbers), self.length, slots(self.length, self.rate), self.vocabulary.pad_id)
        for row, number in enumerate(numbers.tolist()):
            rng = self._random(step * self.batch_size + number, PLACES)
            if self.next_sentence:
                found = self._pair(step * self.batch_size + number, rng)
            else:
                # A text's last window has a token more than it has labels: nothing follows its last.
                labels = int(plain["weights"][row].sum())
                found = plain["input_ids"][row, : labels and labels + 1], None, 0
            if found is not None and len(found[0]):
                self._fill({name: x[row] for name, x in batch.items()}, *found, step * self.batch_size + number)
                batch["next_sentence_labels"][row], batch["next_sentence_weights"][row] = found[2], self.next_sentence
        if not self.next_sentence:
            del batch["next_sentence_labels"], batch["next_sentence_weights"], batch["token_type_ids"]
        return batch

    def _random(self, number: int, purpose: int) -> np.random.Generator:
        seed = EVALUATION if self.seed is None else self.seed
        return np.random.default_rng(np.random.SeedSequence([seed, number, purpose]))

    def _pair(self, number: int, rng: np.random.Generator):
        """The tokens of both texts, and whether the second is from another document; None beyond the last row."""
        at = self._place(number)
        if at is None:
            return None
        document, offset = at
        target = self.room if rng.random() >= self.short else int(rng.integers(SHORTEST, self.room + 1))
        apart = bool(rng.random() < 0.5) or int(self.cache.lengths[document]) < 2
        texts = self._sentences(document, offset, target, at_least=1 if apart else 2)
        if len(texts) == 1 and not apart:  # a document of one sentence goes on from its first half
            texts = np.array_split(texts[0], 2)
        split = int(rng.integers(1, len(texts))) if len(texts) > 1 else 1
        a, b = texts[:split], texts[split:]
        if apart:
            other = int(rng.integers(len(self.cache) - 1))
            other += other >= document
            starts = self.cache[other]["starts"]
            left = max(target - sum(map(len, a)), 1)
            b = self._sentences(other, int(starts[rng.integers(len(starts))]), left)
        a, b = _cut([np.concatenate(a), np.concatenate(b)], target, rng)
        return a, b, int(apart)

    def _place(self, number: int) -> tuple[int, int] | None:
        """The document and offset where the row's window begins."""
        w = self.windows
        epoch, window = (0, number) if self.seed is None else divmod(number, w.n_windows)
        if window >= w.n_windows:
            return None
        stream = w.stream(epoch)
        at = (stream.phase + int(stream.order[window]) * w.length) % w.n_tokens
        place = int(np.searchsorted(stream.ends, at, side="right"))
        document = int(stream.documents[place])
        return document, at - int(stream.ends[place] - self.cache.lengths[document])

    def _sentences(self, document: int, offset: int, target: int, at_least: int = 1) -> list[np.ndarray]:
        """From the first sentence that begins at the offset or later so many as fill the target.

        Near the document's end they begin earlier, so that there are `at_least` so many.
        """
        record = self.cache[document]
        starts, ids = record["starts"], record["input_ids"]
        first = max(min(int(np.searchsorted(starts, offset)), len(starts) - at_least), 0)
        ends = np.append(starts[1:], len(ids))
        last = int(np.searchsorted(ends, starts[first] + target))  # the sentence with which the target is reached
        return [ids[starts[i] : ends[i]] for i in range(first, min(max(last + 1, first + at_least), len(starts)))]

    def _fill(self, row: Batch, a, b, apart: int, number: int) -> None:
        """One row's tokens, and what of them is asked for."""
        v = self.vocabulary
        tokens = np.concatenate([[v.cls_id], a, [v.sep_id], *([] if b is None else [b, [v.sep_id]])]).astype(np.int32)
        row["input_ids"][: len(tokens)], row["attention_mask"][: len(tokens)] = tokens, 1
        if b is not None:
            row["token_type_ids"][len(a) + 2 : len(tokens)] = 1
        rng = self._random(number, MASKS)
        at = chosen(tokens, v, self.rate, self.whole_words, len(row["labels"]), rng)
        row["masked_positions"][: len(at)], row["labels"][: len(at)], row["weights"][: len(at)] = at, tokens[at], 1
        row["input_ids"][at] = replaced(tokens[at], v, rng)


def chosen(
    tokens: Int[np.ndarray, " n"],
    v: Vocabulary,
    rate: float,
    whole_words: bool,
    at_most: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " m"]:
    """The positions that are asked for, in order: `rate` of those that are not special, at least one.

    With `whole_words` a word's tokens are asked for together, and a word that is too long for the rest is left out.
    """
    places = np.flatnonzero(~v.special[tokens])
    wanted = min(max(1, round(rate * len(places))), at_most, len(places))
    if not whole_words:
        return np.sort(rng.choice(places, wanted, replace=False))
    apart = np.diff(places, prepend=-2) > 1  # after a special token a word begins
    words = np.split(places, np.flatnonzero(v.begins[tokens[places]] | apart)[1:])
    found: list[int] = []
    for i in rng.permutation(len(words)).tolist():
        if len(found) + len(words[i]) <= wanted:
            found += words[i].tolist()
    return np.sort(np.array(found, np.int64))


def replaced(tokens: Int[np.ndarray, " m"], v: Vocabulary, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
    """What the model sees there: [MASK] in 80 of 100, any token of the vocabulary in 10, the token itself in 10."""
    kind = rng.random(len(tokens))
    others = rng.choice(np.flatnonzero(~v.special), len(tokens))
    return np.where(kind < 0.8, v.mask_id, np.where(kind < 0.9, others, tokens)).astype(np.int32)


def _cut(texts: Sequence[np.ndarray], room: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Tokens leave the longer text one by one, from its front or its end by chance, until both fit."""
    sizes = [len(text) for text in texts]
    if sum(sizes) > room:
        shorter = min(*sizes, room // 2)
        sizes = [shorter, room - shorter] if sizes[0] <= sizes[1] else [room - shorter, shorter]
    fronts = [int(rng.binomial(len(text) - size, 0.5)) for text, size in zip(texts, sizes, strict=True)]
    return [text[front : front + size] for text, front, size in zip(texts, fronts, sizes, strict=True)]


def _empty(rows: int, length: int, masked: int, pad_id: int) -> Batch:
    whole = {name: np.zeros([rows, length], np.int32) for name in ("attention_mask", "token_type_ids")}
    few = {name: np.zeros([rows, masked], np.int32) for name in ("masked_positions", "labels")}
    few |= {"weights": np.zeros([rows, masked], np.float32)}
    one = {"next_sentence_labels": np.zeros(rows, np.int32), "next_sentence_weights": np.zeros(rows, np.float32)}
    return {"input_ids": np.full([rows, length], pad_id, np.int32), **whole, **few, **one}


def sentences(text: str) -> Sequence[str]:
    """A text's lines, and of a line the parts that end with . ! or ? before a space; none of them empty."""
    return [part for line in text.splitlines() for part in ENDS.split(line.strip()) if part.strip()]


def pretraining(
    cache: Cache,
    vocabulary: Vocabulary,
    *,
    length: int,
    batch_size: int,
    seed: int | None,
    next_sentence: bool = True,
    rate: float = 0.15,
    whole_words: bool = False,
    short: float = 0.1,
) -> Pretraining:
    """Rows of two texts, or of one: of records {"input_ids", "starts"}, starts being where sentences begin.

        input_ids         [B, T]  2 7 8 4 3 9 5 3 0       attention_mask, token_type_ids  [B, T]
        masked_positions  [B, M]  3 0                     labels  [B, M]  6 0             weights  [B, M]  1 0
        next_sentence_labels  [B]  0 goes on, 1 from another document                     next_sentence_weights  [B]

    M is 15 % of T; slots that are not used have weight 0. `short` of the pairs are made for a random smaller length, as
    later texts may be. Without next sentences there are neither pairs nor token_type_ids.
    """
    return Pretraining(
        cache,
        vocabulary,
        length=length,
        batch_size=batch_size,
        seed=seed,
        next_sentence=next_sentence,
        rate=rate,
        whole_words=whole_words,
        short=short,
    )
