"""Token and position tables.

    x_t = tokens[id_t] + positions[p_t]                              GPT: Radford et al., 2018, eq. 2
    x_t = Norm(tokens[id_t] + segments[s_t] + positions[p_t])        BERT: Devlin et al., 2019, figure 2
    x_t = sqrt(D) tokens[id_t] + sinusoids(p_t)                      the Transformer: Vaswani et al., 2017, 3.4 and 3.5

Letters: B batch, T length, D width, V vocabulary rounded up to a multiple of 128.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxnlp.nn.blocks import LayerNorm

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
    """Sum of the rows of token, position and, in BERT, segment; there normed; then dropout.

    `tokens` has padded(vocab_size) rows.
    """

    vocab_size: int
    n_positions: int
    d_model: int
    dropout: float
    dtype: Any = jnp.float32
    deterministic: bool = True
    n_segments: int = 0  # 0: no table of segments
    epsilon: float | None = None  # of the norm; None: no norm
    init: Callable[..., Array] = nn.initializers.normal(0.02)

    def setup(self):
        self.tokens = self.param("tokens", self.init, (padded(self.vocab_size), self.d_model))
        self.positions = self.param("positions", self.init, (self.n_positions, self.d_model))
        if self.n_segments:
            self.segments = self.param("segments", self.init, (self.n_segments, self.d_model))
        if self.epsilon is not None:
            self.norm = LayerNorm(self.epsilon)
        self.drop = nn.Dropout(self.dropout, deterministic=self.deterministic)

    def __call__(
        self,
        input_ids: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"],
        token_type_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        # The rows of a batch sit at the same positions as a rule: then one row is looked up and broadcast.
        x = jnp.take(self.tokens, input_ids, axis=0) + jnp.take(self.positions, position_ids, axis=0)
        if self.n_segments:
            given = token_type_ids is not None and self.n_segments > 1
            kinds = token_type_ids if given else jnp.zeros((1, 1), jnp.int32)
            x += jnp.take(self.segments, kinds, axis=0)
        x = x if self.epsilon is None else self.norm(x)
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
