"""The LSTM of cuDNN behind the same parameters (Appleyard et al., 2016): a layer, both its directions, in one call.

Its weights are one vector: for each direction W then U, [4 H, D] and [4 H, H], then for each both biases, [4 H]; the
gates in our order. It takes padding on the right alone, by lengths, gives zeros there, and turns each sequence round by
its own length.

Letters: B batch, T length, D input width, H width.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental import rnn
from jaxtyping import Array, Bool, Float, Int

from jaxnlp.nn.cells import Weights

Carry = tuple[Float[Array, "B H"], Float[Array, "B H"]]  # (c, h)


def lstm(
    x: Float[Array, "B T D"], directions: Sequence[Weights], carry: Sequence[Carry], mask: Bool[Array, "B T"] | None
) -> tuple[Float[Array, "B T F"], tuple[Carry, ...]]:
    """A layer in one or two directions: outputs and last carries."""
    y, h, c = rnn.lstm(*arguments(x, directions, carry, mask), **options(x, directions))
    return y, tuple((c[i], h[i]) for i in range(len(directions)))


def arguments(
    x: Float[Array, "B T D"], directions: Sequence[Weights], carry: Sequence[Carry], mask: Bool[Array, "B T"] | None
) -> tuple[Array, Array, Array, Array, Int[Array, " B"]]:
    """What jax.experimental.rnn.lstm takes: x, the first h and c by direction, the weights, lengths."""
    c, h = (jnp.stack(parts) for parts in zip(*carry, strict=True))
    B, T, _ = x.shape
    lengths = jnp.full(B, T, jnp.int32) if mask is None else mask.sum(1, dtype=jnp.int32)
    return x, h, c, pack(directions), lengths


def options(x: Float[Array, "B T D"], directions: Sequence[Weights]) -> dict[str, Any]:
    return {
        "input_size": x.shape[-1],
        "hidden_size": directions[0].bias.shape[1],
        "num_layers": 1,
        "dropout": 0.0,
        "bidirectional": len(directions) > 1,
    }


def pack(directions: Sequence[Weights]) -> Float[Array, " N"]:
    """The parameters in cuDNN's order; the second bias is zero."""
    kernels = [part.reshape(-1) for weights in directions for part in (weights.kernel, weights.recurrent)]
    biases = [part.reshape(-1) for weights in directions for part in (weights.bias, jnp.zeros_like(weights.bias))]
    return jnp.concatenate(kernels + biases)
