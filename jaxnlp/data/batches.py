"""Batches as a pure function of (seed, step): nothing else, so a resumed run, on any number of hosts, sees the same.

    >>> batch = windows(cache, length=1024, batch_size=512, seed=0)
    >>> batch(7)["input_ids"].shape, batch(7, slice(0, 64))["input_ids"].shape    # one host's part of step 7
    ((512, 1024), (64, 1024))

`windows` packs documents for a language model, `padded` keeps one example a row, `pairs` a source and its target,
`joined` both in one sequence, these three in buckets of length. The seed None means evaluation: one pass in order, what
a batch lacks being rows of weight 0.
Letters: B batch, S source length, T (target) length.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from jaxnlp.data.cache import Cache

DOCUMENTS, PHASE, WINDOWS, EXAMPLES, ORDER = range(5)  # what a random stream is for: the last word of its seed
SMALLEST_BUCKET = 32  # below, a shorter row saves little and costs a compilation

Batch = dict[str, np.ndarray]
Rows = slice | Int[np.ndarray, "rows"]  # which of range(batch_size): one host's part


@runtime_checkable
class Batches(Protocol):
    """What `windows`, `padded` and `pairs` give: batches(step, rows) -> {name: array}.

    A step has `batch_size` rows, or k times as many shorter ones: then each of `rows` stands for k, one after another.
    """

    batch_size: int
    steps_per_epoch: int
    shapes: tuple[tuple[int, int], ...]  # the few [B, T] that occur

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Batches with something done to each: a task adds what it needs of the host."""

    batches: Batches
    function: Callable[[Batch], Batch]

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch:
        return self.function(self.batches(step, rows))

    @property
    def batch_size(self) -> int:
        return self.batches.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return self.batches.shapes


def generator(seed: int, *of: int) -> np.random.Generator:
    """A random stream of the seed; of what, the words say: an epoch, a row in it, and last its purpose."""
    return np.random.default_rng(np.random.SeedSequence([seed, *of]))


def check(batch_size: int, length: int, seed: int | None) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("length", length, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}: found {value}; allowed: {least} or more")


def check_step(step: int, seed: int | None, steps_per_epoch: int) -> None:
    if step < 0 or (seed is None and step >= steps_per_epoch):
        allowed = "0 or more" if seed is not None else f"0 to {steps_per_epoch - 1}, which is one pass"
        raise IndexError(f"step: found {step}; allowed: {allowed}")


# Packed windows -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Stream:
    """All documents, one after another, as one long line of tokens."""

    documents: Int[np.ndarray, "N"]  # in the order of this epoch
    ends: Int[np.ndarray, "N"]  # where each ends in the line
    phase: int  # where the first window begins
    order: Int[np.ndarray, "W"]  # of the windows


