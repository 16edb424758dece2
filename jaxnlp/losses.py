"""Losses as (sum, weight): add them up over batches and devices, divide once.

With p = softmax(logits) over V words and Z = sum(exp(logits)), a token of label y and weight w adds

    w * (log Z - (1 - eps) * logits[y] - eps * mean(logits) + z_loss * log(Z)^2)

eps is label smoothing (Szegedy et al., 2016; torch.nn.CrossEntropyLoss), z_loss keeps log Z near zero (PaLM: Chowdhery
et al., 2022, section 5). Letters: B batch, T length, D width, V vocabulary, N = B * T tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

Sums = tuple[Float[Array, ""], Float[Array, ""]]

BLOCK_TOKENS = 1024  # tokens whose logits exist at a time


def cross_entropy(
    logits: Float[Array, "*N V"],
    labels: Int[Array, "*N"],
    weights: Float[Array, "*N"] | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Sums:
    """(sum over tokens, sum of weights), in float32. A label outside [0, V) is allowed where the weight is 0."""
    logits = logits.astype(jnp.float32)
    logz = jax.nn.logsumexp(logits, axis=-1)
    hit = labels[..., None] == jnp.arange(logits.shape[-1])
    losses = logz - (1 - label_smoothing) * jnp.where(hit, logits, 0.0).sum(-1)
    if label_smoothing:
        losses -= label_smoothing * logits.mean(-1)
    if z_loss:
        losses += z_loss * jnp.square(logz)
    return _total(losses, weights)


def _total(losses: Float[Array, "*N"], weights: Float[Array, "*N"] | None) -> Sums:
    if weights is None:
        return losses.sum(), jnp.asarray(losses.size, jnp.float32)
    weights = weights.astype(jnp.float32)
    return (losses * weights).sum(), weights.sum()


def blocked_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"] | None = None,
    *,
    bias: Float[Array, "V"] | None = None,
    vocab_size: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    block_tokens: int | None = None,
) -> Sums:
    """`cross_entropy` of the logits hidden @ table' + bias, of which only `block_tokens` rows exist at a time.

    Args:
        vocab_size: columns from there on only pad the table: they have probability 0 and no gradient.
    """
    logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias
    return cross_entropy(
        logits[..., :vocab_size], labels, weights, label_smoothing=label_smoothing, z_loss=z_loss
    )
