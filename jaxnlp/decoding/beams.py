"""Beam search: as a whole, or in pieces, between which the rows of several searches can be put together anew.

Letters: B batch, P prompt, N new tokens, V vocabulary, n beams of a text, or the best of them; R = B n rows, those of a
text side by side; m texts or b batch rows that are picked out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxnlp.decoding.loop import Step
from jaxnlp.decoding.processors import Context, Processor
from jaxnlp.nn.candidates import candidates

ROOM = 16  # new tokens of a search's first loop, where its state can be widened


@flax.struct.dataclass
class Beams:
    """Texts, the best first. Where a row has fewer, what is left has score -inf and length 0."""

    tokens: Int[Array, "B n N"]  # padding after the end
    scores: Float[Array, "B n"]  # sum of log p(token), over the length penalty
    lengths: Int[Array, "B n"]  # the end token counts


@flax.struct.dataclass
class Search:
    """How far a search has come: the carry of its loop."""

    state: Any  # what `step` carries: R rows, or B of what is Shared
    last: Int[Array, "B n"]  # the last tokens, not yet put through `step`
    n_new: Int[Array, ""]  # the length of the live beams
    live: Beams  # scores without length penalty
    ended: Beams  # as many as are asked for
    prompt: tuple[Int[Array, "R P"], Bool[Array, "R P"]]  # what a processor sees of it


@flax.struct.dataclass
class Shared:
    """What the beams of a text have in common: a row for each text, which no turn of a search reorders."""

    tree: Any


def repeat(tree: Any, n: int) -> Any:
    """Each row n times, side by side; scalars and what is shared stay."""
    return _map(lambda x: jnp.repeat(x, n, axis=0), tree)


def _map(function: Callable[[Array], Array], tree: Any) -> Any:
    def own(x):
        return x if isinstance(x, Shared) or not jnp.ndim(x) else function(x)

    return jax.tree.map(own, tree, is_leaf=lambda x: isinstance(x, Shared))


def start_search(
    state: Any,
    token: Int[Array, "B"],
    *,
    n_beams: int,
    max_new_tokens: int,
    pad_id: Int[Array, ""] | int = 0,
    n_best: int = 1,
    prompt: tuple[Int[Array, "B P"], Bool[Array, "B P"]] | None = None,
) -> Search:
    """A search about to begin, for the `n_best` texts after `token`.

    `state` has the B rows first in every leaf, but for scalars; each row becomes n_beams rows, which follow their
    beams from turn to turn, but for what is `Shared`. A processor sees `prompt`, tokens and mask, or `token` alone
    where there is none.
    """
    if n_beams < 1:
        raise ValueError(f"n_beams={n_beams}; allowed: 1 and more")
    if not 1 <= n_best <= n_beams:
        raise ValueError(f"n_best={n_best}; allowed: 1 to n_beams={n_beams}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; allowed: 1 and more")
    B = len(token)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.ndim(leaf) and len(leaf) != B:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"state{name} has shape {jnp.shape(leaf)}; allowed: {B} rows first, or a scalar")

    def nothing(n: int) -> Beams:
        tokens = jnp.full((B, n, max_new_tokens), pad_id, jnp.int32)
        return Beams(tokens, jnp.full((B, n), -jnp.inf), jnp.zeros((B, n), jnp.int32))

    live = nothing(n_beams)
    live = live.replace(scores=live.scores.at[:, 0].set(0.0))  # the others are the same text
    prompt = (token[:, None], jnp.ones((B, 1), bool)) if prompt is None else prompt
    last = repeat(token, n_beams).reshape(B, n_beams).astype(jnp.int32)
    return Search(repeat(state, n_beams), last, jnp.int32(0), live, nothing(n_best), repeat(prompt, n_beams))


def extend_search(
    step: Step,
    search: Search,
    n_stop: Int[Array, ""] | int,
    *,
    end_id: Int[Array, ""] | int,
    length_penalty: Float[Array, ""] | float = 0.0,
    process: Processor | None = None,
) -> Search:
    """Goes on to beams of `n_stop` tokens, which are traced, or until no row is unfinished; to be called inside a jit.

    A text ends where `end_id` is among the n_beams best candidates of its row; those are taken from 2 n_beams, so
    that n_beams go on whatever ends. Logits that are NaN or +inf count as -inf: such a token is never taken.
    """
    B, n_beams = search.last.shape
    first = jnp.arange(B)[:, None] * n_beams

    def advance(s: Search) -> Search:
        logits, state = step(s.last.reshape(-1), s.state)
        if n_beams > logits.shape[1]:
            raise ValueError(f"n_beams={n_beams}; allowed: at most the {logits.shape[1]} words of the vocabulary")
        logits = logits.astype(jnp.float32)
        if process is not None:
            logits = process(logits, Context(*s.prompt, s.live.tokens.reshape(B * n_beams, -1), s.n_new))
        scores, parents, tokens = candidates(s.live.scores, logits, 2 * n_beams)

        texts = _take(s.live, parents)
        texts = Beams(texts.tokens.at[:, :, s.n_new].set(tokens), scores, texts.lengths + 1)
        ends = tokens == end_id
        among = jnp.arange(2 * n_beams)[None] < n_beams
        final = scores / _penalty(s.n_new + 1, length_penalty)
        ended = texts.replace(scores=jnp.where(ends & among, final, -jnp.inf))
        live, order = _best(texts.replace(scores=jnp.where(ends, -jnp.inf, scores)), n_beams)
        rows = (first + jnp.take_along_axis(parents, order, axis=1)).reshape(-1)
        return s.replace(
            state=_map(lambda x: x.at[rows].get(mode="promise_in_bounds"), state),
            last=jnp.take_along_axis(tokens, order, axis=1),
            n_new=s.n_new + 1,
            live=live,
            ended=_join(s.ended, ended),
        )

    return lax.while_loop(lambda s: (s.n_new < n_stop) & unfinished_rows(s, length_penalty).any(), advance, search)


def unfinished_rows(search: Search, length_penalty: Float[Array, ""] | float = 0.0) -> Bool[Array, "B"]:
    """The rows in which a live beam can still come among the best, at whatever length: nothing is lost by a stop."""
    most = search.live.tokens.shape[2]
    # A sum only falls, and the penalty has its maximum at one of the ends, for alpha above 0 and below.
    penalty = jnp.maximum(_penalty(search.n_new, length_penalty), _penalty(jnp.int32(most), length_penalty))
    return (search.n_new < most) & (search.live.scores.max(1) / penalty > search.ended.scores[:, -1])


def best_beams(search: Search, length_penalty: Float[Array, ""] | float = 0.0) -> Beams:
    """The texts found; where they are fewer than asked for, or worse, live beams as they stand."""
    live = search.live
    return _join(search.ended, live.replace(scores=live.scores / _penalty(search.n_new, length_penalty)))


def regroup(searches: Sequence[Search], rows: Int[Array, "b"]) -> Search:
    """One search of `rows` of the others, which are as far and as wide and are counted one after the other."""
    n_beams = searches[0].last.shape[1]
    beams = (rows[:, None] * n_beams + jnp.arange(n_beams)[None]).reshape(-1)

    def pick(rows):
        return lambda *xs: jnp.concatenate(xs).at[rows].get(mode="promise_in_bounds") if jnp.ndim(xs[0]) else xs[0]

    def beam(*xs):
        return jax.tree.map(pick(rows if isinstance(xs[0], Shared) else beams), *xs)

    of_beam = jax.tree.map(beam, *((s.state, s.prompt) for s in searches), is_leaf=lambda x: isinstance(x, Shared))
    of_row = jax.tree.map(pick(rows), *((s.last, s.live, s.ended) for s in searches))
    (state, prompt), (last, live, ended) = of_beam, of_row
    return Search(state, last, searches[0].n_new, live, ended, prompt)


def beam_search(
    step: Step,
    state: Any,
    token: Int[Array, "B"],
    *,
    n_beams: int,
    max_new_tokens: int,
    end_id: Int[Array, ""] | int,
    pad_id: Int[Array, ""] | int = 0,
    length_penalty: Float[Array, ""] | float = 0.0,
    n_best: int = 1,
    process: Processor | None = None,
    prompt: tuple[Int[Array, "B P"], Bool[Array, "B P"]] | None = None,
    widen: Callable[[Any, int], Any] | None = None,
) -> Beams:
    """The `n_best` texts after `token` that a search with `n_beams` beams finds: all of the above, inside a jit.

    At max_new_tokens the live beams count as texts too. `length_penalty` is alpha, traced. Where step's work grows
    with the state's slots, `widen(state, n)` gives the state slots for n new tokens in all. It is called for ROOM at
    first, then for twice as many when they are full: each size is a loop of its own.
    """

    def go_on(s: Search, room: int) -> Beams:
        if widen is not None:
            s = s.replace(state=widen(s.state, room))
        s = extend_search(step, s, room, end_id=end_id, length_penalty=length_penalty, process=process)
        if room == max_new_tokens:
            return best_beams(s, length_penalty)
        more = functools.partial(go_on, room=min(2 * room, max_new_tokens))
        return lax.cond(unfinished_rows(s, length_penalty).any(), more, lambda s: best_beams(s, length_penalty), s)

    sizes = {"n_beams": n_beams, "max_new_tokens": max_new_tokens, "n_best": n_best}
    search = start_search(state, token, pad_id=pad_id, prompt=prompt, **sizes)
    return go_on(search, max_new_tokens if widen is None else min(ROOM, max_new_tokens))


def _penalty(length: Int[Array, ""], alpha: Float[Array, ""] | float) -> Float[Array, ""]:
    return ((5 + length).astype(jnp.float32) / 6) ** jnp.asarray(alpha, jnp.float32)


def _take(beams: Beams, index: Int[Array, "B m"]) -> Beams:
    return jax.tree.map(lambda x: x[jnp.arange(len(x))[:, None], index], beams)


def _best(beams: Beams, n: int) -> tuple[Beams, Int[Array, "B n"]]:
    _, index = lax.top_k(beams.scores, n)
    return _take(beams, index), index


def _join(ended: Beams, more: Beams) -> Beams:
    """As many as `ended` has, of both; the first among equals."""
    return _best(jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), ended, more), ended.scores.shape[1])[0]
