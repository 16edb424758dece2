"""Attention in one place: softmax(q k' / sqrt(K)) v (Vaswani et al., 2017, eq. 1), by the fastest path that is right.

Letters: B batch, H heads, T queries, S keys, K head width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxnlp.nn.masks import Mask

LOWEST = -1e30  # stands for the maximum of a row that sees nothing: exp(-inf - LOWEST) = 0, where -inf gave NaN


def attention(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    mask: Mask = Mask(),
    *,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    implementation: str | None = None,
) -> Float[Array, "B H T K"]:
    """What each query reads from the values, weighted by the softmax of its products with the keys.

    Args:
        scale: of the products; 1 / sqrt(K) by default.
        dropout_rate: share of the weights that are dropped, each on its own; the others grow by 1 / (1 - rate).
        implementation: a path to take instead of the one that `choose` gives.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    visible = mask.to_array(q.shape[2], k.shape[2])
    keep = None
    if dropout_rate:
        keep = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, q.shape[:3] + k.shape[2:3])
    return _plain(q * jnp.asarray(scale, q.dtype), k, v, visible, keep, dropout_rate)


def attention_weights(
    q: Float[Array, "B H T K"], k: Float[Array, "B H S K"], mask: Mask = Mask(), *, scale: float | None = None
) -> Float[Array, "B H T S"]:
    """The weights that `attention` gives to the keys, to look at; float32."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    weights, total = _softmax(q * jnp.asarray(scale, q.dtype), k, mask.to_array(q.shape[2], k.shape[2]))
    return weights / total


def _softmax(q, k, visible):
    """exp(q k' - max) and its row sums, apart: dividing after the product with v touches K numbers a row, not S."""
    logits = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32)
    if visible is not None:
        logits += jnp.where(visible, 0.0, -jnp.inf)
    weights = jnp.exp(logits - jnp.maximum(logits.max(-1, keepdims=True), LOWEST))
    total = weights.sum(-1, keepdims=True)
    return weights, jnp.where(total == 0, 1.0, total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _plain(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    visible: Bool[Array, "b 1 T S"] | None,
    keep: Bool[Array, "B H T S"] | None,
    rate: float,
) -> Float[Array, "B H T K"]:
    return _plain_forward(q, k, v, visible, keep, rate)[0]


def _plain_forward(q, k, v, visible, keep, rate):
    weights, total = _softmax(q, k, visible)
    dropped = weights if keep is None else weights * keep * (1 / (1 - rate))
    out = jnp.einsum("bhts,bhsk->bhtk", dropped.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    out = out.astype(q.dtype)
    return out, (q, k, v, weights, total, keep, out)


def _plain_backward(rate, saved, dout):
    q, k, v, weights, total, keep, out = saved
    mean = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    weights = weights / total
    dropped = weights if keep is None else weights * keep * (1 / (1 - rate))
    dv = jnp.einsum("bhts,bhtk->bhsk", dropped.astype(v.dtype), dout, preferred_element_type=jnp.float32)
    ddropped = jnp.einsum("bhtk,bhsk->bhts", dout, v, preferred_element_type=jnp.float32)
    dweights = ddropped if keep is None else ddropped * keep * (1 / (1 - rate))
    dlogits = (weights * (dweights - mean)).astype(q.dtype)
    dq = jnp.einsum("bhts,bhsk->bhtk", dlogits, k, preferred_element_type=jnp.float32)
    dk = jnp.einsum("bhts,bhtk->bhsk", dlogits, q, preferred_element_type=jnp.float32)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_plain.defvjp(_plain_forward, _plain_backward)
