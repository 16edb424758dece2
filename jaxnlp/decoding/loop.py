"""A token a turn: what is chosen, and the loop.

Letters: B batch, P prompt, N new tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxnlp.decoding.processors import Context, Logits, Processor

Step = Callable[[Int[Array, "B"], Any], tuple[Logits, Any]]
Choose = Callable[[Logits, Key[Array, "B"]], Int[Array, "B"]]


def greedy(logits: Logits, keys: Key[Array, "B"]) -> Int[Array, "B"]:
    """The best token; the first among equals."""
    return jnp.argmax(logits, axis=1).astype(jnp.int32)


def sample(logits: Logits, keys: Key[Array, "B"]) -> Int[Array, "B"]:
    """A token drawn from softmax(logits).

    One uniform number a row is put through the inverse distribution function, first over blocks of the vocabulary,
    then within one: `jax.random.categorical` draws a Gumbel number for every word instead, and takes far longer.
    """
    B, V = logits.shape
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    size = int(V**0.5) + 1
    blocks = jnp.pad(weights, ((0, 0), (0, -V % size))).reshape(B, -1, size)
    masses = blocks.sum(2)
    mass = (1 - jax.vmap(jax.random.uniform)(keys)) * masses.sum(1)  # in (0, sum]: never a token of weight 0
    block, mass = _invert(masses, mass)
    within, _ = _invert(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], mass)
    return (block * size + within).astype(jnp.int32)


def _invert(weights: Float[Array, "B n"], mass: Float[Array, "B"]) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The first index at which the running sum of the weights reaches `mass`, and what of `mass` lies in it."""
    upto = jnp.cumsum(weights, axis=1)
    index = (upto < jnp.minimum(mass, upto[:, -1])[:, None]).sum(1)
    before = jnp.take_along_axis(jnp.pad(upto, ((0, 0), (1, 0))), index[:, None], axis=1)[:, 0]
    return index, mass - before


@flax.struct.dataclass
class Decoding:
    """How far a decoding has come: the carry of the loop."""

    state: Any  # what `step` carries
    token: Int[Array, "B"]  # the last one, not yet put through `step`
    finished: Bool[Array, "B"]  # rows that have met their end
    keys: Key[Array, "B"]  # one a row
    context: Context
    log_probs: Float[Array, "B N"] | None = None  # of the new tokens, before any processor; None: not asked for


def start(
    state: Any,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    keys: Key[Array, "B"],
    *,
    max_new_tokens: int,
    pad_id: int = 0,
    log_probs: bool = False,
) -> Decoding:
    """A decoding about to begin: `state` holds all of the prompt, padded on the left, but its last token."""
    context = Context(prompt, prompt_mask, jnp.full((len(prompt), max_new_tokens), pad_id, jnp.int32), jnp.int32(0))
    log_p = jnp.zeros(context.new.shape) if log_probs else None
    return Decoding(state, prompt[:, -1], jnp.zeros(len(prompt), bool), keys, context, log_p)


def decode(
    step: Step,
    decoding: Decoding,
    n_tokens: Int[Array, ""] | int,
    *,
    process: Processor | None = None,
    choose: Choose = greedy,
    end_id: Int[Array, ""] | int = -1,
    pad_id: Int[Array, ""] | int = 0,
) -> Decoding:
    """Decodes `n_tokens` more, fewer where all rows finish or the buffer is full. Pure; to be called inside a jit.

    `n_tokens` is traced, so that one compiled loop serves chunks of every size. A row that has given `end_id` goes on
    with `pad_id`. The i-th new token of a row is drawn with its key folded with i: a text depends neither on the
    chunks nor on the other rows.
    """
    n_stop = jnp.minimum(decoding.context.n_new + n_tokens, decoding.context.new.shape[1])

    def unfinished(d: Decoding):
        return (d.context.n_new < n_stop) & ~d.finished.all()

    def advance(d: Decoding) -> Decoding:
        logits, state = step(d.token, d.state)
        given = logits = logits.astype(jnp.float32)
        if process is not None:
            logits = process(logits, d.context)
        i = d.context.n_new
        token = choose(logits, jax.vmap(jax.random.fold_in, (0, None))(d.keys, i))
        token = jnp.where(d.finished, pad_id, token)
        context = d.context.replace(new=lax.dynamic_update_slice(d.context.new, token[:, None], (0, i)), n_new=i + 1)
        d = d.replace(state=state, token=token, finished=d.finished | (token == end_id), context=context)
        if d.log_probs is None:
            return d
        log_p = jnp.take_along_axis(jax.nn.log_softmax(given), token[:, None], axis=1, mode="clip")
        return d.replace(log_probs=lax.dynamic_update_slice(d.log_probs, log_p, (0, i)))

    return lax.while_loop(unfinished, advance, decoding)
