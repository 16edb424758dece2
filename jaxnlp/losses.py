"""Losses as (sum, weight): add them up over batches and devices, divide once.

With logits x over V words and Z = sum(exp(x)), a token of label y and weight w adds

    w * (log Z - (1 - e) * x[y] - e * mean(x) + z_loss * log(Z)^2)

where e is label smoothing (Szegedy et al., 2016; as torch.nn.CrossEntropyLoss has it) and z_loss keeps log Z near zero
(PaLM: Chowdhery et al., 2022, section 5). The gradient

    dx = w * ((1 + 2 * z_loss * log Z) * softmax(x) - (1 - e) * onehot(y) - e / V)

needs nothing that the loss does not know, so `blocked_cross_entropy` goes on from the logits of a few tokens to the
gradients of the hidden states and of the table at once: three products in all, and never the logits of all tokens.

Letters: B batch, T length, D width, V vocabulary; N = B * t tokens of one block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxnlp.nn.sharding import constrain, cuts

Sums = tuple[Float[Array, ""], Float[Array, ""]]

BLOCK_LOGITS = 2**26  # logits of a block on each device, 256 MB
LANES = 128


class _Terms(NamedTuple):
    vocab_size: int
    label_smoothing: float
    z_loss: float


def cross_entropy(
    logits: Float[Array, "*N V"],
    labels: Int[Array, "*N"],
    weights: Float[Array, "*N"] | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Sums:
    """(sum over tokens, sum of weights), in float32. A label outside [0, V) counts as the nearest: give it weight 0."""
    terms = _Terms(logits.shape[-1], label_smoothing, z_loss)
    losses, _ = _losses(logits.astype(jnp.float32), _words(labels, terms), terms)
    weights = _float32(weights, labels)
    return (losses * weights).sum(), weights.sum()


def hits(logits: Float[Array, "*N V"], labels: Int[Array, "*N"], weights: Float[Array, "*N"]) -> dict[str, Sums]:
    """The cross entropy as "loss", and as "accuracy" how often the label is the likeliest."""
    loss, weight = cross_entropy(logits, labels, weights)
    return {"loss": (loss, weight), "accuracy": (jnp.sum(weights * (logits.argmax(-1) == labels)), weight)}


def blocked_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"] | None = None,
    *,
    bias: Float[Array, " V"] | None = None,
    vocab_size: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    block_tokens: int | None = None,
) -> Sums:
    """`cross_entropy` of the logits hidden @ table' + bias, which exist for `block_tokens` tokens at a time.

    Args:
        vocab_size: what lies beyond in the table pads it: it has probability 0 and gradient 0.
        block_tokens: over all devices, each of which goes on with tokens of its own.
    """
    (B, T, _), V = hidden.shape, table.shape[0]
    terms = _Terms(V if vocab_size is None else vocab_size, label_smoothing, z_loss)
    weights = _float32(weights, labels)
    block_tokens = block_tokens or BLOCK_LOGITS * cuts("tokens") * cuts("vocabulary") // V
    n_blocks = min(-(-B * T // block_tokens), B * T)
    total = _total(hidden, table, bias, _words(labels, terms), weights, terms, n_blocks)
    return total, weights.sum()


def _words(labels: Int[Array, "*N"], terms: _Terms) -> Int[Array, "*N"]:
    return labels.astype(jnp.int32).clip(0, terms.vocab_size - 1)


def _float32(weights: Float[Array, "*N"] | None, labels: Int[Array, "*N"]) -> Float[Array, "*N"]:
    return jnp.ones(labels.shape) if weights is None else weights.astype(jnp.float32)


def _losses(x: Float[Array, "*N V"], labels: Int[Array, "*N"], terms: _Terms):
    """Each token's loss, and its log Z."""
    highest = lax.stop_gradient(x.max(-1, keepdims=True))
    logz = (highest + jnp.log(jnp.exp(x - highest).sum(-1, keepdims=True)))[..., 0]
    losses = logz - (1 - terms.label_smoothing) * jnp.take_along_axis(x, labels[..., None], -1)[..., 0]
    if terms.label_smoothing:
        words = _columns(x) < terms.vocab_size
        losses -= terms.label_smoothing / terms.vocab_size * jnp.where(words, x, 0.0).sum(-1)
    if terms.z_loss:
        losses += terms.z_loss * jnp.square(logz)
    return losses, logz


def _columns(x: Float[Array, "*N V"]) -> Int[Array, "*N V"]:
    return lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def _logits(hidden: Float[Array, "N D"], table: Float[Array, "V D"], bias, terms: _Terms) -> Float[Array, "N V"]:
    x = _product("nd,vd->nv", hidden, table)
    if bias is not None:
        x += bias.astype(jnp.float32)[None]
    return x if terms.vocab_size == table.shape[0] else jnp.where(_columns(x) < terms.vocab_size, x, -jnp.inf)


