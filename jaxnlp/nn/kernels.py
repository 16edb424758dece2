"""The two paths of `attention` that are written here, in XLA; q comes scaled, and a row that sees nothing gives zeros.

plain takes the queries in a few parts, each with all keys in its reach, and keeps the weights P for the backward pass:

    x = q k^T,   P = softmax(x),   O = P v,   dv = P^T dO,   dP = dO v^T,   dx = P * (dP - rowsum(P * dP))

blocked is flash attention (Dao et al., 2022; Dao, 2023): it takes square tiles of queries and keys one at a time and
keeps none of their weights. As the tiles of a query come in, m is the greatest logit so far, z the sum of exp(x - m),
and o that of the values:

    m' = max(m, rowmax(x)),   P = exp(x - m'),   z' = exp(m - m') z + rowsum(P),   o' = exp(m - m') o + P v

In the end O = o / z and L = m + log(z), from which the backward pass computes the weights again.

    P^T = exp(k q^T - L),   dv = P^T dO,   dP^T = v dO^T,   dx^T = P^T * (dP^T - rowsum(dO * O))

Both: dq = dx k, dk = dx^T q. Dropout multiplies P, where it meets v, and dP by 1 / (1 - rate) or 0. For dk and dv the
left side is transposed in memory (plain, with `transpose`) or computed so (blocked): on a CPU XLA's products are slow
where they have to do it.

Letters: B batch, H heads, T queries, S keys, K head width; t queries and s keys of one tile.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxnlp.nn.masks import Mask

LOWEST = -1e30  # the least m: a row of nothing but -inf then has exp(-inf - LOWEST) = 0, not exp(-inf + inf)
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


def plain(
    q, k, v, mask: Mask, rate: float = 0.0, rng: PRNGKeyArray | None = None, *, transpose: bool
) -> Float[Array, "B H T K"]:
    T, S = q.shape[2], k.shape[2]
    t = max(PART, -(-T // PARTS)) if mask.banded else T
    tiles = []
    for number, row in enumerate(range(0, T, t)):
        stop = min(row + t, T)
        low, high = mask.reach(row, stop, S)
        tiles.append(Tile(row, low, stop - row, high - low, number))
    return _plain(q, k, v, mask, rng, tuple(tiles), rate, transpose)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _plain(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    mask: Mask,
    rng: PRNGKeyArray | None,
    tiles: tuple[Tile, ...],
    rate: float,
    transpose: bool,
) -> Float[Array, "B H T K"]:
    return _plain_forward(q, k, v, mask, rng, tiles, rate, transpose)[0]


def _plain_forward(q, k, v, mask, rng, tiles, rate, transpose):
    segments, outs, weights, keeps = mask.query_segments(q.shape[2]), [], [], []
    for tile in tiles:
        P = softmax(logits(tile.rows(q), tile.keys(k), _visible(mask, segments, tile)))
        keep = _keep(rng, rate, tile, P.shape)
        outs.append(_product("bhts,bhsk->bhtk", _dropout(P, keep, rate).astype(v.dtype), tile.keys(v)).astype(q.dtype))
        weights.append(P)
        keeps.append(keep)
    return jnp.concatenate(outs, axis=2), (q, k, v, weights, keeps)


def _plain_backward(tiles, rate, transpose, saved, dout):
    q, k, v, weights, keeps = saved
    gradients = _zeros(q, k, v)
    for tile, P, keep in zip(tiles, weights, keeps):
        dout_t = tile.rows(dout)
        dP = _dropout(_product("bhtk,bhsk->bhts", dout_t, tile.keys(v)), keep, rate)
        dx = (P * (dP - (P * dP).sum(-1, keepdims=True))).astype(q.dtype)
        lefts = _transposed(dx), _transposed(_dropout(P, keep, rate).astype(v.dtype))
        if transpose:
            lefts = lax.optimization_barrier(lefts)
        dk, dv = (_product("bhst,bhtk->bhsk", left, x) for left, x in zip(lefts, (tile.rows(q), dout_t)))
        dq = _product("bhts,bhsk->bhtk", dx, tile.keys(k))
        gradients = _add(gradients, tile, dq, dk, dv)
    return *(g.astype(x.dtype) for g, x in zip(gradients, (q, k, v))), None, None


_plain.defvjp(_plain_forward, _plain_backward)


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
    if mask.seen is not None:
        mask = mask.replace(seen=_fill(_fill(mask.seen, t, 1), s, 2))
    starts = []
    for row in range(0, T, t):
        low, high = mask.reach(row, row + t, S)
        starts += [(row, key) for key in range(low - low % s, high, s)]
    return _blocked(_fill(q, t), _fill(k, s), _fill(v, s), mask, segments, rng, (t, s), tuple(starts), rate)[:, :, :T]


def _fill(x: Array, block: int, axis: int = 2) -> Array:
    """x with zeros at the end of the axis, up to a whole number of blocks."""
    return jnp.pad(x, [(0, -n % block if i == axis else 0) for i, n in enumerate(x.shape)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _blocked(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    mask: Mask,
    segments: Int[Array, "B T"] | None,  # of the queries
    rng: PRNGKeyArray | None,
    block: tuple[int, int],
    starts: tuple[tuple[int, int], ...],  # first query and first key of each tile
    rate: float,
) -> Float[Array, "B H T K"]:
    return _blocked_forward(q, k, v, mask, segments, rng, block, starts, rate)[0]


def _blocked_forward(q, k, v, mask, segments, rng, block, starts, rate):
    def step(state, tile):
        o, m, z = (tile.rows(x) for x in state)
        x = logits(tile.rows(q), tile.keys(k), _visible(mask, segments, tile))
        peak = jnp.maximum(m, x.max(-1, keepdims=True))
        decay, P = jnp.exp(m - peak), jnp.exp(x - peak)
        kept = _dropout(P, _keep(rng, rate, tile, P.shape), rate).astype(v.dtype)
        z = decay * z + P.sum(-1, keepdims=True)
        o = decay * o + _product("bhts,bhsk->bhtk", kept, tile.keys(v))
        return tuple(lax.dynamic_update_slice_in_dim(x, new, tile.row, axis=2) for x, new in zip(state, (o, peak, z)))

    rows = (*q.shape[:3], 1)
    start = jnp.zeros(q.shape, jnp.float32), jnp.full(rows, LOWEST), jnp.zeros(rows)
    o, m, z = _scan(step, start, block, starts)
    z = jnp.where(z == 0, 1.0, z)
    out = (o / z).astype(q.dtype)
    return out, (q, k, v, mask, segments, rng, out, m + jnp.log(z))


def _blocked_backward(block, starts, rate, saved, dout):
    q, k, v, mask, segments, rng, out, L = saved
    mean = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)

    def step(gradients, tile):
        q_t, dout_t, k_s, v_s = tile.rows(q), tile.rows(dout), tile.keys(k), tile.keys(v)
        visible, keep = _visible(mask, segments, tile), _keep(rng, rate, tile, (*q.shape[:2], *block))
        visible, keep, L_t, mean_t = map(_transposed, (visible, keep, tile.rows(L), tile.rows(mean)))
        P = jnp.exp(logits(k_s, q_t, visible) - L_t)
        dP = _dropout(_product("bhsk,bhtk->bhst", v_s, dout_t), keep, rate)
        dx = (P * (dP - mean_t)).astype(q.dtype)
        dq, dk = _product("bhst,bhsk->bhtk", dx, k_s), _product("bhst,bhtk->bhsk", dx, q_t)
        dv = _product("bhst,bhtk->bhsk", _dropout(P, keep, rate).astype(v.dtype), dout_t)
        return _add(gradients, tile, dq, dk, dv)

    gradients = _scan(step, _zeros(q, k, v), block, starts)
    return *(g.astype(x.dtype) for g, x in zip(gradients, (q, k, v))), None, None, None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _scan(step, state, block: tuple[int, int], starts: tuple[tuple[int, int], ...]):
    """state = step(state, tile) for each tile."""
    numbered = np.asarray([(*start, number) for number, start in enumerate(starts)], np.int32)
    return lax.scan(lambda state, at: (step(state, Tile(at[0], at[1], *block, at[2])), None), state, numbered)[0]


def logits(
    q: Float[Array, "B H t K"], k: Float[Array, "B H s K"], visible: Bool[Array, "b 1 #t #s"] | None
) -> Float[Array, "B H t s"]:
    x = _product("bhtk,bhsk->bhts", q, k)
    return x if visible is None else x + jnp.where(visible, 0.0, -jnp.inf)


def softmax(x: Float[Array, "B H t s"]) -> Float[Array, "B H t s"]:
    """jax.nn.softmax, but zeros for a row of nothing but -inf."""
    weights = jnp.exp(x - jnp.maximum(x.max(-1, keepdims=True), LOWEST))
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


def _product(equation: str, *operands: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def _transposed(x: Array | None) -> Array | None:
    return None if x is None else x.swapaxes(2, 3)


def _zeros(q, k, v) -> tuple[Float[Array, "..."], ...]:
    return tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))


def _add(gradients, tile: Tile, dq, dk, dv) -> tuple[Float[Array, "..."], ...]:
    """The gradients of q, k and v with those of one tile."""
    added = zip(gradients, (dq, dk, dv), (tile.rows, tile.keys, tile.keys), (tile.row, tile.key, tile.key))
    return tuple(lax.dynamic_update_slice_in_dim(x, cut(x) + new, start, axis=2) for x, new, cut, start in added)


def _visible(mask: Mask, segments: Int[Array, "B T"] | None, tile: Tile) -> Bool[Array, "b 1 #t s"] | None:
    if segments is not None:
        segments, mask = tile.rows(segments, 1), mask.replace(segment_ids=tile.keys(mask.segment_ids, 1))
    if mask.seen is not None:
        mask = mask.replace(seen=tile.keys(tile.rows(mask.seen, 1), 2))
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
