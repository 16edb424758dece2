"""The paths that `attention` chooses from; q comes scaled, and a row that sees nothing gives zeros.

plain and blocked are one algorithm, flash attention (Dao et al., 2022; Dao, 2023), written in XLA over two tilings: a
few parts of the queries, each with all the keys in its reach, or square blocks, one at a time, for long sequences. As
the tiles of a query come in, m is the greatest logit so far, l the sum of exp(x - m), and o that of the values:

    x = q k^T,   m' = max(m, rowmax(x)),   P = exp(x - m'),   l' = exp(m - m') l + rowsum(P),   o' = exp(m - m') o + P v

In the end O = o / l and L = m + log(l), which are all that is kept: the backward pass computes the weights again,

    P = exp(x - L),   dv = P^T dO,   dP = dO v^T,   dx = P * (dP - rowsum(dO * O)),   dq = dx k,   dk = dx^T q

and it does so transposed, with x^T = k q^T, since XLA's CPU products are slow where the left side is transposed.

Dropout multiplies P where it meets v, and dP, by 1 / (1 - rate) or 0; each tile draws its own.

Letters: B batch, H heads, T queries, S keys, K head width; t queries and s keys of one tile.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxnlp.nn.masks import Mask

LOWEST = -1e30  # where m starts: a row of nothing but -inf then has exp(-inf - LOWEST) = 0, not exp(-inf + inf)
PARTS, PART = 4, 64  # plain: the most parts of the queries, and the least queries of a part


class Tile(NamedTuple):
    row: int | Int[Array, ""]  # first query
    key: int | Int[Array, ""]  # first key
    t: int  # queries
    s: int  # keys
    number: int | Int[Array, ""]  # among the tiles

    def rows(self, x: Array, axis: int = 2) -> Array:
        return lax.dynamic_slice_in_dim(x, self.row, self.t, axis)

    def keys(self, x: Array, axis: int = 2) -> Array:
        return lax.dynamic_slice_in_dim(x, self.key, self.s, axis)


def _each(step: Callable[[Any, Tile], Any], carry: Any, tiles: tuple[Tile, ...]) -> Any:
    """carry = step(carry, tile) for each tile: in a loop where they are many of one size, else unrolled."""
    if len(tiles) <= PARTS or len({(tile.t, tile.s) for tile in tiles}) > 1:
        return functools.reduce(step, tiles, carry)
    t, s = tiles[0].t, tiles[0].s
    starts = np.asarray([(tile.row, tile.key, tile.number) for tile in tiles], np.int32)
    return lax.scan(lambda carry, at: (step(carry, Tile(at[0], at[1], t, s, at[2])), None), carry, starts)[0]


def plain(q, k, v, mask: Mask, rate: float = 0.0, rng: PRNGKeyArray | None = None) -> Float[Array, "B H T K"]:
    T, S = q.shape[2], k.shape[2]
    t = max(PART, -(-T // PARTS)) if mask.banded else T
    cuts = [(row, min(row + t, T)) for row in range(0, T, t)]
    tiles = []
    for number, (start, stop) in enumerate(cuts):
        low, high = mask.reach(start, stop, S)
        tiles.append(Tile(start, low, stop - start, high - low, number))
    return _flash(q, k, v, mask, mask.query_segments(T), rng, tuple(tiles), rate)


def blocked(
    q, k, v, mask: Mask, rate: float = 0.0, rng: PRNGKeyArray | None = None, *, block: int
) -> Float[Array, "B H T K"]:
    B, T, S = q.shape[0], q.shape[2], k.shape[2]
    t, s = min(block, T), min(block, S)
    if S % s and mask.lengths is None:  # hides the keys that fill the last block
        mask = mask.replace(lengths=jnp.full(B, S))
    segments = mask.query_segments(T)
    if segments is not None:
        segments, mask = _fill(segments, t, 1), mask.replace(segment_ids=_fill(mask.segment_ids, s, 1))
    tiles = []
    for row in range(0, T, t):
        low, high = mask.reach(row, row + t, S)
        tiles += [Tile(row, key, t, s, len(tiles) + i) for i, key in enumerate(range(low - low % s, high, s))]
    return _flash(_fill(q, t), _fill(k, s), _fill(v, s), mask, segments, rng, tuple(tiles), rate)[:, :, :T]


def _fill(x: Array, block: int, axis: int = 2) -> Array:
    """x with zeros at the end of the axis, up to a whole number of blocks."""
    return jnp.pad(x, [(0, -n % block if i == axis else 0) for i, n in enumerate(x.shape)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _flash(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    mask: Mask,
    segments: Int[Array, "B T"] | None,  # of the queries
    rng: PRNGKeyArray | None,
    tiles: tuple[Tile, ...],
    rate: float,
) -> Float[Array, "B H T K"]:
    return _flash_forward(q, k, v, mask, segments, rng, tiles, rate)[0]


def _flash_forward(q, k, v, mask, segments, rng, tiles, rate):
    def step(carry, tile):
        out, highest, total = (tile.rows(x) for x in carry)
        x = logits(tile.rows(q), tile.keys(k), _visible(mask, segments, tile))
        peak = jnp.maximum(highest, x.max(-1, keepdims=True))
        decay, weights = jnp.exp(highest - peak), jnp.exp(x - peak)
        total = decay * total + weights.sum(-1, keepdims=True)
        kept = _dropout(weights, _keep(rng, rate, tile, x.shape), rate).astype(v.dtype)
        out = decay * out + _einsum("bhts,bhsk->bhtk", kept, tile.keys(v))
        return tuple(_put(x, new, tile.row) for x, new in zip(carry, (out, peak, total)))

    rows = (*q.shape[:3], 1)
    start = jnp.zeros(q.shape, jnp.float32), jnp.full(rows, LOWEST), jnp.zeros(rows)
    out, highest, total = _each(step, start, tiles)
    total = jnp.where(total == 0, 1.0, total)
    out = (out / total).astype(q.dtype)
    return out, (q, k, v, mask, segments, rng, out, highest + jnp.log(total))


def _flash_backward(tiles, rate, saved, dout):
    q, k, v, mask, segments, rng, out, logsum = saved
    mean = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)

    def step(carry, tile):
        q_t, dout_t, k_s, v_s = tile.rows(q), tile.rows(dout), tile.keys(k), tile.keys(v)
        visible, keep = _visible(mask, segments, tile), _keep(rng, rate, tile, (*q.shape[:2], tile.t, tile.s))
        visible, keep, logsum_t, mean_t = map(_transposed, (visible, keep, tile.rows(logsum), tile.rows(mean)))
        weights = jnp.exp(logits(k_s, q_t, visible) - logsum_t)
        dweights = _dropout(_einsum("bhsk,bhtk->bhst", v_s, dout_t), keep, rate)
        dx = (weights * (dweights - mean_t)).astype(q.dtype)
        dq = _einsum("bhst,bhsk->bhtk", dx, k_s)
        dk = _einsum("bhst,bhtk->bhsk", dx, q_t)
        dv = _einsum("bhst,bhtk->bhsk", _dropout(weights, keep, rate).astype(v.dtype), dout_t)
        sums = zip(carry, (dq, dk, dv), (tile.rows, tile.keys, tile.keys), (tile.row, tile.key, tile.key))
        return tuple(_put(total, cut(total) + new, at) for total, new, cut, at in sums)

    gradients = _each(step, tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)), tiles)
    return *(g.astype(x.dtype) for g, x in zip(gradients, (q, k, v))), None, None, None


_flash.defvjp(_flash_forward, _flash_backward)


def logits(
    q: Float[Array, "B H t K"], k: Float[Array, "B H s K"], visible: Bool[Array, "b 1 #t #s"] | None
) -> Float[Array, "B H t s"]:
    x = _einsum("bhtk,bhsk->bhts", q, k)
    return x if visible is None else x + jnp.where(visible, 0.0, -jnp.inf)


def _einsum(equation: str, *operands: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def _transposed(x: Array | None) -> Array | None:
    return None if x is None else x.swapaxes(2, 3)


def _put(x: Array, new: Array, start: int | Int[Array, ""]) -> Array:
    return lax.dynamic_update_slice_in_dim(x, new, start, axis=2)


def _visible(mask: Mask, segments: Int[Array, "B T"] | None, tile: Tile) -> Bool[Array, "b 1 #t s"] | None:
    if segments is not None:
        segments, mask = tile.rows(segments, 1), mask.replace(segment_ids=tile.keys(mask.segment_ids, 1))
    return mask.visible(tile.row + jnp.arange(tile.t), tile.key + jnp.arange(tile.s), segments, mask.segment_ids)


def _dropout(weights: Float[Array, "B H t s"], keep: Bool[Array, "B H t s"] | None, rate: float):
    return weights if keep is None else jnp.where(keep, weights * (1 / (1 - rate)), 0.0)


def _keep(rng: PRNGKeyArray | None, rate: float, tile: Tile, shape: tuple[int, ...]) -> Bool[Array, "B H t s"] | None:
    """True with probability 1 - rate, to 16 bits: each random word, which is dear on a CPU, serves two weights."""
    if not rate:
        return None
    *rows, s = shape
    words = jax.random.bits(jax.random.fold_in(rng, tile.number), (*rows, -(-s // 2)), jnp.uint32)
    draws = lax.bitcast_convert_type(words, jnp.uint16).reshape(*rows, -1)[..., :s]
    return draws >= round(rate * 2**16)