class Windows:
    """See `windows`."""

    def __init__(self, cache: Cache, length: int, batch_size: int, seed: int | None, apart: bool, stride: int):
        check(batch_size, length, seed)
        if not 1 <= stride <= length or (seed is not None and stride != length):
            raise ValueError(f"stride: found {stride}; allowed: 1 … {length=} in evaluation, {length} in training")
        self.cache, self.length, self.batch_size, self.seed, self.apart = cache, length, batch_size, seed, apart
        self.stride = stride
        self.n_tokens = int(cache.lengths.sum())
        if self.n_tokens < 2:
            raise ValueError(
                f"windows: found {self.n_tokens} tokens in all; allowed: 2 or more, one to predict from another"
            )
        # A training epoch is a circle of tokens cut in whole windows; evaluation, a line whose last window is padded.
        self.circular = seed is not None and self.n_tokens > length
        self.n_windows = (
            self.n_tokens // length if self.circular else 1 + max(-(-(self.n_tokens - 1 - length) // stride), 0)
        )
        self.steps_per_epoch = -(-self.n_windows // batch_size)
        self.shapes = ((batch_size, length),)
        self.sized = "bytes" in cache.slice(0, 0, 1)
        self.stream = functools.lru_cache(maxsize=2)(self._make_stream)  # a step may lie on two epochs

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch:
        check_step(step, self.seed, self.steps_per_epoch)
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        tokens = np.zeros([len(numbers), self.length + 1], np.int32)
        segments = np.zeros([len(numbers), self.length + 1], np.int32)
        positions = np.zeros([len(numbers), self.length + 1], np.int32)
        sizes = np.zeros([len(numbers), self.length + 1], np.int32)
        for row, number in enumerate(numbers.tolist()):
            epoch, window = (0, number) if self.seed is None else divmod(number, self.n_windows)
            if window < self.n_windows:
                self._fill(self.stream(epoch), window, tokens[row], segments[row], positions[row], sizes[row])
        inputs, labels = segments[:, :-1], segments[:, 1:].copy()
        labels[numbers > 0, : self.length - self.stride] = 0  # the window before has counted them
        counts = (labels == inputs) & (labels > 0) if self.apart else labels > 0
        batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "weights": counts.astype(np.float32)}
        if self.sized:
            batch["label_bytes"] = sizes[:, 1:]
        if self.apart:
            batch |= {"segment_ids": inputs, "position_ids": positions[:, :-1]}
        return batch

    def _make_stream(self, epoch: int) -> _Stream:
        n = len(self.cache.lengths)
        documents, phase, order = np.arange(n), 0, np.arange(self.n_windows)
        if self.seed is not None:
            documents = generator(self.seed, epoch, DOCUMENTS).permutation(n)
            order = generator(self.seed, epoch, WINDOWS).permutation(self.n_windows)
        if self.circular:
            phase = int(generator(self.seed, epoch, PHASE).integers(self.n_tokens))
        return _Stream(documents, np.cumsum(self.cache.lengths[documents]), phase, order)

    def _fill(self, stream: _Stream, window: int, tokens, segments, positions, sizes) -> None:
        """Copies one window of length + 1 tokens, document by document."""
        at = stream.phase + int(stream.order[window]) * self.stride
        left = self.length + 1 if self.circular else min(self.length + 1, self.n_tokens - at)
        at %= self.n_tokens
        place = int(np.searchsorted(stream.ends, at, side="right"))
        filled, segment = 0, 0
        while filled < left:
            document, segment = int(stream.documents[place]), segment + 1
            start = at - int(stream.ends[place] - self.cache.lengths[document])
            take = min(int(stream.ends[place]) - at, left - filled)
            here = slice(filled, filled + take)
            record = self.cache.slice(document, start, start + take)
            tokens[here], sizes[here] = record["input_ids"], record.get("bytes", 0)
            segments[here] = segment
            positions[here] = np.arange(take)
            filled += take
            place = (place + 1) % len(stream.documents)
            at = int(stream.ends[place] - self.cache.lengths[stream.documents[place]])


def windows(
    cache: Cache, *, length: int, batch_size: int, seed: int | None, apart: bool = False, stride: int | None = None
) -> Windows:
    """Windows of `length` tokens over all documents, one after another: input_ids, labels, weights [B, T].

    Documents "ab." and "cde.", length 3, evaluation (`.` ends a document; a label is the token after its input):

        input_ids  a b .    c d e        labels  b . c    d e .       weights  1 1 1    1 1 1

    With `apart`, attention and positions keep to a document, and no first token of a document is a label:

        segment_ids  1 1 1    1 1 1      position_ids  0 1 2    0 1 2      weights  1 1 0    1 1 1

    A document that begins before the window counts its positions from the window's start. Of records with "bytes", a
    number a token, label_bytes [B, T] are those of the labels.

    Evaluation with a `stride` below the length: a window begins `stride` tokens after the one before it, and what that
    one has counted weighs 0. Of the documents above, stride 1:

        input_ids  a b .    b . c    . c d    c d e        weights  1 1 1    0 0 1    0 0 1    0 0 1

    Evaluation: every token is a label exactly once, but for the first of all, which nothing precedes (with `apart`:
    the first of each document). Training: each epoch shuffles the documents, joins their line to a circle, cuts it at
    a random phase and shuffles the windows; tokens that fill no window, fewer than `length`, wait for another
    epoch's phase. Batches run on over the end of an epoch. Padding, of a text shorter than a window and of the last
    evaluation batch, is id 0, segment 0, weight 0.
    """
    return Windows(cache, length, batch_size, seed, apart, length if stride is None else stride)


# One example a row ----------------------------------------------------------------------------------------------------


