"""Tagging: a label for each word of a sentence, from the state of its first token (Devlin et al., 2019, section 5.3).

    words     Jim   Henson       was   a     puppeteer
    tokens    jim   hen  ##son   was   a     puppet  ##eer          of each word by itself
    labels    B-PER I-PER  –      O     O     O        –

    loss = - sum_w log p(y_w | x) / number of words

A sentence of more tokens than `length` is read in windows of whole words that overlap; a word counts in the one of them
where it is further from the border, in training and in predictions.
"""

import dataclasses
import functools
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float
from tokenizers import decoders

from jaxnlp import metrics
from jaxnlp.data import batches
from jaxnlp.data.cache import Cache
from jaxnlp.data.sentencepiece import SentencePiece
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import hits
from jaxnlp.models import heads
from jaxnlp.tasks.inputs import Template, by_length, distinct, finite, listed, read, several, template
from jaxnlp.tasks.task import Apply, Batch, Record, Samples, Sums, Table, confused, number

# Of a text that comes as one, in which every accent and vowel sign is U+0300: letters and digits, or a sign
WORD = re.compile("(?:\\w\u0300*)+|[^\\w\\s]\u0300*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagging:
    """One of `labels` for each word; with names such as B-LOC, I-LOC and O the words make spans."""

    labels: tuple[str, ...]  # in the order of the head's outputs
    tokens: str = "tokens"  # the feature that holds the words
    tags: str = "tags"  # the feature that holds their labels: numbers among `labels`, or names
    length: int = 128  # tokens a row at most, special ones too
    overlap: int = 32  # tokens that neighbouring windows of a long sentence share at most
    buckets: tuple[int, ...] | None = None  # padded lengths, so that short sentences cost less
    n_shown: int = 8  # sentences in the report

    def __post_init__(self):
        distinct(self.labels)
        if not 0 <= self.overlap < self.length - 2:
            raise ValueError(f"task.overlap={self.overlap}; allowed: 0 to {self.length - 3}, with length {self.length}")

    @property
    def spans(self) -> bool:
        """Whether the labels mark where spans begin."""
        return any(label.startswith("B-") for label in self.labels)

    @property
    def heads(self) -> tuple[heads.Tagging]:
        return (heads.Tagging(len(self.labels)),)

    @property
    def key(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("labels", "tokens", "tags", "length", "overlap")}
        return {"task": "tagging", **own}

    def texts(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        return (" ".join(self._words(example)),)

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """["ab", "c"], [1, 0] -> {"input_ids": [2, 5, 6, 7, 3], "labels": [0, 1, 0, 0, 0], "weights": [0, 1, 0, 1, 0]}.

        "ab" has the tokens 5 and 6. A record for each window of a long sentence; none for one without words.
        """
        sentences = [self._words(example) for example in examples]
        tags = [self.indices(example) for example in examples]
        records = []
        for windows, known in zip(self.windows(sentences, tokenizer), tags, strict=True):
            for window in windows:
                labels, weights = (np.zeros(len(window.input_ids), kind) for kind in (np.int32, np.float32))
                labels[window.places], weights[window.places] = known[window.words], 1
                records.append({"input_ids": window.input_ids, "labels": labels, "weights": weights})
        return records

    def indices(self, example: Mapping[str, Any]) -> np.ndarray:
        """The words' labels as numbers; ValueError for one that is not known, or a word without one."""
        words, tags = self._words(example), several(example, self.tags, "tags")
        if len(words) != len(tags):
            name = example.get("id", " ".join(words)[:60])
            raise ValueError(f"{len(words)} words and {len(tags)} tags in the example {name!r}; allowed: a tag a word")
        return np.array([self._index(tag) for tag in tags], np.int32)

    def _index(self, tag: Any) -> int:
        tag = tag.decode() if isinstance(tag, bytes) else tag
        if tag in self.labels:
            return self.labels.index(tag)
        if not 0 <= number(tag) < len(self.labels) or number(tag) % 1:
            names = ", ".join(self.labels)
            raise ValueError(f"{self.tags}={tag!r} in the data; allowed: 0 … {len(self.labels) - 1}, or {names}")
        return int(tag)

    def _words(self, example: Mapping[str, Any]) -> list[str]:
        return [w.decode() if isinstance(w, bytes) else str(w) for w in several(example, self.tokens, "tokens")]

    def _listed(self, item: Any) -> list[str]:
        """The words of something to predict that is no text."""
        words = item.get(self.tokens) if isinstance(item, Mapping) else item
        if not listed(words):
            raise ValueError(f"found {item!r} to predict; allowed: a text, its words, or the words as {self.tokens!r}")
        return self._words({self.tokens: words})

    def windows(self, sentences: Sequence[Sequence[str]], tokenizer: Tokenizer) -> "list[list[Window]]":
        """What the model reads of each sentence, given in words."""
        form = template(tokenizer)
        room = form.room(self.length, 1)
        ids = iter(_encoded(sentences, tokenizer))
        found = []
        for words in sentences:
            tokens = [next(ids) for _ in words]
            if long := [word for word, of_word in zip(words, tokens, strict=True) if len(of_word) > room]:
                print(f"the word {long[0][:40]!r}… has more than {room} tokens and is cut", file=sys.stderr)
            tokens = [of_word[:room] for of_word in tokens]
            found.append([_window(tokens, part, form) for part in parts(list(map(len, tokens)), room, self.overlap)])
        return found

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        return batches.padded(
            cache,
            batch_size=batch_size,
            max_length=self.length,
            pad_id=tokenizer.pad_id,
            seed=seed,
            buckets=self.buckets,
        )

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = dict.fromkeys(("input_ids", "attention_mask", "labels"), jnp.int32) | {"weights": jnp.float32}
        return {name: jax.ShapeDtypeStruct((rows, self.length), dtype) for name, dtype in shapes.items()}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        logits = apply(**read(batch))["logits"]
        return hits(logits, batch["labels"], batch["weights"])

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)

    def score(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Accuracy over words, and of spans precision, recall and F1, else the F1 of the labels but O."""
        return self._scores(*self._both(model, params, tokenizer, examples))

    def _scores(self, true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
        scored = metrics.spans if self.spans else metrics.labels
        return scored(true, found)

    def _both(self, model, params, tokenizer, examples) -> tuple[list[list[str]], list[list[str]]]:
        """The true labels of all examples, and those that were found."""
        examples = [examples[i] for i in range(len(examples))]
        true = [[self.labels[i] for i in self.indices(example)] for example in examples]
        found = self.predict(model, params, tokenizer, [self._words(example) for example in examples])
        return true, [one["tags"] for one in found]

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """The scores, those of each kind, which label was taken for which, and the first sentences with theirs."""
        if not len(examples):
            return ()
        true, found = self._both(model, params, tokenizer, examples)
        rows = tuple((name, round(value, 4)) for name, value in self._scores(true, found).items())
        kinds = tuple((kind, *(round(x, 4) for x in row)) for kind, row in metrics.by_kind(true, found).items())
        numbers = ([self.labels.index(tag) for one in side for tag in one] for side in (true, found))
        counts = metrics.confusion(*(np.array(side, int) for side in numbers), len(self.labels))
        texts = []
        for i in range(min(self.n_shown, len(examples))):
            words = self._words(examples[i])
            marked = [f"{word}/{tag}" if tag != "O" else word for word, tag in zip(words, found[i], strict=True)]
            texts.append((" ".join(words), " ".join(marked)))
        return (
            Table("Scores", ("metric", "value"), rows),
            Table("By kind", ("kind", "precision", "recall", "f1"), kinds),
            confused("True labels of words, and what they were taken for", self.labels, counts),
            Samples("Sentences, and what was found", tuple(texts)),
        )

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """{"words", "tags", "scores"} of each sentence: its words, alone or by name, or a text, split by `split`.

        Where the labels mark spans also "spans": {"label", "text", "start", "end", "score"}, from `start` to before
        `end`: numbers of words, or of a text's characters. A score is a probability, a span's the mean of its words'.
        """
        places = [split(item) if isinstance(item, str) else None for item in items]
        sentences = [
            [item[a:b] for a, b in at] if at is not None else self._listed(item)
            for item, at in zip(items, places, strict=True)
        ]
        windows = self.windows(sentences, tokenizer)
        records = [{"input_ids": window.input_ids} for one in windows for window in one]
        run = functools.partial(_probabilities, model, params)
        made = iter(by_length(run, records, pad_id=tokenizer.pad_id, max_length=self.length))
        results = []
        for item, words, at, one in zip(items, sentences, places, windows, strict=True):
            p = np.zeros((len(words), len(self.labels)))
            for window in one:
                p[window.words] = finite(next(made)[window.places], item)
            tags = [self.labels[i] for i in p.argmax(1)]
            found: dict[str, Any] = {"words": words, "tags": tags, "scores": p.max(1, initial=0.0).tolist()}
            if self.spans:
                found["spans"] = [_span(label, a, b, found, item, at) for label, a, b in metrics.entities(tags)]
            results.append(found)
        return results


def split(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end: letters and digits together, signs alone, each with its accents.

    >>> [text[a:b] for text in ["It's 5 h."] for a, b in split(text)]
    ['It', "'", 's', '5', 'h', '.']
    """
    plain = "".join("\u0300" if unicodedata.category(c)[0] == "M" else c for c in text)
    return [word.span() for word in WORD.finditer(plain)]


@dataclasses.dataclass(frozen=True)
class Window:
    """Some of a sentence's words, as the model reads them."""

    input_ids: np.ndarray  # with special tokens
    words: np.ndarray  # the numbers of the words that count here
    places: np.ndarray  # of each, its first token


@dataclasses.dataclass(frozen=True)
class Part:
    """Words start … stop - 1, of which first … last - 1 count."""

    start: int
    stop: int
    first: int
    last: int


def parts(sizes: Sequence[int], room: int, overlap: int) -> list[Part]:
    """Windows of words of so many tokens each, all of at most `room`; of two neighbours each has half of the overlap.

    >>> parts([1, 2, 1, 2, 1], room=4, overlap=2)
    [Part(start=0, stop=3, first=0, last=3), Part(start=2, stop=5, first=3, last=5)]
    """
    found: list[Part] = []
    ends = np.cumsum([0, *sizes])
    start = first = 0
    while first < len(sizes):
        stop = int(np.searchsorted(ends, ends[start] + room, side="right")) - 1
        following = max(int(np.searchsorted(ends, ends[stop] - overlap)), start + 1)  # with the last `overlap` tokens
        last = stop if stop == len(sizes) else max((min(following, stop) + stop + 1) // 2, first + 1)
        found.append(Part(start, stop, first, last))
        if last < len(sizes):  # the next one has room for the first word that counts there
            following = max(min(following, last), int(np.searchsorted(ends, ends[last + 1] - room)))
        start, first = following, last
    return found


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: nn.Module, params: Mapping[str, Any], inputs: Batch) -> Float[Array, "B T n_labels"]:
    return jax.nn.softmax(model.apply({"params": params}, **inputs)["logits"])


def _encoded(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of every word by itself; one that has none is unknown.

    To byte-level BPE a word begins with the space before it, but for a sentence's first.
    """
    backend = tokenizer.backend
    spaced = not isinstance(backend, SentencePiece) and isinstance(backend.decoder, decoders.ByteLevel)
    words = [f" {word}" if spaced and i else word for words in sentences for i, word in enumerate(words)]
    nothing = [tokenizer.eos_id if tokenizer.unk_id is None else tokenizer.unk_id]
    return [list(ids) or nothing for ids in tokenizer.encode_batch(words)]


def _window(tokens: Sequence[Sequence[int]], part: Part, form: Template) -> Window:
    here = tokens[part.start : part.stop]
    places = len(form.start) + np.cumsum([0, *map(len, here)])
    words = np.arange(part.first, part.last)
    return Window(form.join([i for word in here for i in word])["input_ids"], words, places[words - part.start])


def _span(label: str, first: int, last: int, found: Mapping[str, Any], item: Any, at: Any) -> dict[str, Any]:
    """Words first … last as a span."""
    start, end = (first, last + 1) if at is None else (at[first][0], at[last][1])
    text = " ".join(found["words"][first : last + 1]) if at is None else item[start:end]
    score = float(np.mean(found["scores"][first : last + 1]))
    return {"label": label, "text": text, "start": start, "end": end, "score": score}
