"""AdamW (Loshchilov and Hutter, 2019), LAMB (You et al., 2020) or Muon (Jordan et al., 2024) on a warmed-up schedule,
clipped: all of it optax.

lr(t) = lr (t + 1) / (W + 1)                                              t < W = warmup * steps
lr(t) = lr (end + (1 - end) (1 + cos(pi (t - W) / (E - W))) / 2)          W <= t < E = end_at * steps
lr(t) = lr end                                                            t >= E

or, with decay "rsqrt", lr sqrt((W + 1) / (t + 1)) from W on (Vaswani et al., 2017, eq. 3), whose peak is

lr = 1 / sqrt(D (W + 1)) in a model of width D.

Decay is on matrices and tables only. Muon takes the momentum (0.95, Nesterov's) of a block's matrix [m, n] = U S V' by
five steps of Newton and Schulz's iteration to nearly U V', which is orthogonal, and scales it by 0.2 sqrt(max(m, n)) to
the size of AdamW's updates (Liu et al., 2025, eq. 4), so that lr and decay mean the same in both. The queries', keys'
and values' matrices are three. What is no block's matrix stays with AdamW.

LAMB, for large batches, is AdamW that takes for the update u of a matrix or table w, decay and all, |w| / |u| u: each
moves by the same share of its own length. Biases and norms move by u, as in the authors' code.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_type_hints

import jax
import jax.numpy as jnp
import optax

Params = Any  # a nested dict of arrays

MATRICES = {  # axes that are rows and columns of a kernel's matrix; the others number matrices: q, k and v, and layers
    r".*/(qkv|keys_values)/kernel": optax.contrib.MuonDimensionNumbers(
        (-1,), (-4, -2)
    ),  # [H, 3, K, D], [L, H, 2, K, D]
    r".*/query/kernel": optax.contrib.MuonDimensionNumbers((-1,), (-3, -2)),  # [H, K, D]
    r".*/(cross_)?attention/out/kernel": optax.contrib.MuonDimensionNumbers((-2, -1), (-3,)),  # [D, H, K]
    r".*/mlp/(in|out)/kernel": optax.contrib.MuonDimensionNumbers((-1,), (-2,)),
}

UNDECAYED = ("bias", "scale")  # ends of the paths of biases and of the norms' scales


@dataclasses.dataclass(frozen=True)
class Optim:
    """The rule's numbers; the defaults are AdamW's for GPT-3 125M (Brown et al., 2020, table 2.1 and appendix B)."""

    name: Literal["adamw", "lamb", "muon"] = "adamw"
    lr: float = 6e-4  # the peak
    warmup: float = 0.02  # fraction of the steps
    decay: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"  # from the peak to end * lr; "rsqrt" has no end
    end: float = 0.1  # of the peak
    end_at: float = 1.0  # fraction of the steps after which it stays there
    b1: float = 0.9  # AdamW's and LAMB's, as b2 and epsilon
    b2: float = 0.95
    mu_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moment: bfloat16 saves 2 bytes a parameter
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # on matrices and tables, not on biases and norms
    clip: float | None = 1.0  # largest global norm of the gradient
    freeze: str | None = None  # regex of parameter paths that stay as they are, such as "embed/.*"
    layer_decay: float | None = None  # lr of a block = lr * layer_decay ** (blocks above it + 1) (Clark et al., 2020)

    def __post_init__(self):
        for name in ("name", "decay", "mu_dtype"):
            allowed = get_args(get_type_hints(Optim)[name])
            if getattr(self, name) not in allowed:
                raise ValueError(f"optim.{name}={getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name, low, high in (("warmup", 0, 1), ("end", 0, 1), ("end_at", 0, 1), ("b1", 0, 1), ("b2", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"optim.{name}={getattr(self, name)}; allowed: {low} to {high}")
        if self.end_at < self.warmup:
            raise ValueError(f"optim.end_at={self.end_at}; allowed: optim.warmup={self.warmup} to 1")
        for name in ("lr", "epsilon", "clip", "layer_decay"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"optim.{name}={getattr(self, name)}; allowed: more than 0")
        try:
            re.compile(self.freeze or "")
        except re.error as error:
            raise ValueError(f"optim.freeze={self.freeze!r} is no regex: {error}") from error


def schedule(optim: Optim, steps: int) -> optax.Schedule:
    """The learning rate at a step, 0 … steps - 1."""
    warmup = round(optim.warmup * steps)
    rest = max(round(optim.end_at * steps) - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(optim.lr, rest, alpha=optim.end),
        "linear": optax.linear_schedule(optim.lr, optim.lr * optim.end, rest),
        "constant": optax.constant_schedule(optim.lr),
        "rsqrt": lambda t: optim.lr * ((warmup + 1) / (t + warmup + 1)) ** 0.5,
    }[optim.decay]
    up = optax.linear_schedule(optim.lr / (warmup + 1), optim.lr, max(warmup, 1))
    return optax.join_schedules([up, after], [warmup])


def optimizer(optim: Optim, steps: int) -> optax.GradientTransformation:
    """The transformation of a gradient, averaged over the batch, into an update; frozen paths have no state."""
    adamw = optax.adamw(
        schedule(optim, steps),
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.epsilon,
        weight_decay=optim.weight_decay,
        mask=decayed,
        mu_dtype=optim.mu_dtype,
    )
    rule = adamw
    if optim.name == "lamb":
        rule = optax.chain(
            optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.epsilon, mu_dtype=optim.mu_dtype),
            optax.add_decayed_weights(optim.weight_decay, decayed),
            optax.stateless(_trust),
            optax.scale_by_learning_rate(schedule(optim, steps)),
        )
    if optim.name == "muon":
        muon = optax.contrib.muon(
            schedule(optim, steps),
            beta=0.95,
            nesterov=True,
            ns_steps=5,
            weight_decay=optim.weight_decay,
            mu_dtype=optim.mu_dtype,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=functools.partial(by_path, matrix_axes),
        )
        rule = optax.multi_transform({"matrices": muon, "others": adamw}, functools.partial(by_path, _kind))
    if optim.clip is not None:
        rule = optax.chain(optax.clip_by_global_norm(optim.clip), rule)
    if optim.freeze is not None:
        rule = optax.multi_transform(
            {"trained": rule, "frozen": optax.set_to_zero()}, functools.partial(_labels, optim)
        )
    return rule if optim.layer_decay is None else optax.chain(rule, _scale_layers(optim.layer_decay))


def _labels(optim: Optim, params: Params) -> Params:
    return by_path(lambda path, _: "frozen" if frozen(optim, path) else "trained", params)


def _kind(path: str, _: Any) -> str:
    of_block = re.match(r"((encoder|decoder)/)?blocks/|memory/", path)
    return "matrices" if of_block and path.endswith("/kernel") else "others"


def matrix_axes(path: str, _: Any = None) -> optax.contrib.MuonDimensionNumbers:
    """The axes of a block's array that are a matrix's; ValueError for a path that is none of MATRICES."""
    for pattern, axes in MATRICES.items():
        if re.fullmatch(pattern, path):
            return axes
    raise ValueError(f"{path} is no array of a block's matrices; allowed: {', '.join(MATRICES)}")


def decayed(params: Params) -> Params:
    """True where weight decay applies: on everything but biases and the norms' scales."""
    return by_path(lambda path, _: not path.endswith(UNDECAYED), params)


