"""What is put on top of any body: each head turns the last hidden state into its outputs, under its field's own names.

A head is plain values; its parameters live under heads/<name>/. Letters: B batch, T length, D width, V vocabulary.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxnlp.nn.blocks import multiply


class Unembedding(NamedTuple):
    """What gives the logits of a vocabulary, logits = hidden table' + bias, not yet multiplied out.

    The blocked cross entropy takes it as it is; `logits` cuts the table's padding rows off.
    """

    hidden: Float[Array, "B T D"]
    table: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    vocab_size: int

    def logits(self) -> Float[Array, "B T vocab_size"]:
        rows = self.hidden.reshape(-1, self.hidden.shape[-1])
        logits = multiply(rows, self.table.astype(rows.dtype), jnp.float32).reshape(*self.hidden.shape[:2], -1)
        if self.bias is not None:
            logits += self.bias.astype(jnp.float32)[None, None]
        return logits[..., : self.vocab_size]


@dataclasses.dataclass(frozen=True)
class Classification:
    """logits = h W over the classes, h the hidden state of one token or their mean (Radford et al., 2018, eq. 4).

    Without a bias, as GPT2ForSequenceClassification. Parameters: heads/classification/kernel [D, n_labels].
    """

    n_labels: int
    pooling: Literal["first", "last", "mean"] = "last"  # real tokens only; GPT has read everything at the last one

    def __call__(
        self, hidden: Float[Array, "B T D"], attention_mask: Int[Array, "B T"] | None
    ) -> dict[str, Float[Array, "B n_labels"]]:
        classify = nn.Dense(
            self.n_labels,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.02),
            dtype=jnp.float32,
            name="classification",
        )
        return {"logits": classify(pool(hidden, attention_mask, self.pooling))}


def pool(hidden: Float[Array, "B T D"], attention_mask: Int[Array, "B T"] | None, pooling: str) -> Float[Array, "B D"]:
    """The first or last real token's hidden state, or the mean of the real ones; padding on either side."""
    if attention_mask is None:
        attention_mask = jnp.ones(hidden.shape[:2], jnp.int32)
    if pooling == "mean":
        weights = attention_mask.astype(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
    real = attention_mask != 0
    at = real.argmax(1) if pooling == "first" else hidden.shape[1] - 1 - real[:, ::-1].argmax(1)
    return jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]


class Heads(nn.Module):
    """The scope heads/ in which each head makes its parameters."""

    heads: tuple[Classification, ...]

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"], attention_mask: Int[Array, "B T"] | None) -> dict[str, Array]:
        outputs = {}
        for head in self.heads:
            outputs |= head(hidden, attention_mask)
        return outputs
