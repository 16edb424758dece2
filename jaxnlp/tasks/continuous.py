"""Beam searches of many texts in batches that stay full (continuous batching, as Yu et al., 2022, have it of sampling).

Letters: B rows of a batch, n beams of a text.
"""

import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxnlp import decoding
from jaxnlp.decoding import Beams, Search
from jaxnlp.nn.cache import widened
from jaxnlp.tasks.beams import own, shared

STRIDE = 8  # tokens after which texts that go on change their batch


def room(n_new: int, max_new_tokens: int) -> int:
    """Tokens for which each beam has slots when n_new are to come: of few sizes, as each compiles a loop."""
    return min(max(2 * STRIDE, 1 << (n_new - 1).bit_length()), max_new_tokens)


def continuous_search(
    batches: Iterable[tuple[list[int], Search]],
    extend: Callable[[Search, int], tuple[Search, Beams, Bool[Array, " B"]]],
    *,
    rows: int,
    slots: int,
    n_beams: int,
    max_new_tokens: int,
) -> Iterator[tuple[int, Beams]]:
    """(its number, what is found) of each text of the batches: numbers and a search of `rows` rows about to begin.

    extend(search, n) goes on to n new tokens and gives the search, its texts, and which rows are unfinished. After
    every STRIDE tokens these go on in batches with others that are as far, so that a long text does not keep the rows
    of short ones busy. At each length less than a batch waits for more, until there are no more to begin.

    A search's state holds its "cache", of whose slots `slots` were written before, with `room` for the first STRIDE
    tokens of each beam.
    """
    waiting: dict[int, tuple[list[int], Search]] = {}  # at each length: filled up with copies, so all of one size

    def n_slots(n_new: int) -> int:
        return slots + n_beams * room(n_new, max_new_tokens)

    def gather(n_new: int, numbers: list[int], search: Search, places: Int[np.ndarray, " m"]):
        """A whole batch of these rows and those that wait, if there is one; what is left waits."""
        before, *others = waiting.pop(n_new, ([],))
        places = np.concatenate([np.arange(len(before)), sum(len(other.last) for other in others) + places])
        numbers, searches, whole = before + numbers, (*others, search), None
        if len(numbers) >= rows:
            whole = n_new, numbers[:rows], _regroup(searches, places[:rows], slots=n_slots(n_new + STRIDE))
            numbers, places = numbers[rows:], places[rows:]
        if numbers:
            waiting[n_new] = numbers, _regroup(searches, np.resize(places, rows), slots=n_slots(n_new))
        return whole

    def longer() -> tuple[int, list[int], Search]:
        """Those that have waited at the least length."""
        n_new = min(waiting)
        numbers, search = waiting.pop(n_new)
        size = rows // 4 if len(numbers) <= rows // 4 else rows  # few rows take nearly as long as many
        return n_new, numbers, _regroup((search,), np.arange(size), slots=n_slots(n_new + STRIDE))

    begun = ((0, numbers, search) for numbers, search in batches)
    while (going := next(begun, None)) or waiting:
        going = going or longer()
        while going:
            n_new, numbers, search = going
            n_new = min(n_new + STRIDE, max_new_tokens)
            search, texts, unfinished = extend(search, n_new)
            texts, unfinished = jax.device_get((texts, unfinished))
            for row, number in enumerate(numbers):
                if not unfinished[row]:
                    yield number, Beams(texts.tokens[row], texts.scores[row], texts.lengths[row])
            places = np.flatnonzero(unfinished[: len(numbers)])
            going = gather(n_new, [numbers[row] for row in places], search, places) if len(places) else None


@functools.partial(jax.jit, static_argnames="slots")
def _regroup(searches: tuple[Search, ...], rows: Int[Array, " B"], *, slots: int) -> Search:
    """`decoding.regroup`, with slots for the tokens to come."""
    search = decoding.regroup(searches, rows)
    cache = search.state["cache"]
    if "layers" not in cache:
        return search
    return search.replace(state={**search.state, "cache": shared(widened(own(cache), slots))})
