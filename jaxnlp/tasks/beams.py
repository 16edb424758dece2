"""Branches of one text over a model's cache: its keys and values are there once, whatever goes on from them.

Letters: B texts, n branches of each, S slots of the cache, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Int

from jaxnlp import decoding
from jaxnlp.decoding import Beams, Shared
from jaxnlp.nn.cache import widened


def shared(cache: Any) -> Any:
    """Keys and values stay where they are written; a recurrent state each branch has of its own."""
    return {**cache, "layers": Shared(cache["layers"])} if "layers" in cache else cache


def own(cache: Any) -> Any:
    """The inverse of `shared`: the cache as the model takes it."""
    return {**cache, "layers": cache["layers"].tree} if "layers" in cache else cache


def search(
    apply: Callable[..., Mapping[str, Any]],
    cache: Any,
    first: Int[Array, "B"],
    *,
    slots: int,
    n_beams: int,
    **options: Any,
) -> Beams:
    """`decoding.beam_search` over apply(tokens [B n, 1], cache=…); `slots` of the cache are written."""

    def step(tokens, state):
        out = apply(tokens[:, None], cache=own(state))
        return out["logits"][:, 0], shared(out["cache"])

    def widen(state, n):
        return shared(widened(own(state), slots + n_beams * n))

    widen = widen if "layers" in cache else None
    return decoding.beam_search(step, shared(cache), first, n_beams=n_beams, widen=widen, **options)