class _Bucketed:
    """Examples one a row, those of like lengths together: what `padded` and `pairs` have in common."""

    token_fields: tuple[str, ...] = ("input_ids",)  # padded with pad_id; the others with 0

    def __init__(
        self, cache: Cache, batch_size: int, max_length: int, pad_id: int, seed: int | None, buckets: tuple[int, ...]
    ):
        check(batch_size, max_length, seed)
        if tuple(sorted(set(buckets))) != tuple(buckets) or not buckets or buckets[0] < 1 or buckets[-1] != max_length:
            raise ValueError(f"buckets: found {buckets}; allowed: rising lengths of which the last is {max_length=}")
        if len(cache) == 0:
            raise ValueError("cache: found no examples; allowed: one or more")
        self.cache, self.batch_size, self.pad_id, self.seed = cache, batch_size, pad_id, seed
        self.buckets = np.array(buckets)
        # Of each example, the first bucket that holds it; what is longer than the last is cut to it.
        self.bucket_of = np.minimum(np.searchsorted(self.buckets, cache.lengths), len(buckets) - 1)
        self.kept = np.arange(len(cache))
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)
        self._fields = {name: (np.asarray(a).dtype, np.shape(a)) for name, a in self._row(cache[0]).items()}

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch:
        examples = self.examples(step)
        width = self._width(examples)  # the whole batch's, whatever rows are asked for
        examples = examples.reshape(self.batch_size, -1)[rows].ravel()
        batch = {}
        for name, (dtype, shape) in self._fields.items():
            padding = self.pad_id if name in self.token_fields else 0
            batch[name] = np.full([len(examples), *shape[:-1], width][: 1 + len(shape)], padding, dtype)
        real = np.flatnonzero(examples >= 0)
        for row, record in zip(real, self.cache.read(examples[real].tolist()), strict=True):
            for name, value in self._row(record).items():
                if np.ndim(value):
                    batch[name][row, ..., : value.shape[-1]] = value[..., :width]
                else:
                    batch[name][row] = value
        return batch

    def examples(self, step: int) -> Int[np.ndarray, "B"]:
        """Which example, by its number in the cache, stands in which row of a step; -1 in rows of weight 0."""
        check_step(step, self.seed, self.steps_per_epoch)
        epoch, step = divmod(step, self.steps_per_epoch)
        return self._plan(epoch)[step]

    def _width(self, examples: Int[np.ndarray, "B"]) -> int:
        return int(self.buckets[self.bucket_of[examples[examples >= 0]].max()])

    def _row(self, record: Batch) -> Batch:
        """What the record has in each of the batch's arrays, not padded."""
        raise NotImplementedError

    def _groups(self, order: Int[np.ndarray, "N"]) -> list[tuple[Int[np.ndarray, "_"], int]]:
        """Examples that are cut into batches together, and the rows of such a batch."""
        raise NotImplementedError

    def _make_plan(self, epoch: int) -> list[Int[np.ndarray, "B"]]:
        order = self.kept if self.seed is None else generator(self.seed, epoch, EXAMPLES).permutation(self.kept)
        plan = []
        for group, rows in self._groups(order):
            empty = np.full(-len(group) % rows, -1)
            plan += list(np.concatenate([group, empty]).reshape(-1, rows))
        if self.seed is None:
            return plan
        return [plan[i] for i in generator(self.seed, epoch, ORDER).permutation(len(plan))]


