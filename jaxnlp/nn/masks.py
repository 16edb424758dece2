"""What each query may see of the keys, as a description.

    visible(t, s) = ((not causal or s <= t) and (no window or s > t - window) or s < prefix)
                    and s < lengths and segment(s) == segment(t) != 0

Kernels read the description and use what they can; only `to_array` spells it out. Letters: B batch, T queries, S keys.
"""

import flax.struct
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Mask:
    """Which keys a query attends to; the default sees everything. A row that sees nothing gives zeros."""

    causal: bool = flax.struct.field(pytree_node=False, default=False)  # key s is seen by query t when s <= t
    window: int | None = flax.struct.field(pytree_node=False, default=None)  # … and when s > t - window
    lengths: Int[Array, "B"] | None = None  # keys [0, lengths) are real: right padding, of cross attention too
    segment_ids: Int[Array, "B S"] | None = None  # a query sees its own segment, segment_ids[:, offset + t]; 0 pads
    prefix: Int[Array, "B"] | None = None  # keys [0, prefix) are seen by every query: a prefix language model
    offset: Int[Array, ""] | int = 0  # place of the first query among the keys: cached decoding

    def visible(
        self,
        queries: Int[Array, "t"],
        keys: Int[Array, "s"],
        query_segments: Int[Array, "B t"] | None = None,
        key_segments: Int[Array, "B s"] | None = None,
    ) -> Bool[Array, "b 1 t s"] | None:
        """True where the query at place `queries` sees the key at place `keys`; None where all is seen."""
        queries, seen = queries[:, None], []
        if self.causal:
            seen.append(keys <= queries)
        if self.window is not None:
            seen.append(keys > queries - self.window)
        seen = [_all(seen)[None, None]] if seen else []
        if self.prefix is not None and seen:
            seen = [seen[0] | (keys < self.prefix[:, None])[:, None, None]]
        if self.lengths is not None:
            seen.append((keys < self.lengths[:, None])[:, None, None])
        if self.segment_ids is not None:
            same = (query_segments[:, :, None] == key_segments[:, None]) & (key_segments != 0)[:, None]
            seen.append(same[:, None])
        return _all(seen) if seen else None

    def query_segments(self, T: int) -> Int[Array, "B T"] | None:
        """The segments of the T queries, which stand at `offset` among the keys."""
        return None if self.segment_ids is None else lax.dynamic_slice_in_dim(self.segment_ids, self.offset, T, axis=1)

    def to_array(self, T: int, S: int) -> Bool[Array, "b 1 T S"] | None:
        """True = attend, for T queries and S keys; b is 1 where no row of the batch differs."""
        return self.visible(self.offset + jnp.arange(T), jnp.arange(S), self.query_segments(T), self.segment_ids)


def _all(conditions: list[Bool[Array, "..."]]) -> Bool[Array, "..."]:
    seen, *others = conditions
    for other in others:
        seen &= other
    return seen
