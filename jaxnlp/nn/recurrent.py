"""Layers of recurrent cells over time: stacked, in one direction or both, residual, with padding on either side.

    forward     (h_t, carry_t) = cell(carry_{t-1}, x_t)        backward: from t = T to 1
    layer       y_t = h_t  or  [forward h_t; backward h_t]     Schuster & Paliwal, 1997
    stack       x^{l+1} = Drop(y^l)  or  Drop(y^l + x^l)       Wu et al., 2016, eq. 5-6 (residual)
    dropout     between layers (Zaremba et al., 2014); on h with one mask for all steps (Gal & Ghahramani, 2016)

A step outside the mask leaves the carry as it is, and its output is zero: so the backward direction, which meets the
padding first, begins at a sequence's own end, and the last carry is that of the last real step.

With `mutable="intermediates"` each layer of an LSTM or GRU puts down `gates`: by direction and by gate, [B, T, H],
zero outside the mask.

Letters: B batch, T length, D input width, H width.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxnlp.nn import cudnn
from jaxnlp.nn.cells import CELLS, Carry, Cell, GRUCell, LSTMCell, hidden, zero_carry
from jaxnlp.nn.scan import scan
from jaxnlp.nn.sharding import constrain, platform

Carries = tuple[tuple[Carry, ...], ...]  # by layer, then by direction: (forward,) or (forward, backward)
DIRECTIONS = ("forward", "backward")
SUFFIX = {"forward": "", "backward": "_reverse"}  # PyTorch's
N_GRU = GRUCell.N_GATES


class Recurrent(nn.Module):
    """A stack of recurrent layers: the equations at the head of this file."""

    cell: str = "lstm"  # of CELLS
    features: int = 512
    n_layers: int = 1
    bidirectional: bool = False
    residual: bool = False  # from the second layer on
    dropout: float = 0.0  # on the input of each layer but the first
    recurrent_dropout: float = 0.0  # on h where it meets the recurrent kernel
    activation: Literal["tanh", "relu"] = "tanh"  # of "rnn"
    forget_bias: float = 0.0  # of "lstm", what it begins with
    reset: Literal["after", "before"] = "after"  # of "gru"
    right_padded: bool = False  # a promise that masks begin with their real steps, which cuDNN needs
    unroll: int = 1  # steps in one turn of the loop
    remat_steps: int | None = None  # steps that the backward pass recomputes at a time; None: it keeps them all
    dtype: Any = jnp.float32
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
        carry: Carries | None = None,
    ) -> tuple[Float[Array, "B T F"], Carries]:
        self._check()
        carry = self.initial_carry(len(x)) if carry is None else carry
        mask = None if mask is None else mask.astype(bool)
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        x, last = x.astype(self.dtype), []
        for i in range(self.n_layers):
            y, ends = self._layer(i)(drop(x) if i else x, mask, carry[i])
            x = y + x if self.residual and i else y
            last.append(ends)
        return x, tuple(last)

    @nn.nowrap
    def initial_carry(self, batch: int) -> Carries:
        """Zeros; needs no parameters."""
        zeros = zero_carry(CELLS[self.cell], (batch, self.features), self.dtype)
        return ((zeros,) * (1 + self.bidirectional),) * self.n_layers

    @nn.nowrap
    def _check(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell: found {self.cell!r}; allowed: {', '.join(sorted(CELLS))}")
        if self.remat_steps is not None and self.remat_steps < 1:
            raise ValueError(f"remat_steps: found {self.remat_steps}; allowed: None, or 1 or more")
        for name in ("dropout", "recurrent_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}; allowed: 0 <= {name} < 1")

    def _layer(self, i: int) -> "Layer":
        own = {
            "rnn": {"activation": self.activation},
            "lstm": {"forget_bias": self.forget_bias},
            "gru": {"reset": self.reset},
        }
        cell = functools.partial(CELLS[self.cell], features=self.features, dtype=self.dtype, **own[self.cell])
        drop = 0.0 if self.deterministic else self.recurrent_dropout
        return Layer(
            cell,
            DIRECTIONS[: 1 + self.bidirectional],
            drop,
            self.right_padded,
            self.unroll,
            self.remat_steps,
            name=str(i),
        )


class Layer(nn.Module):
    """One layer in one or two directions; steps outside the mask give zeros."""

    cell: Callable[..., Cell]
    directions: tuple[str, ...]
    recurrent_dropout: float
    right_padded: bool
    unroll: int
    remat_steps: int | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None, carry: tuple[Carry, ...]
    ) -> tuple[Float[Array, "B T F"], tuple[Carry, ...]]:
        cells = [self.cell(name=name) for name in self.directions]
        # On a mesh, parameters are gathered once, not by each step.
        weights = [jax.tree.map(constrain, cell.weights(x.shape[-1])) for cell in cells]
        seen = bool(cells[0].NAMES) and self.is_mutable_collection("intermediates")
        if self._cudnn(cells[0], mask) and not seen:
            return cudnn.lstm(x, weights, carry, mask)
        columns = jnp.einsum("btd->tdb", x)
        real = None if mask is None else mask.T
        outputs, last, gates = [], [], {}
        for cell, own, start in zip(cells, weights, carry, strict=True):
            drop = self._drop_mask(cell.features, len(x), x.dtype) if self.recurrent_dropout else None
            reverse, hoist = cell.name == "backward", platform() != "cpu" or len(x) == 1
            run = functools.partial(scan, cell.equations, reverse, self.unroll, hoist)
            if self.remat_steps:
                run = functools.partial(_in_blocks, run, self.remat_steps, reverse)
            end, h = run(jax.tree.map(jnp.transpose, start), columns, own, real, drop)
            outputs.append(h if real is None else jnp.where(real[:, None], h, 0))
            last.append(jax.tree.map(jnp.transpose, end))
            if seen:
                gates[cell.name] = _gates(cell, reverse, hidden(start), h, x, mask, drop)
        if seen:
            self.sow("intermediates", "gates", gates)
        return jnp.einsum("thb->bth", jnp.concatenate(outputs, axis=1)), tuple(last)

    def _drop_mask(self, features: int, batch: int, dtype: Any) -> Float[Array, "H B"]:
        keep = 1 - self.recurrent_dropout
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (features, batch))
        return jnp.where(kept, 1 / keep, 0).astype(dtype)

    def _cudnn(self, cell: Cell, mask: Array | None) -> bool:
        """Whether cuDNN is there and computes what is asked."""
        plain = not self.recurrent_dropout and not self.remat_steps and (mask is None or self.right_padded)
        return platform() == "gpu" and isinstance(cell, LSTMCell) and cell.dtype == jnp.float32 and plain


def _gates(
    cell: Cell,
    reverse: bool,
    first: Float[Array, "B H"],
    h: Float[Array, "T H B"],
    x: Float[Array, "B T D"],
    mask: Bool[Array, "B T"] | None,
    dropout: Float[Array, "H B"] | None,
) -> dict[str, Float[Array, "B T H"]]:
    """Every gate at every step in one product, from the state before it: h, which padding leaves as it is, shifted."""
    h, first = jnp.einsum("thb->bth", h), first[:, None]
    before = jnp.concatenate([h[:, 1:], first] if reverse else [first, h[:, :-1]], axis=1)
    rows = lambda a: a.reshape(-1, *a.shape[2:])  # noqa: E731
    drop = None if dropout is None else rows(jnp.broadcast_to(dropout.T[:, None], h.shape))
    found = cell.gates(rows(before), rows(cell.project(x)), drop)
    real = True if mask is None else mask[:, :, None]
    return {name: jnp.where(real, value.reshape(h.shape), 0) for name, value in found.items()}


def _in_blocks(run, size: int, reverse: bool, carry: Carry, x: Float[Array, "T D B"], weights, mask, dropout):
    """`run` over blocks of time, of which the backward pass keeps the first carries alone."""
    T, _, B = x.shape
    size = min(size, T)
    spare = -T % size
    if spare and mask is None:
        mask = jnp.ones((T, B), bool)
    split = lambda x: jnp.pad(x, ((0, spare), *[(0, 0)] * (x.ndim - 1))).reshape(-1, size, *x.shape[1:])  # noqa: E731
    block = jax.checkpoint(lambda carry, part: run(carry, part[0], weights, part[1], dropout), prevent_cse=False)
    last, h = lax.scan(block, carry, jax.tree.map(split, (x, mask)), reverse=reverse)
    return last, h.reshape(-1, *h.shape[2:])[:T]


def lengths_to_mask(lengths: Int[Array, " B"] | np.ndarray, size: int) -> Bool[Array, "B T"]:
    """True for the first lengths[b] of `size` steps:  [2, 1], 3 -> [[True, True, False], [True, False, False]]."""
    if not isinstance(lengths, jax.core.Tracer):
        wrong = np.flatnonzero((np.asarray(lengths) < 1) | (np.asarray(lengths) > size))
        if len(wrong):
            found = f"{int(lengths[wrong[0]])} in row {wrong[0]}"
            raise ValueError(f"lengths: found {found}; allowed: 1 to {size}, the padded size")
    return jnp.arange(size)[None] < jnp.asarray(lengths)[:, None]


def from_torch(state: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a torch.nn.RNN, LSTM or GRU, by the names of its state_dict, as those of `Recurrent`.

    PyTorch has two biases a gate, of which we keep the sum; only the GRU's candidate needs both.
    """
    arrays = {name: np.asarray(array) for name, array in state.items()}
    known = re.compile(r"(weight|bias)_(ih|hh)_l(\d+)(_reverse)?")
    wrong = [name for name in arrays if not known.fullmatch(name)]
    if wrong or "weight_hh_l0" not in arrays:
        raise ValueError(
            f"state_dict: found {', '.join(wrong or arrays) or 'nothing'}; allowed: weight_ih_l0, weight_hh_l0, "
            "bias_ih_l0, bias_hh_l0, of further layers l1, l2, …, of the other direction l0_reverse, …"
        )
    H = arrays["weight_hh_l0"].shape[1]
    gates = lambda x: x.reshape(-1, H, *x.shape[1:])  # noqa: E731

    def cell(at: str) -> dict[str, Any]:
        kernel, recurrent = (gates(arrays[f"weight_{side}_{at}"]) for side in ("ih", "hh"))
        absent = np.zeros(kernel.shape[0] * H, kernel.dtype)
        bias, own = (gates(arrays.get(f"bias_{side}_{at}", absent)) for side in ("ih", "hh"))
        if len(recurrent) != N_GRU:
            return {"input": {"kernel": kernel, "bias": bias + own}, "recurrent": {"kernel": recurrent}}
        bias = np.concatenate([bias[:2] + own[:2], bias[2:]])
        return {"input": {"kernel": kernel, "bias": bias}, "recurrent": {"kernel": recurrent, "bias": own[2]}}

    n_layers = 1 + max(int(known.fullmatch(name)[3]) for name in arrays)
    directions = DIRECTIONS[: 1 + ("weight_hh_l0_reverse" in arrays)]
    return {str(i): {name: cell(f"l{i}{SUFFIX[name]}") for name in directions} for i in range(n_layers)}


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`; PyTorch's second bias is zero but where the cell has one."""
    state = {}
    for i, layer in params.items():
        for name, cell in layer.items():
            at = f"l{i}{SUFFIX[name]}"
            for side, ours in (("ih", cell["input"]), ("hh", cell["recurrent"])):
                kernel = np.asarray(ours["kernel"])
                state[f"weight_{side}_{at}"] = kernel.reshape(-1, kernel.shape[-1])
            bias = np.asarray(cell["input"]["bias"])
            own = np.zeros_like(bias)
            if len(bias) == N_GRU:
                if "bias" not in cell["recurrent"]:
                    raise ValueError('to_torch: found a GRU with reset="before"; allowed: reset="after", as PyTorch\'s')
                own[-1] = cell["recurrent"]["bias"]
            state[f"bias_ih_{at}"], state[f"bias_hh_{at}"] = bias.reshape(-1), own.reshape(-1)
    return state