def _product(equation: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _total(hidden, table, bias, labels, weights, terms: _Terms, n_blocks: int) -> Float[Array, ""]:
    words = _whole(table.astype(hidden.dtype))

    def step(total, block):
        h, y, w = block
        losses, _ = _losses(_logits(h, words, bias, terms), y, terms)
        return total + (losses * w).sum(), None

    return _scan(step, jnp.float32(0), (hidden, labels, weights), n_blocks)[0]


def _total_forward(hidden, table, bias, labels, weights, terms, n_blocks):
    words = _whole(table.astype(hidden.dtype))  # the products' type; a float32 table's gradient stays in float32

    def step(sums, block):
        h, y, w = block
        x = _logits(h, words, bias, terms)
        losses, logz = _losses(x, y, terms)
        slope = w * (1 + 2 * terms.z_loss * logz)
        even = terms.label_smoothing / terms.vocab_size
        target = jnp.where(_columns(x) == y[:, None], 1 - terms.label_smoothing + even, even)
        dx = slope[:, None] * jnp.exp(x - logz[:, None]) - w[:, None] * target
        if even:
            dx = jnp.where(_columns(x) < terms.vocab_size, dx, 0.0)
        dtable = constrain(_product("nv,nd->vd", dx.astype(h.dtype), h), "vocabulary", "width")
        of_block = dtable, None if bias is None else dx.sum(0)
        return jax.tree.map(jnp.add, sums, of_block), (
            losses,
            _product("nv,vd->nd", dx.astype(h.dtype), words).astype(h.dtype),
        )

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (table, bias))
    sums, (losses, dhidden) = _scan(step, zeros, (hidden, labels, weights), n_blocks)
    dtable, dbias = jax.tree.map(lambda total, x: total.astype(x.dtype), sums, (table, bias))
    return (losses * weights).sum(), (dhidden, dtable, dbias, losses)


def _total_backward(terms, n_blocks, saved, dtotal):
    dhidden, dtable, dbias, losses = jax.tree.map(lambda x: (x.astype(jnp.float32) * dtotal).astype(x.dtype), saved)
    return dhidden, dtable, dbias, None, losses


_total.defvjp(_total_forward, _total_backward)


def _whole(table: Float[Array, "V D"]) -> Float[Array, "V D"]:
    """On a mesh, rows of whole words: gathered once, not in each block."""
    return constrain(table, "vocabulary")


def _scan(step, carry, arrays: tuple[Array, ...], n_blocks: int):
    """lax.scan over blocks [tokens, …] that arrays [B, T, …] are cut into; zeros fill the last one up.

    Tokens are all alike, so each device of a mesh numbers those that it has, and takes them block by block.
    """
    B, T = arrays[0].shape[:2]
    b, t = cuts("batch"), cuts("queries")
    rows, tokens = ("batch", "queries"), "tokens"
    if T % t:  # few places of each row, as a masked language model has them: the rows are cut alone
        t, rows, tokens = 1, ("batch",), "batch"
    n = B * T // (b * t)  # tokens of a device
    size = -(-n // n_blocks)
    if n_blocks > 1 and size > LANES:  # whole tiles of a matrix unit
        size = -(-size // LANES) * LANES
    n_blocks = -(-n // size)

    def cut(x):
        x = constrain(x, *rows)
        x = x.reshape(b, B // b, t, T // t, *x.shape[2:]).swapaxes(1, 2).reshape(b * t, n, *x.shape[2:])
        x = jnp.pad(x, [(0, n_blocks * size - n if axis == 1 else 0) for axis in range(x.ndim)])
        x = jnp.moveaxis(x.reshape(b * t, n_blocks, size, *x.shape[2:]), 1, 0)
        x = x.reshape(n_blocks, b * t * size, *x.shape[3:])
        return constrain(x, None, tokens)

    def join(y):
        y = jnp.moveaxis(y.reshape(n_blocks, b * t, size, *y.shape[2:]), 0, 1)
        y = y.reshape(b * t, n_blocks * size, *y.shape[3:])[:, :n]
        return y.reshape(b, t, B // b, T // t, *y.shape[2:]).swapaxes(1, 2).reshape(B, T, *y.shape[2:])

    blocks = tuple(cut(x) for x in arrays)
    if n_blocks == 1:  # a loop would copy the table's gradient
        carry, outputs = step(carry, tuple(x[0] for x in blocks))
        outputs = jax.tree.map(lambda y: y[None], outputs)
    else:
        carry, outputs = lax.scan(step, carry, blocks)
    return carry, jax.tree.map(join, outputs)
