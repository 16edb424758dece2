"""Classification of a text (Radford et al., 2018, section 3.2): the class from the body's state at the end token.

loss = - sum_b w_b log p(y_b | x_b) / sum_b w_b           accuracy = sum_b w_b [argmax_y p(y | x_b) = y_b] / sum_b w_b
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxnlp.data import batches
from jaxnlp.data.cache import Cache
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import cross_entropy
from jaxnlp.models import heads
from jaxnlp.tasks.task import Apply, Batch, Record, Sums, require


@dataclasses.dataclass(frozen=True)
class Classification:
    """Texts, cut to `length` tokens with the end token, into one of `labels`."""

    labels: tuple[str, ...]  # names of the classes, in the order of the head's outputs
    text: str = "text"  # the feature that holds the text
    label: str = "label"  # the feature that holds the class: its index among `labels`, or its name; -1: unlabelled
    length: int = 256  # tokens a row at most: a longer text keeps its beginning
    buckets: tuple[int, ...] | None = None  # padded lengths, so that short texts cost less

    @property
    def heads(self) -> tuple[heads.Classification]:
        return (heads.Classification(len(self.labels)),)

    @property
    def key(self) -> dict[str, Any]:
        return {
            "task": "classification",
            "text": self.text,
            "label": self.label,
            "labels": self.labels,
            "length": self.length,
        }

    def texts(self, example: Mapping[str, Any]) -> Sequence[str]:
        return (require(example, self.text, "text"),)

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """{"text": "ab", "label": 1} -> {"input_ids": [5, 6, 0], "label": 1} where 0 is the end token."""
        labels = [self._index(example) for example in examples]
        ids = self.features([self.texts(example)[0] for example in examples], tokenizer)
        return [{"input_ids": i, "label": np.int32(y)} for i, y in zip(ids, labels, strict=True) if y >= 0]

    def features(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
        """The texts' ids, at most length - 1 of each, and the end token."""
        ids = tokenizer.encode_batch(texts)
        return [np.asarray([*row[: self.length - 1], tokenizer.eos_id], np.int32) for row in ids]

    def _index(self, example: Mapping[str, Any]) -> int:
        """The class's index, or -1 of an example that has none, as TFDS marks it: such examples are left out."""
        value = require(example, self.label, "label")
        if value in self.labels:
            return self.labels.index(value)
        if isinstance(value, str) or not -1 <= value < len(self.labels):
            names = ", ".join(self.labels)
            raise ValueError(f"{self.label}={value!r} in the data; allowed: -1 … {len(self.labels) - 1}, or {names}")
        return int(value)

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
        names = {"input_ids": (rows, self.length), "attention_mask": (rows, self.length), "labels": (rows,)}
        shapes = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in names.items()}
        return shapes | {"weights": jax.ShapeDtypeStruct((rows,), jnp.float32)}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        logits = apply(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"]
        loss, weight = cross_entropy(logits, batch["labels"], batch["weights"])
        correct = jnp.sum(batch["weights"] * (logits.argmax(-1) == batch["labels"]))
        return {"loss": (loss, weight), "accuracy": (correct, weight)}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[()]:
        return ()

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, texts: Sequence[str]
    ) -> list[dict[str, Any]]:
        """{"label", "score", "scores": {label: probability}} for each text, longest texts together."""
        ids = self.features(texts, tokenizer)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        results: list[dict[str, Any]] = [{}] * len(ids)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            inputs = batches.pad([ids[i] for i in rows], pad_id=tokenizer.pad_id, max_length=self.length)
            for i, scores in zip(rows, np.asarray(_probabilities(model, params, inputs)), strict=True):
                best = int(scores.argmax())
                by_name = dict(zip(self.labels, scores.tolist(), strict=True))
                results[i] = {"label": self.labels[best], "score": float(scores[best]), "scores": by_name}
        return results


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: nn.Module, params: Mapping[str, Any], inputs: Batch) -> Float[Array, "B n_labels"]:
    return jax.nn.softmax(model.apply({"params": params}, **inputs)["logits"])