def _trust(updates: Params, params: Params) -> Params:
    """Updates of matrices and tables as long as these are; of several matrices in one array, of each (`MATRICES`)."""

    def scale(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if path.endswith(UNDECAYED):
            return update
        found = (axes for pattern, axes in MATRICES.items() if re.fullmatch(f"(.*/)?{pattern}", path))
        rows_and_columns = next(found, None)
        axes = None if rows_and_columns is None else rows_and_columns.reduction_axis + rows_and_columns.output_axis
        lengths = [jnp.sqrt(jnp.square(x).sum(axes, keepdims=True)) for x in (param, update)]
        ratio = lengths[0] / jnp.where(lengths[1] > 0, lengths[1], 1)
        return update * jnp.where((lengths[0] > 0) & (lengths[1] > 0), ratio, 1)

    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: scale("/".join(k.key for k in keys), *leaves), updates, params
    )


def frozen(optim: Optim, path: str) -> bool:
    return optim.freeze is not None and re.fullmatch(optim.freeze, path) is not None


def stop_frozen(optim: Optim, params: Params) -> Params:
    """The same parameters, with no gradient into the frozen ones: the compiler then leaves its computation out."""
    if optim.freeze is None:
        return params
    if not any(frozen(optim, path) for path in paths(params)):
        raise ValueError(f"optim.freeze={optim.freeze!r} matches no parameter; there are {', '.join(paths(params))}")
    return by_path(lambda path, p: jax.lax.stop_gradient(p) if frozen(optim, path) else p, params)


def paths(params: Params) -> list[str]:
    """Every parameter's path, such as "blocks/0/attention/qkv/kernel"."""
    return jax.tree.leaves(by_path(lambda path, _: path, params))


def by_path(function: Callable[[str, Any], Any], tree: Params) -> Params:
    """The tree with function(path, leaf) at each leaf."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function("/".join(k.key for k in keys), leaf), tree)


def _scale_layers(rate: float) -> optax.GradientTransformation:
    """Updates times rate ** (layers above): 0 above the heads, 1 above the last block, …, the embeddings lowest."""

    def scale(updates: Params) -> Params:
        if "blocks" not in updates:
            raise ValueError(f"optim.layer_decay={rate} of a model that is no one stack of blocks; allowed: None")
        blocks = updates["blocks"]
        n_layers = len(jax.tree.leaves(blocks["layers"])[0]) if "layers" in blocks else len(blocks)

        def scaled(path: str, update: jax.Array) -> jax.Array:
            room, _, rest = path.partition("/")
            if room in ("heads", "norm"):
                return update
            if room == "embed":
                return update * rate ** (n_layers + 1)
            layer = rest.partition("/")[0]
            if layer == "layers":
                above = n_layers - jnp.arange(n_layers).reshape(-1, *(1,) * (update.ndim - 1))
                return update * (rate**above).astype(update.dtype)
            return update * rate ** (n_layers - int(layer))

        return by_path(scaled, updates)

    return optax.stateless(lambda updates, params: scale(updates))
