"""One table of names for both directions: each row is a leaf of our parameters and the tensors that hold it elsewhere.

    Row("encoder/blocks/0/attention/qkv/kernel", "h c k d",
        "model.encoder.layers.0.self_attn.{c}_proj.weight", "(h k) d", {"c": "qkv"})

says that three tensors [(h k), d], of c = q, k and v, are one kernel [h, c, k, d]. Axes are written as in einops;
their sizes are those of our leaf, except `v`: a vocabulary, which here is filled up to a multiple of 128.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, get_args, get_type_hints

import einops
import numpy as np


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def fields(
    config: type,
    settings: Mapping[str, Any],
    same: Mapping[str, str],
    fixed: Mapping[str, tuple[Any, Any]],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The fields of our configuration that the settings of another say.

    `same` names settings and the fields that say the same, `fixed` settings that are of one form here: (that form, what
    is meant where they are absent or null); `defaults` says what is meant where others are absent. ValueError for a
    setting that is absent, of another type or form, or at odds with another.
    """
    types, settings = get_type_hints(config), {**defaults, **settings}
    for name, (allowed, default) in fixed.items():
        found = default if settings.get(name) is None else settings[name]
        if found != allowed:
            raise ValueError(f"{name}={found}; allowed: {allowed}")
    made = {}
    for theirs, ours in same.items():
        if theirs not in settings:
            raise ValueError(f"{theirs} is absent")
        allowed = types[ours]
        if not isinstance(settings[theirs], int | allowed if float in (allowed, *get_args(allowed)) else allowed):
            raise ValueError(f"{theirs}={settings[theirs]!r}; allowed: {getattr(allowed, '__name__', allowed)}")
        if made.setdefault(ours, settings[theirs]) != settings[theirs]:
            other = next(name for name, field in same.items() if field == ours)
            raise ValueError(f"{theirs}={settings[theirs]}; allowed: {made[ours]}, as {other}")
    return made


class Row(NamedTuple):
    ours: str  # path of the leaf
    axes: str  # its axes
    theirs: str  # name of a tensor; in braces an axis of ours along which there are several
    shape: str  # of each tensor
    stacked: Mapping[str, Sequence[Any]] = {}  # such an axis -> what stands for it in the names
    skip: int = 0  # rows of a tensor before the first of ours: nothing reads them, and they are written as zeros

    @property
    def names(self) -> list[str]:
        """Of all its tensors, in the order in which they are stacked."""
        values = itertools.product(*self.stacked.values())
        return [self.theirs.format(**dict(zip(self.stacked, each, strict=True))) for each in values]

    def theirs_shape(self, ours: Sequence[int], words: int) -> tuple[int, ...]:
        """Of each tensor, where our leaf has the shape `ours` and the vocabulary so many words."""
        sizes = self._sizes(ours, words)
        size = lambda axis: int(axis) if axis.isdigit() else sizes[axis]  # noqa: E731
        axes = re.findall(r"\([^)]*\)|\S+", self.shape)
        first, *others = (math.prod(map(size, axis.strip("()").split())) for axis in axes)
        return first + self.skip, *others

    def to_ours(self, tensors: Sequence[np.ndarray], ours: Sequence[int], words: int) -> np.ndarray:
        """Our leaf; rows that fill a vocabulary up are zero."""
        x = tensors if self.stacked else tensors[0][self.skip :]
        x = einops.rearrange(x, f"{self._theirs} -> {self.axes}", **self._sizes(ours, words))
        return x if x.shape == tuple(ours) else np.pad(x, [(0, n - m) for n, m in zip(ours, x.shape, strict=True)])

    def to_theirs(self, leaf: np.ndarray, words: int) -> dict[str, np.ndarray]:
        """The tensors by name, each with memory of its own."""
        sizes = self._sizes(leaf.shape, words)
        leaf = leaf[tuple(slice(sizes[axis]) for axis in self.axes.split())]
        x = einops.rearrange(leaf, f"{self.axes} -> {self._theirs}")
        if self.skip:
            x = np.concatenate([np.zeros_like(x, shape=(self.skip, *x.shape[1:])), x])
        names = self.names
        return dict(zip(names, map(np.ascontiguousarray, x if self.stacked else [x]), strict=True))

    @property
    def _theirs(self) -> str:
        return f"({' '.join(self.stacked)}) {self.shape}" if self.stacked else self.shape

    def _sizes(self, ours: Sequence[int], words: int) -> dict[str, int]:
        return {a: words if a == "v" else n for a, n in zip(self.axes.split(), ours, strict=True)}


def norm(ours: str, theirs: str) -> list[Row]:
    """A layer norm's."""
    return [Row(f"{ours}/scale", "d", f"{theirs}.weight", "d"), Row(f"{ours}/bias", "d", f"{theirs}.bias", "d")]


def product(ours: str, theirs: str, axes: str = "f", shape: str = "f") -> list[Row]:
    """The kernel and bias of a product whose outputs are `axes`, where the inputs are d and come last in both."""
    return [
        Row(f"{ours}/kernel", f"{axes} d", f"{theirs}.weight", f"{shape} d"),
        Row(f"{ours}/bias", axes, f"{theirs}.bias", shape),
    ]


def from_heads(ours: str, theirs: str) -> list[Row]:
    """Those of the product that takes heads in."""
    return [
        Row(f"{ours}/kernel", "d h k", f"{theirs}.weight", "d (h k)"),
        Row(f"{ours}/bias", "d", f"{theirs}.bias", "d"),
    ]
