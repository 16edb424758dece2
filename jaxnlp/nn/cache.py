"""What a causal stack of blocks reads: places, mask, and in decoding the keys and values of the tokens before.

    {"layers": each layer's keys and values, "segment_ids" [B, S]: 0 marks padding, "index": slots that are written}

Every leaf but the index has the rows first. Where segments have n times as many rows as keys and values, each n side by
side are branches of one text: they write to slots of their own, and see those whose segment is not 0 in their row. So a
branch is copied by its row of segments alone. So they go on a token at a time; branches that are known whole are read
at once, side by side in a row.

Letters: B batch, T new tokens, S slots, L layers, H heads, K head width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxnlp.nn.masks import Mask

Cache = Mapping[str, Any]


def empty(batch: int, length: int, *, n_layers: int, n_heads: int, d_head: int, dtype: Any, scan: bool) -> Cache:
    """A cache of `length` slots: a tuple of layers' [B, H, S, K], or, where they are scanned, one [B, L, H, S, K]."""
    shape = (n_heads, length, d_head)
    layer = lambda *n: {name: jnp.zeros((batch, *n, *shape), dtype) for name in ("keys", "values")}  # noqa: E731
    return {
        "layers": layer(n_layers) if scan else tuple(layer() for _ in range(n_layers)),
        "segment_ids": jnp.zeros((batch, length), jnp.int32),
        "index": jnp.zeros((), jnp.int32),
    }


def reading(
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"] | None,
    position_ids: Int[Array, "#B T"] | None,
    segment_ids: Int[Array, "B T"] | None,
    cache: Cache | None,
    prefix_lengths: Int[Array, " B"] | None = None,
) -> tuple[Cache | None, Mask, Int[Array, "#B T"]]:
    """(the cache with T more tokens in its books, mask, positions).

    `attention_mask` is 1 on real tokens and 0 on padding (left or right); `segment_ids` keeps packed documents apart (0
    is padding); the first prefix_lengths[b] positions of a row, padding included, are seen by all others. Positions are
    0 … T - 1 where not given; with a cache they count real tokens. Under jit nobody counts the slots: a token too many
    overwrites the last one.

    With a cache, `segment_ids` are those of a tree of texts: a token sees all that the cache holds, segment 1, which
    all branches go on from, and its own, up to itself. Positions count what it sees. The new cache goes on from segment
    1: the branches are read this once. ValueError for anything else of the arguments beside them.
    """
    if cache is None:
        if segment_ids is None:
            segment_ids = attention_mask
        elif attention_mask is not None:
            segment_ids = segment_ids * attention_mask
        position_ids = jnp.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
        return None, Mask(causal=True, segment_ids=segment_ids, prefix=prefix_lengths), position_ids
    if position_ids is not None:
        raise ValueError("position_ids came with a cache; allowed: attention_mask, or segment_ids, which give them")
    slots, index = cache["segment_ids"].shape[1], cache["index"]
    n_branches = len(input_ids) // len(jax.tree.leaves(cache["layers"])[0])
    T = input_ids.shape[1]
    if n_branches > 1 and T > 1:
        raise ValueError(f"{T} tokens for each of {n_branches} branches; allowed: one, or segment_ids in a row of all")
    more = n_branches * T
    if more + (0 if isinstance(index, jax.core.Tracer) else int(index)) > slots:  # else overwritten
        raise ValueError(f"{more} tokens more for a cache with {slots} slots, of which {index} are written")
    if segment_ids is not None:
        if not (attention_mask is None and prefix_lengths is None):
            raise ValueError("attention_mask or prefix_lengths beside segment_ids and a cache; allowed: segment 0 pads")
        new = jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(cache["segment_ids"]), segment_ids, index, axis=1)
        own = (new[:, None] == 1) | ((new[:, None] == segment_ids[:, :, None]) & (new[:, None] != 0))
        past = jnp.arange(slots)[None, None] <= index + jnp.arange(T)[None, :, None]
        seen = (cache["segment_ids"][:, None] != 0) | (own & past)
        cache = {**cache, "segment_ids": cache["segment_ids"] + (new == 1), "index": index + T}
        return cache, Mask(seen=seen, offset=index), jnp.maximum(seen.sum(2) - 1, 0)
    new = jnp.ones_like(input_ids) if attention_mask is None else attention_mask.astype(jnp.int32)
    before = cache["segment_ids"].sum(1, keepdims=True)
    position_ids = jnp.maximum(before + jnp.cumsum(new, 1) - 1, 0)
    if n_branches > 1:  # each writes to the slot of its number
        own = jnp.arange(len(input_ids))[:, None] % n_branches == jnp.arange(n_branches)[None]
        new *= own.astype(jnp.int32)
    segment_ids = jax.lax.dynamic_update_slice_in_dim(cache["segment_ids"], new, index, axis=1)
    cache = {**cache, "segment_ids": segment_ids, "index": index + new.shape[1]}
    if n_branches > 1:
        return cache, Mask(seen=(segment_ids != 0).reshape(-1, n_branches, slots), offset=index), position_ids
    return cache, Mask(causal=True, segment_ids=segment_ids, offset=index, prefix=prefix_lengths), position_ids


def widened(cache: Cache, slots: int) -> Cache:
    """The cache with as many slots, empty ones after its own."""

    def more(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, slots - x.shape[axis] if i == axis % x.ndim else 0) for i in range(x.ndim)])

    layers = jax.tree.map(lambda x: more(x, -2), cache["layers"])
    return {**cache, "layers": layers, "segment_ids": more(cache["segment_ids"], 1)}
