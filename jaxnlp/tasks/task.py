"""What a task is, and what it may show.

A task is a frozen dataclass of plain values. Everything that it measures is a pair (sum, weight): summed over rows,
devices and steps, and divided once. A task whose loss is no one mean "loss" but a sum of several has `losses`, the
names of their sums, each with the name of the batch's array that holds its weights.

A task that is only evaluated (`Prompting`, `LastWord`) has `heads`, `predict` and `score`, and no more.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxnlp.data.batches import Batches
from jaxnlp.data.cache import Cache
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.models.heads import speaks

Record = dict[str, np.ndarray]  # one example's features: integer arrays, "input_ids" among them
Batch = Mapping[str, Array | np.ndarray]
Apply = Callable[..., dict[str, Any]]  # model.apply with parameters, rngs and `deterministic` already given
# name -> (sum, weight); training lowers "loss", or `losses`
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


@runtime_checkable
class Task(Protocol):
    """What the training loop asks of a task."""

    length: int  # tokens a row at most

    @property
    def heads(self) -> tuple[Any, ...]:
        """What the task puts on the body (models/heads.py); nothing for a language model."""

    @property
    def key(self) -> dict[str, Any]:
        """The fields that `encode` depends on: part of the tokenised cache's name."""

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """Examples as features, batched since tokenizers work on many texts at once."""

    def texts(self, example: Mapping[str, Any]) -> Sequence[str]:
        """The example's texts, on which a tokenizer is trained."""

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> Batches:
        """Batches as a function of the step; `seed=None` is one pass in order, for evaluation."""

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch's arrays, the longest that there may be, without data."""

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        """Everything measured on the batch, "loss" or the `losses` among it; outside training, these are plain."""

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means of `sums` under the names of metrics.jsonl, with what follows from them (perplexity)."""

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> Sequence[Any]:
        """Tables, samples and pictures for the report of a finished run; the examples are the validation part's."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under named columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Heatmap:
    """Numbers under a name for each row and each column, darker where they are larger: attention, gates."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]  # [rows, columns]


def confused(title: str, labels: tuple[str, ...], counts: Int[np.ndarray, "n n"]) -> Heatmap:
    """Of each true label, the shares that were taken for each; the rows' names say how often there is one."""
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    names = tuple(f"{label} ({n:,})" for label, n in zip(labels, totals.tolist(), strict=True))
    return Heatmap(title, names, labels, tuple(map(tuple, shares.tolist())))


@dataclasses.dataclass(frozen=True)
class Points:
    """Names at places in the plane: words by their embeddings."""

    title: str
    names: tuple[str, ...]
    places: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Texts: (prompt or source, what the model made of it)."""

    title: str
    texts: tuple[tuple[str, str], ...]


def require(example: Mapping[str, Any], feature: str, field: str, *, none: bool = False) -> Any:
    """The example's feature, or an error that names the task's field; with `none` it may be None."""
    if feature not in example:
        raise ValueError(f"task.{field}={feature!r} is no feature of the data; allowed: {', '.join(sorted(example))}")
    if example[feature] is None and not none:
        raise ValueError(f"task.{field}={feature!r} is None in the example {dict(example)!r}; allowed: a value")
    return example[feature]


def number(value: Any) -> float:
    """The value, or where it is no number NaN, which is in no range."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except TypeError:
        return math.nan


def whole(name: str, value: Any, low: int | None = None) -> None:
    """TypeError of an option that is no whole number, ValueError of one below `low`."""
    try:
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}; allowed: a whole number") from None
    if low is not None and value < low:
        raise ValueError(f"{name}={value}; allowed: {low} and more")


def asked(task: Task) -> float | bool:
    """The share of a row's tokens whose words are asked for: all of a language model, none under other heads."""
    return getattr(task, "asked", speaks(task.heads))


def sown(tree: Mapping[str, Any], name: str) -> Iterator[Any]:
    """What each layer put down under that name, first to last; layers that are scanned have a leading axis."""
    for key in sorted(tree, key=lambda key: int(key) if key.isdigit() else -1):
        if key == name:
            yield tree[key][0]
        elif key == "blocks" and "layers" in tree[key]:
            for stacked in sown(tree[key]["layers"], name):
                yield from stacked
        elif isinstance(tree[key], Mapping):
            yield from sown(tree[key], name)
