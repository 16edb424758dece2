"""Classification of a text or a pair of texts, from the body's state of the whole.

GPT's is that at the last token (Radford et al., 2018, section 3.2), BERT's the pooled one (Devlin et al., 2019, 4.1).

    loss = - sum_b w_b log p(y_b | x_b) / sum_b w_b
    accuracy = sum_b w_b [argmax_y p(y | x_b) = y_b] / sum_b w_b

Of a whole set also F1 and Matthews' correlation (see metrics.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnlp import metrics
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import hits
from jaxnlp.models import heads
from jaxnlp.tasks.inputs import chances, distinct
from jaxnlp.tasks.labelled import Texts
from jaxnlp.tasks.task import Apply, Batch, Record, Sums, Table, confused, number, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Texts):
    """Into one of `labels`."""

    labels: tuple[str, ...]  # names of the classes, in the order of the head's outputs
    # The class in an example: its index among `labels`, or its name; -1: unlabelled

    def __post_init__(self):
        super().__post_init__()
        distinct(self.labels)

    @property
    def head(self) -> heads.Head:
        return heads.Classification(len(self.labels))

    @property
    def key(self) -> dict[str, Any]:
        return super().key | {"labels": self.labels}

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """{"text": "ab", "label": 1} -> {"input_ids": [5, 6, 0], "label": 1} where 0 is the end token."""
        labels = [self.index(example) for example in examples]
        records = self.features([self.texts(example) for example in examples], tokenizer, quiet=True)
        return [{**record, "label": np.int32(y)} for record, y in zip(records, labels, strict=True) if y >= 0]

    def index(self, example: Mapping[str, Any]) -> int:
        """The class's index, or -1 of an example that has none, as TFDS marks it: such examples are left out."""
        value = require(example, self.label, "label", none=True)
        if value in self.labels:
            return self.labels.index(value)
        if not -1 <= number(value) < len(self.labels) or number(value) % 1:
            names = ", ".join(self.labels)
            raise ValueError(f"{self.label}={value!r} in the data; allowed: -1 … {len(self.labels) - 1}, or {names}")
        return int(value)

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        return super().shapes(rows) | {"labels": jax.ShapeDtypeStruct((rows,), jnp.int32)}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        each, beside = self.measured(apply, batch)
        logits = each.sum(1)  # of both orders: W h_ab + W h_ba = W (h_ab + h_ba)
        return hits(logits, batch["labels"], batch["weights"]) | beside

    def score(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Accuracy, F1 and Matthews' correlation over all examples that have a class."""
        return metrics.classification(*self._both(model, params, tokenizer, examples), len(self.labels))

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """The scores, and which class was taken for which."""
        true, found = self._both(model, params, tokenizer, examples)
        if not len(true):
            return ()
        rows = tuple((k, round(v, 4)) for k, v in metrics.classification(true, found, len(self.labels)).items())
        counts = metrics.confusion(true, found, len(self.labels))
        picture = confused("True classes, and what they were taken for", self.labels, counts)
        return Table("Scores", ("metric", "value"), rows), picture

    def _both(self, model, params, tokenizer, examples) -> tuple[np.ndarray, np.ndarray]:
        """The true classes and those that were found."""
        known = [(e, y) for e in map(examples.__getitem__, range(len(examples))) if (y := self.index(e)) >= 0]
        found = self.predict(model, params, tokenizer, [self.texts(example) for example, _ in known])
        return np.array([y for _, y in known], int), np.array([self.labels.index(one["label"]) for one in found], int)

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """{"label", "score", "scores": {label: probability}} for each text, or pair of texts."""
        results = []
        found = self.logits(model, params, tokenizer, self.records(items, tokenizer))
        for item, logits in zip(items, found, strict=True):
            scores = chances(logits.sum(0), item)
            best = int(scores.argmax())
            by_name = dict(zip(self.labels, scores.tolist(), strict=True))
            results.append({"label": self.labels[best], "score": float(scores[best]), "scores": by_name})
        return results


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextSentence(Classification):
    """Whether a second text goes on from the first, by the head of BERT's pretraining (Devlin et al., 2019, 3.1)."""

    pair: str | None = "next"
    labels: tuple[str, ...] = ("follows", "random")

    @property
    def head(self) -> heads.NextSentence:
        return heads.NextSentence()
