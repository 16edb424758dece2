"""A number from a text or a pair of texts: how alike two sentences are, how good a film (Devlin et al., 2019, 4.1).

    loss = sum_b w_b (s(x_b) - y_b)^2 / sum_b w_b

Of a whole set also Pearson's and Spearman's correlations (see metrics.py).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnlp import metrics
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.models import heads
from jaxnlp.tasks.inputs import finite
from jaxnlp.tasks.labelled import Texts
from jaxnlp.tasks.task import Apply, Batch, Record, Sums, Table, number, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Texts):
    """The number that an example has as its label, from a head of one output without an activation."""

    label: str = "score"

    @property
    def head(self) -> heads.Classification:
        return heads.Classification(1)

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """{"text": "ab", "score": 4.5} -> {"input_ids": [5, 6, 0], "label": 4.5} where 0 is the end token."""
        values = [self.value(example) for example in examples]
        records = self.features([self.texts(example) for example in examples], tokenizer, quiet=True)
        return [{**record, "label": np.float32(y)} for record, y in zip(records, values, strict=True)]

    def value(self, example: Mapping[str, Any]) -> float:
        value = require(example, self.label, "label", none=True)
        if not math.isfinite(number(value)):
            raise ValueError(f"{self.label}={value!r} in the data; allowed: a finite number")
        return float(value)

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        each, beside = self.measured(apply, batch)
        errors = each.sum((1, 2)) - batch["labels"]  # of both orders: w h_ab + w h_ba = w (h_ab + h_ba)
        return {"loss": (jnp.sum(batch["weights"] * jnp.square(errors)), jnp.sum(batch["weights"])), **beside}

    def score(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Pearson's and Spearman's correlations over all examples."""
        examples = [examples[i] for i in range(len(examples))]
        found = self.predict(model, params, tokenizer, [self.texts(example) for example in examples])
        true = np.array([self.value(example) for example in examples])
        return metrics.correlation(true, np.array([one["score"] for one in found]))

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        found = self.score(model, params, tokenizer, examples) if len(examples) else {}
        return (Table("Scores", ("metric", "value"), tuple((k, round(v, 4)) for k, v in found.items())),) * bool(found)

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """{"score"} for each text, or pair of texts."""
        found = self.logits(model, params, tokenizer, self.records(items, tokenizer))
        return [{"score": float(finite(x.sum(), item))} for item, x in zip(items, found, strict=True)]
