"""Branches of one text over a model's cache: its keys and values are there once, whatever goes on from them.

Letters: B texts, n branches of each, S slots of the cache, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxnlp import decoding
from jaxnlp.decoding import Beams, Search, Shared
from jaxnlp.nn.cache import widened

STRIDE = 8  # tokens after which texts that go on change their batch


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


def room(n_new: int, max_new_tokens: int) -> int:
    """New tokens for which a cache that is to hold n_new has slots: of few sizes, each of which compiles a loop."""
    return min(max(2 * STRIDE, 1 << (n_new - 1).bit_length()), max_new_tokens)


def in_company(
    batches: Iterable[tuple[list[int], Search]],
    go_on: Callable[[Search, int], tuple[Search, Beams, Bool[Array, " B"]]],
    *,
    rows: int,
    slots: int,
    n_beams: int,
    max_new_tokens: int,
) -> Iterator[tuple[int, Beams]]:
    """(its number, what is found) of each text of the batches: numbers and a search of `rows` rows about to begin.

    go_on(search, n_new) gives the search with so many tokens, its texts, and which rows are unfinished. After every
    STRIDE tokens these go on in batches with others that are as far, so that a long text does not keep the rows of
    short ones busy: at each length less than a batch waits for more. A search's state holds its "cache", with `slots`
    that were written before and `room` for the first STRIDE tokens of each beam.
    """
    waiting: dict[int, tuple[list[int], Search]] = {}

    def run(numbers: list[int], search: Search, n_new: int) -> Iterator[tuple[int, Beams]]:
        n_new = min(n_new + STRIDE, max_new_tokens)
        search, texts, unfinished = go_on(search, n_new)
        texts, unfinished = jax.device_get((texts, unfinished))
        for row, number in enumerate(numbers):
            if not unfinished[row]:
                yield number, Beams(texts.tokens[row], texts.scores[row], texts.lengths[row])
        if len(going := np.flatnonzero(unfinished[: len(numbers)])):
            yield from wait([numbers[row] for row in going], search, going, n_new)

    def wait(numbers: list[int], search: Search, places: np.ndarray, n_new: int) -> Iterator[tuple[int, Beams]]:
        before, other = waiting.pop(n_new, ([], search))
        numbers, places = before + numbers, np.concatenate([np.arange(len(before)), len(other.last) + places])
        take = functools.partial(_regroup, (other, search))
        while len(numbers) >= rows:
            yield from run(numbers[:rows], take(places[:rows], slots=n_slots(n_new + STRIDE)), n_new)
            numbers, places = numbers[rows:], places[rows:]
        if numbers:
            waiting[n_new] = numbers, take(np.resize(places, rows), slots=n_slots(n_new))

    def n_slots(n_new: int) -> int:
        return slots + n_beams * room(n_new, max_new_tokens)

    for numbers, search in batches:
        yield from run(numbers, search, 0)
    for n_new in range(STRIDE, max_new_tokens, STRIDE):
        if n_new in waiting:
            numbers, search = waiting.pop(n_new)
            size = rows // 4 if len(numbers) <= rows // 4 else rows  # a smaller batch for the few that are long
            yield from run(numbers, _regroup((search, search), np.arange(size), slots=n_slots(n_new + STRIDE)), n_new)


@functools.partial(jax.jit, static_argnames="slots")
def _regroup(searches: Sequence[Search], rows: Int[Array, "b"], *, slots: int) -> Search:
    """`decoding.regroup`, with slots for the tokens to come."""
    search = decoding.regroup(searches, rows)
    cache = search.state["cache"]
    if "layers" not in cache:
        return search
    return search.replace(state={**search.state, "cache": shared(widened(own(cache), slots))})
