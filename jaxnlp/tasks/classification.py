"""Classification of a text (Radford et al., 2018, section 3.2): the class from the body's state at the end token.

    loss = - sum_b w_b log p(y_b | x_b) / sum_b w_b           accuracy = sum_b w_b [argmax_y p(y | x_b) = y_b] / sum_b w_b
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    label: str = "label"  # the feature that holds the class: its index among the source's names, or its name
    names: tuple[str, ...] | None = None  # the source's names by index, where they are not `labels`
    ignore: tuple[str, ...] = ()  # classes whose examples are left out
    length: int = 256  # tokens a row at most: a longer text keeps its beginning
    buckets: tuple[int, ...] | None = None  # padded lengths, so that short texts cost less

    @property
    def heads(self) -> tuple[heads.Classification]:
        return (heads.Classification(len(self.labels)),)

    @property
    def key(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        return {"task": "classification", **{k: v for k, v in fields.items() if k != "buckets"}}

    def texts(self, example: Mapping[str, Any]) -> Sequence[str]:
        return (require(example, self.text, "text"),)

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """{"text": "ab", "label": 1} -> {"input_ids": [5, 6, 0], "label": 1} where 0 is the end token."""
        examples = [example for example in examples if self._name(example) not in self.ignore]
        ids = self.features([self.texts(example)[0] for example in examples], tokenizer)
        return [{"input_ids": i, "label": np.int32(self._index(e))} for i, e in zip(ids, examples, strict=True)]

    def features(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
        """The texts' ids, at most length - 1 of each, and the end token."""
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        return [
            np.asarray([*ids[: self.length - len(end)], *end], np.int32) for ids in tokenizer.encode_batch(list(texts))
        ]

    def _name(self, example: Mapping[str, Any]) -> str:
        value = require(example, self.label, "label")
        names = self.names or self.labels
        if isinstance(value, str):
            return value
        if not 0 <= int(value) < len(names):
            raise ValueError(f"{self.label}={int(value)} in the data; allowed: 0 … {len(names) - 1} ({', '.join(names)})")
        return names[int(value)]

    def _index(self, example: Mapping[str, Any]) -> int:
        name = self._name(example)
        if name not in self.labels:
            raise ValueError(f"{self.label}={name!r} in the data; allowed: {', '.join(self.labels)}")
        return self.labels.index(name)

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        return batches.padded(
            cache,
            batch_size=batch_size,
            max_length=self.length,
            pad_id=tokenizer.pad_id or 0,
            seed=seed,
            buckets=self.buckets,
        )

    def sums(self, apply: Apply, batch: Batch) -> Sums:
        logits = apply(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"]
        loss, weight = cross_entropy(logits, batch["labels"], batch["weights"])
        correct = jnp.sum(batch["weights"] * (logits.argmax(-1) == batch["labels"]))
        return {"loss": (loss, weight), "accuracy": (correct, weight)}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)

    def predict(
        self, apply: Callable[[dict[str, np.ndarray]], dict[str, Any]], tokenizer: Tokenizer, texts: Sequence[str]
    ) -> list[dict[str, Any]]:
        """{"label", "score", "scores": {label: probability}} for each text, longest texts together."""
        ids = self.features(texts, tokenizer)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        results: list[dict[str, Any]] = [{}] * len(ids)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            inputs = batches.pad([ids[i] for i in rows], pad_id=tokenizer.pad_id or 0)
            for i, scores in zip(rows, np.asarray(jax.nn.softmax(apply(inputs)["logits"])), strict=True):
                best = int(scores.argmax())
                by_name = dict(zip(self.labels, scores.tolist(), strict=True))
                results[i] = {"label": self.labels[best], "score": float(scores[best]), "scores": by_name}
        return results
