"""Token and position tables.

    x_t = tokens[id_t] + positions[p_t]                       GPT: Radford et al., 2018, eq. 2
    x_t = sqrt(D) tokens[id_t] + sinusoids(p_t)               the Transformer: Vaswani et al., 2017, 3.4 and 3.5

Letters: B batch, T length, D width, V vocabulary rounded up to a multiple of 128.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

LANES = 128  # of a TPU's vector unit: a table of a multiple of this many rows shards and multiplies without a remainder


def padded(vocab_size: int) -> int:
    """Rows of a vocabulary table: vocab_size rounded up to a multiple of 128."""
    return -(-vocab_size // LANES) * LANES


class TokenTable(nn.Module):
    """x_t = tokens[id_t]; `tokens` has padded(vocab_size) rows."""

    vocab_size: int
    d_model: int
    dtype: Any = jnp.float32

    def setup(self):
        normal = nn.initializers.normal(self.d_model**-0.5)  # tied, the logits begin with the size of the states
        self.tokens = self.param("tokens", normal, (padded(self.vocab_size), self.d_model))

    def __call__(self, input_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return jnp.take(self.tokens, input_ids, axis=0).astype(self.dtype)


class Embeddings(nn.Module):
    """Sum of the token's and the position's row, then dropout. `tokens` has padded(vocab_size) rows."""

    vocab_size: int
    n_positions: int
    d_model: int
    dropout: float
    dtype: Any = jnp.float32
    deterministic: bool = True

    def setup(self):
        normal = nn.initializers.normal(0.02)
        self.tokens = self.param("tokens", normal, (padded(self.vocab_size), self.d_model))
        self.positions = self.param("positions", normal, (self.n_positions, self.d_model))
        self.drop = nn.Dropout(self.dropout, deterministic=self.deterministic)

    def __call__(self, input_ids: Int[Array, "B T"], position_ids: Int[Array, "#B T"]) -> Float[Array, "B T D"]:
        # The rows of a batch sit at the same positions as a rule: then one row is looked up and broadcast.
        x = jnp.take(self.tokens, input_ids, axis=0) + jnp.take(self.positions, position_ids, axis=0)
        return self.drop(x.astype(self.dtype))


def sinusoids(position_ids: Int[Array, "*B T"], d_model: int) -> Float[Array, "*B T D"]:
    """[sin(p w_0), sin(p w_1), …, cos(p w_0), …], w_i = 10000^(-2i / D); float32.

    The paper has sine and cosine in turns: the same features in another order, which here is that of tensor2tensor and
    of Hugging Face's Marian. ValueError for an odd width.
    """
    if d_model % 2:
        raise ValueError(f"d_model={d_model}; allowed with sinusoidal positions: an even number")
    rates = jnp.asarray(10000.0 ** (-2 * np.arange(d_model // 2) / d_model), jnp.float32)
    angles = position_ids[..., None].astype(jnp.float32) * rates.reshape((1,) * position_ids.ndim + (-1,))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
