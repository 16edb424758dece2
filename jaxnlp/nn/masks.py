"""What each query may see of the keys, as a description.

    visible(t, s) = ((not causal or s <= t) and (no window or s > t - window) or s < prefix)
                    and seen(t, s) and s < lengths and segment(s) == segment(t) != 0

Kernels read the description and use what they can; only `to_array` spells it out. Letters: B batch, T queries, S keys.
"""

import functools
import operator

import flax.struct
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Mask:
    """Which keys a query attends to; the default sees everything. A row that sees nothing gives zeros."""

    causal: bool = flax.struct.field(pytree_node=False, default=False)  # key s is seen by query t when s <= t
    window: int | None = flax.struct.field(pytree_node=False, default=None)  # … and when s > t - window
    seen: Bool[Array, "B T S"] | None = None  # the keys that each query may see, spelled out: a tree of texts
    lengths: Int[Array, " B"] | None = None  # keys [0, lengths) are real: right padding, of cross attention too
    segment_ids: Int[Array, "B S"] | None = None  # a query sees its own segment, segment_ids[:, offset + t]; 0 pads
    prefix: Int[Array, " B"] | None = None  # keys [0, prefix) are seen by every query: a prefix language model
    # Where the first query stands among the keys: cached decoding. None is 0, known before running: a number would
    # become a traced array on its way through jit, scan or remat, and kernels could no longer count on it.
    offset: Int[Array, ""] | int | None = None

    def within(self, window: int | None) -> "Mask":
        """The same, but that no query sees more than so many of its last keys."""
        if window is None:
            return self
        if self.seen is None:
            return self.replace(window=window)
        # In a tree of texts the keys of one stand apart, and those that it may see are all before.
        last = jnp.cumsum(self.seen[:, :, ::-1], axis=2)[:, :, ::-1] <= window
        return self.replace(seen=self.seen & last)

    def to_array(self, T: int, S: int) -> Bool[Array, "b 1 #T S"] | None:
        """True = attend, for T queries and S keys; b or T is 1 where all agree, and None says that all is seen."""
        return self.visible(jnp.arange(T), jnp.arange(S), self.query_segments(T), self.segment_ids)

    def visible(
        self,
        queries: Int[Array, " t"],
        keys: Int[Array, " s"],
        query_segments: Int[Array, "B t"] | None,
        key_segments: Int[Array, "B s"] | None,
    ) -> Bool[Array, "b 1 #t s"] | None:
        """`to_array` for some of the queries and keys, given by numbers and segments; `seen` is of these alone."""
        places = (queries if self.offset is None else queries + self.offset)[:, None]
        near, seen = [], []
        if self.causal:
            near.append(keys[None] <= places)
        if self.window is not None:
            near.append(keys[None] > places - self.window)
        if near:
            seen.append(functools.reduce(operator.and_, near)[None, None])
        if near and self.prefix is not None:
            seen[0] |= _columns(keys[None] < self.prefix[:, None])
        if self.seen is not None:
            seen.append(self.seen[:, None])
        if self.lengths is not None:
            seen.append(_columns(keys[None] < self.lengths[:, None]))
        if self.segment_ids is not None:
            same = query_segments[:, :, None] == key_segments[:, None, :]
            seen.append(same[:, None] & _columns(key_segments != 0))
        return functools.reduce(operator.and_, seen) if seen else None

    def query_segments(self, T: int) -> Int[Array, "B T"] | None:
        if self.segment_ids is None:
            return None
        return lax.dynamic_slice_in_dim(self.segment_ids, 0 if self.offset is None else self.offset, T, axis=1)

    @property
    def banded(self) -> bool:
        """Whether it is known before running that some keys lie outside a query's reach."""
        return (self.causal or self.window is not None) and self.prefix is None and self.offset is None

    def reach(self, start: int, stop: int, S: int) -> tuple[int, int]:
        """The keys [low, high), at least one, beyond which queries [start, stop) surely see nothing."""
        low, high = 0, S
        if self.banded and self.window is not None:
            low = min(max(start - self.window + 1, 0), S - 1)
        if self.banded and self.causal:
            high = max(min(stop, S), low + 1)
        return low, high


def _columns(keys: Bool[Array, "B s"]) -> Bool[Array, "B 1 1 s"]:
    return keys[:, None, None, :]
