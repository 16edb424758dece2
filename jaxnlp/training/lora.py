"""Low-rank adaptation (Hu et al., 2022, eq. 3): beside a matrix that stays as it is, the product of two thin ones.

    W' = W + (alpha / r) B A        W [m, n], A [r, n] from N(0, 1/n), B [m, r] of zeros

A and B alone are trained, and whatever the checkpoint did not give: fresh heads, tables that grow. So they alone have
gradients, an optimizer's state, a moving average and a place in the run's folder, which names its base by a hash.

    params   {"lora": {"blocks": {"0": {"attention": {"qkv": {"kernel": {"a", "b"}}}}}}, "heads": …}     trained
    base     everything else, as the checkpoint has it

`merged` is what the model takes. A difference of floats would not give W back to the last bit, but the base is not
written to: `pretrained.unmerged("runs/adapted")` reads it again, and by its hash knows that it is the same. The
adapted matrices are made anew in each step: as long as A and B themselves, the model's own dropout is the only one.
"""

import dataclasses
import hashlib
import math
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from jaxnlp.training.optim import matrix_axes

Params = Mapping[str, Any]  # a nested dict of arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which matrices get an A and a B, and of what size."""

    rank: int = 8
    alpha: float = 16.0  # the product counts alpha / rank times
    paths: str = r".*attention/(qkv|out)/kernel"  # regex of whole paths

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank}; allowed: 1 and more")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha={self.alpha}; allowed: more than 0")
        try:
            re.compile(self.paths)
        except re.error as error:
            raise ValueError(f"lora.paths={self.paths!r} is no regex: {error}") from error


def apart(lora: LoRA, params: Params, anew: Callable[[str], bool], key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is trained: the paths that are `anew`, and an A and a B for each other that lora.paths matches; the base."""
    flat = flatten_dict(params, sep="/")
    base = {path: value for path, value in flat.items() if not anew(path)}
    adapted = [path for path in base if re.fullmatch(lora.paths, path)]
    if not adapted:
        raise ValueError(f"lora.paths={lora.paths!r} matches no parameter of the base; there are {', '.join(base)}")
    trained = {path: value for path, value in flat.items() if anew(path)}
    for path, one in zip(adapted, jax.random.split(key, len(adapted)), strict=True):
        many, inputs, outputs = _axes(path, base[path].ndim)
        of = lambda axes: tuple(base[path].shape[axis] for axis in axes)  # noqa: B023, E731
        a = jax.random.normal(one, (*of(many), lora.rank, *of(inputs)), jnp.float32)
        trained[f"lora/{path}/a"] = a / math.prod(of(inputs)) ** 0.5
        trained[f"lora/{path}/b"] = jnp.zeros((*of(many), *of(outputs), lora.rank), jnp.float32)
    return unflatten_dict(trained, sep="/"), unflatten_dict(base, sep="/")


def merged(lora: LoRA, params: Params, base: Params) -> dict[str, Any]:
    """The parameters of the whole model: W + (alpha / r) B A wherever there are an A and a B."""
    trained = flatten_dict(params, sep="/")
    whole = flatten_dict(base, sep="/") | {path: p for path, p in trained.items() if not path.startswith("lora/")}
    for path in whole:
        if f"lora/{path}/a" in trained:
            product = _product(path, trained[f"lora/{path}/a"], trained[f"lora/{path}/b"])
            whole[path] = whole[path] + lora.alpha / lora.rank * product
    return unflatten_dict(whole, sep="/")


def fingerprint(params: Params) -> str:
    """The SHA-256 of all paths, shapes, dtypes and values."""
    found = hashlib.sha256()
    for path, value in sorted(flatten_dict(params, sep="/").items()):
        value = np.ascontiguousarray(value)
        found.update(f"{path} {value.dtype}{list(value.shape)}\n".encode())
        found.update(value.view(np.uint8))
    return found.hexdigest()


def _axes(path: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of an array that holds matrices: the axes that number them, those of their inputs, those of their outputs."""
    known = matrix_axes(path)
    inputs, outputs = (
        tuple(sorted(axis % ndim for axis in axes)) for axes in (known.reduction_axis, known.output_axis)
    )
    return tuple(axis for axis in range(ndim) if axis not in inputs + outputs), inputs, outputs


def _product(path: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """B A, with the axes where the array at `path` has them."""
    known = matrix_axes(path)
    ndim = a.ndim + len(known.output_axis) - 1
    many, inputs, outputs = ("".join(string.ascii_letters[axis] for axis in axes) for axes in _axes(path, ndim))
    whole = string.ascii_letters[:ndim]
    return jnp.einsum(f"{many}{outputs}R,{many}R{inputs}->{whole}", b, a)