class Padded(_Bucketed):
    """See `padded`."""

    def __init__(
        self, cache: Cache, batch_size: int, max_length: int, pad_id: int, seed: int | None, buckets: tuple[int, ...]
    ):
        super().__init__(cache, batch_size, max_length, pad_id, seed, buckets)
        self.steps_per_epoch = -(-len(cache) // batch_size)
        self.shapes = tuple((batch_size, int(self.buckets[b])) for b in np.unique(self.bucket_of))

    def _row(self, record: Batch) -> Batch:
        fields = {"labels" if name == "label" else name: value for name, value in record.items()}
        return {"attention_mask": np.ones_like(record["input_ids"]), "weights": np.float32(1), **fields}

    def _groups(self, order: Int[np.ndarray, "N"]) -> list[tuple[Int[np.ndarray, "_"], int]]:
        if self.seed is not None:
            # Sorted by bucket and cut: a batch on the border of two buckets takes the longer one's width.
            order = order[np.argsort(self.bucket_of[order], kind="stable")]
        return [(order, self.batch_size)]


def padded(
    cache: Cache,
    *,
    batch_size: int,
    max_length: int,
    pad_id: int,
    seed: int | None,
    buckets: tuple[int, ...] | None = None,
) -> Padded:
    """One example a row, padded on the right: input_ids, attention_mask [B, T], the records' other fields, weights [B].

    Records {"input_ids": [5, 6, 7], "label": 1} and {"input_ids": [8], "label": 0}, buckets (4, 8), pad_id 0:

        input_ids  5 6 7 0    attention_mask  1 1 1 0    labels  1    weights  1
                   8 0 0 0                    1 0 0 0            0             1

    T is the smallest of the buckets that holds the batch's longest row; the default buckets are 32, 64, … below
    `max_length`, and `max_length`. A longer example loses its end. A field with an axis runs along the tokens, and is
    cut and padded (with 0) as they are; one without has an entry a row, and `label` is called `labels`. Fields
    of two axes, [C, T], have the same C in all records, which then bring an attention_mask of their own. A record with
    weights of its own keeps them.

    Evaluation keeps the source's order. A training epoch shuffles, gathers examples of a bucket into batches and
    shuffles these. Either way every example comes exactly once an epoch: what the last batch lacks is rows of weight 0.
    """
    if buckets is None:
        powers = [SMALLEST_BUCKET << i for i in range(32)]
        buckets = (*(b for b in powers if b < max_length), max_length)
    return Padded(cache, batch_size, max_length, pad_id, seed, buckets)


class Pairs(_Bucketed):
    """See `pairs`."""

    token_fields = ("input_ids", "decoder_input_ids", "labels")
    cut = True  # in evaluation, a longer pair

    def __init__(
        self,
        cache: Cache,
        batch_size: int,
        max_length: int,
        pad_id: int,
        bos_id: int,
        seed: int | None,
        buckets: tuple[int, ...],
    ):
        self.bos_id = bos_id
        super().__init__(cache, batch_size, max_length, pad_id, seed, buckets)
        longer = cache.lengths > max_length
        if longer.any():
            done = "cut" if seed is None and self.cut else "left out"
            print(
                f"pairs: {longer.sum()} of {len(cache)} are longer than {max_length} tokens and {done}", file=sys.stderr
            )
            if done == "left out":
                self.kept = self.kept[~longer]
        if len(self.kept) == 0:
            raise ValueError(
                f"max_length: found {max_length}; allowed: {cache.lengths.min()}, the shortest pair, or more"
            )
        counts = np.bincount(self.bucket_of[self.kept], minlength=len(buckets))
        self._rows = [batch_size * (max_length // bucket) for bucket in buckets]
        self.steps_per_epoch = sum(-(-n // rows) for n, rows in zip(counts.tolist(), self._rows, strict=True))
        self.shapes = tuple((self._rows[b], int(self.buckets[b])) for b in np.flatnonzero(counts))

    def _row(self, record: Batch) -> Batch:
        if record.keys() != {"input_ids", "labels"}:
            raise ValueError(f"pairs: found records of {', '.join(sorted(record))}; allowed: input_ids and labels")
        source, target = record["input_ids"], record["labels"]
        return {
            "input_ids": source,
            "attention_mask": np.ones(len(source), np.int32),
            "decoder_input_ids": np.concatenate([[self.bos_id], target[:-1]], dtype=target.dtype),
            "labels": target,
            "weights": np.ones(len(target), np.float32),
        }

    def _groups(self, order: Int[np.ndarray, "N"]) -> list[tuple[Int[np.ndarray, "_"], int]]:
        return [(order[self.bucket_of[order] == b], rows) for b, rows in enumerate(self._rows)]


def pairs(
    cache: Cache,
    *,
    batch_size: int,
    max_length: int,
    pad_id: int,
    bos_id: int,
    seed: int | None,
    buckets: tuple[int, ...] | None = None,
) -> Pairs:
    """A source and its target a row: input_ids, attention_mask [B, S], decoder_input_ids, labels, weights [B, T].

    Records {"input_ids": [5, 6, 2], "labels": [7, 2]} and {"input_ids": [8, 2], "labels": [9, 6, 7, 2]}, 2 being the
    end, pad_id 0, bos_id 1, buckets (4, 8):

        input_ids          5 6 2 0    attention_mask  1 1 1 0
                           8 2 0 0                    1 1 0 0
        decoder_input_ids  1 7 0 0    labels          7 2 0 0    weights  1 1 0 0
                           1 9 6 7                    9 6 7 2             1 1 1 1

    A pair lies in the first bucket that holds the longer of the two, and S = T is that bucket's length. `batch_size` is
    the rows of a step in the longest bucket, and one of length b has batch_size * (max_length // b) rows, so that a
    step has about batch_size * max_length tokens whatever its bucket, and what divides batch_size divides all. The
    default buckets are `max_length` and a half, third, fourth, sixth and eighth of it.

    A training epoch shuffles, cuts each bucket's pairs into batches and shuffles these; evaluation goes from bucket to
    bucket, each in the source's order. Either way every pair comes exactly once an epoch: what a bucket's last batch
    lacks is rows of weight 0. `examples(step)` says which pair is where. Of pairs longer than `max_length`, a message
    gives the number: training leaves them out, since half a sentence is no translation of a whole one; evaluation keeps
    them, without their ends, so that a figure is of the whole set.
    """
    return Pairs(cache, batch_size, max_length, pad_id, bos_id, seed, buckets or _parts(max_length))


class Joined(Pairs):
    """See `joined`."""

    token_fields = ("input_ids", "labels")
    cut = False  # it would lose its target

    def _row(self, record: Batch) -> Batch:
        return record


def joined(
    cache: Cache,
    *,
    batch_size: int,
    max_length: int,
    pad_id: int,
    seed: int | None,
    buckets: tuple[int, ...] | None = None,
) -> Joined:
    """A sequence a row, padded on the right: the records' fields as they are, [B, T], and numbers, [B].

    Buckets, budget and order are those of `pairs`; longer ones are left out, in evaluation too.
    """
    return Joined(cache, batch_size, max_length, pad_id, pad_id, seed, buckets or _parts(max_length))


def _parts(max_length: int) -> tuple[int, ...]:
    return tuple(sorted({max(max_length // k, 1) for k in (1, 2, 3, 4, 6, 8)}))


# Rows by hand ---------------------------------------------------------------------------------------------------------


def width(length: int, max_length: int, parts: int = 1) -> int:
    """Of the few sizes of `pad`, the one that holds so many tokens: a power of two, or max_length.

    With `parts`, so many sizes from a power of two to the next, evenly: 40, 48, 56, 64 are four.
    """
    power = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    step = power if parts == 1 else power // (2 * parts)
    return min(-(-length // step) * step, max_length)


def height(n: int, total: int, most: int) -> int:
    """Rows of a batch that holds n of `total` texts: `most`, or of fewer texts in all a power of two.

    So a few programs serve any number of texts.
    """
    return most if total > most else min(1 << (n - 1).bit_length(), most)


def pad(rows: Sequence[Sequence[int] | np.ndarray], *, pad_id: int, max_length: int) -> Batch:
    """Rows of up to max_length as input_ids and attention_mask, [B, T] with T from few sizes; a batch made by hand.

    >>> pad([[5, 6], [7]], pad_id=0, max_length=16)["input_ids"][:, :3]
    array([[5, 6, 0], [7, 0, 0]])
    """
    return collate([{"input_ids": np.asarray(row, np.int32)} for row in rows], pad_id, max_length)


def collate(records: Sequence[Batch], pad_id: int, max_length: int, parts: int = 1) -> Batch:
    """Records whose fields run along the tokens, up to max_length, as a batch of [B, T], with attention_mask.

    What a record lacks that another has is 0.
    """
    shape = [len(records), width(max(len(record["input_ids"]) for record in records), max_length, parts)]
    batch = {name: np.zeros(shape, np.int32) for name in {"attention_mask", *itertools.chain(*records)}}
    batch["input_ids"][:] = pad_id
    for i, record in enumerate(records):
        for name, value in record.items():
            batch[name][i, : len(value)] = value
        batch["attention_mask"][i, : len(record["input_ids"])] = 1
    return batch
