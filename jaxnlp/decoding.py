"""Decoding: one loop over a pure step function, and what may be done to the logits on the way.

    step(tokens [B], state) -> (logits [B, V], state)

The state is an RNN's or a key-value cache; the loop only carries it. Each turn of the loop is

    logits, state = step(last token, state)
    token = choose(process(logits, context), key)              greedy or sample

A processor is any function (logits [B, V], context) -> logits, and processors chain as optax chains gradients:

    process = chain(repetition_penalty(1.2), lambda logits, context: logits.at[:, 13].set(-jnp.inf), top_k(40))

Those made here are pytrees whose numbers are leaves: another temperature does not compile again. They give what
Hugging Face's LogitsProcessors of the same names give.

Letters: B batch, P prompt, N new tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial, all_leaves
from jaxtyping import Array, Bool, Float, Int, Key


@flax.struct.dataclass
class Context:
    """What a processor may look at beside the logits."""

    prompt: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]  # False on padding
    new: Int[Array, "B N"]  # the new tokens; padding from n_new on
    n_new: Int[Array, ""]  # so many are there already


Logits = Float[Array, "B V"]
Processor = Callable[[Logits, Context], Logits]
Step = Callable[[Int[Array, "B"], Any], tuple[Logits, Any]]
Choose = Callable[[Logits, Key[Array, "B"]], Int[Array, "B"]]


# ---------------------------------------------------------------------------------------------------- processors


def chain(*processors: Processor) -> Processor:
    """One processor that applies all, from left to right.

    A plain function becomes a static part of the pytree, so that a jitted caller compiles once for each function.
    """
    return Partial(_chain, *(Partial(p) if all_leaves([p]) else p for p in processors))


def _chain(*processors_logits_context):
    *processors, logits, context = processors_logits_context
    for process in processors:
        logits = process(logits, context)
    return logits


def temperature(t: float | int) -> Processor:
    """logits / t. Below 1 sharpens, above 1 flattens, and 0 leaves the best token alone: greedy."""
    if not 0 <= t < np.inf:
        raise ValueError(f"temperature={t}; allowed: 0 (greedy) and more")
    return Partial(_temperature, np.float32(t))


def _temperature(t, logits, context):
    def best():
        return jnp.where(jnp.arange(logits.shape[1])[None] == jnp.argmax(logits, axis=1, keepdims=True), 0.0, -jnp.inf)

    return lax.cond(t > 0, lambda: logits / t, best)


def top_k(k: int) -> Processor:
    """Keeps the k best tokens, and those that equal the k-th (Fan et al., 2018)."""
    if k < 1:
        raise ValueError(f"top_k={k}; allowed: 1 and more")
    return Partial(_top_k, np.int32(k))


def _top_k(k, logits, context):
    return _from_threshold(logits, lambda above: above.sum(1) < k)


def top_p(p: float | int) -> Processor:
    """Keeps the best tokens until their probabilities add up to p (nucleus sampling: Holtzman et al., 2020)."""
    if not 0 < p <= 1:
        raise ValueError(f"top_p={p}; allowed: 0 < top_p <= 1")
    return Partial(_top_p, np.float32(p))


def _top_p(p, logits, context):
    probabilities = jax.nn.softmax(logits)
    # 1 keeps all: the sum may reach it early by rounding.
    return _from_threshold(logits, lambda above: (jnp.where(above, probabilities, 0).sum(1) < p) | (p == 1))


def _from_threshold(logits: Logits, few: Callable[[Bool[Array, "B V"]], Bool[Array, "B"]]) -> Logits:
    """Keeps each token for which those above it are `few`; the others become -inf.

    Bisects the threshold on the bits of the floats, 32 passes without a sort, which takes 20 times as long on a CPU.
    """
    # A float's bits order as its value does, once those of the negative floats are turned round.
    bits = lax.bitcast_convert_type(logits, jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, rounded down, without overflow
        found = few(order > middle[:, None])
        return jnp.where(found, low, middle + 1), jnp.where(found, middle, high)

    everywhere = jnp.zeros(logits.shape[0], jnp.int32)
    limits = jnp.iinfo(jnp.int32)
    _, threshold = lax.fori_loop(0, 32, halve, (everywhere + limits.min, everywhere + limits.max))
    return jnp.where(order >= threshold[:, None], logits, -jnp.inf)


def repetition_penalty(penalty: float | int) -> Processor:
    """Lowers the logits of tokens that are there already: l / penalty, l * penalty if l < 0 (Keskar et al., 2019)."""
    if not 0 < penalty < np.inf:
        raise ValueError(f"repetition_penalty={penalty}; allowed: more than 0 (1: none)")
    return Partial(_repetition_penalty, np.float32(penalty))


def _repetition_penalty(penalty, logits, context):
    written = jnp.broadcast_to(jnp.arange(context.new.shape[1]) < context.n_new, context.new.shape)
    tokens = jnp.concatenate([context.prompt, context.new], axis=1)
    real = jnp.concatenate([context.prompt_mask, written], axis=1)
    score = jnp.take_along_axis(logits, tokens, axis=1, mode="clip")
    score = jnp.where(score < 0, score * penalty, score / penalty)
    rows = jnp.arange(logits.shape[0])[:, None]
    return logits.at[rows, jnp.where(real, tokens, logits.shape[1])].set(score, mode="drop")


# ------------------------------------------------------------------------------------------------------- choosing


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


# ------------------------------------------------------------------------------------------------------- the loop


@flax.struct.dataclass
class Decoding:
    """How far a decoding has come: the carry of the loop."""

    state: Any  # what `step` carries
    token: Int[Array, "B"]  # the last one, not yet put through `step`
    finished: Bool[Array, "B"]  # rows that have met their end
    keys: Key[Array, "B"]  # one a row
    context: Context


def start(
    state: Any,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    keys: Key[Array, "B"],
    *,
    max_new_tokens: int,
    pad_id: int = 0,
) -> Decoding:
    """A decoding about to begin: `state` holds all of the prompt, padded on the left, but its last token."""
    context = Context(prompt, prompt_mask, jnp.full((len(prompt), max_new_tokens), pad_id, jnp.int32), jnp.int32(0))
    return Decoding(state, prompt[:, -1], jnp.zeros(len(prompt), bool), keys, context)


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
        logits = logits.astype(jnp.float32)
        if process is not None:
            logits = process(logits, d.context)
        i = d.context.n_new
        token = choose(logits, jax.vmap(jax.random.fold_in, (0, None))(d.keys, i))
        token = jnp.where(d.finished, pad_id, token)
        context = d.context.replace(new=lax.dynamic_update_slice(d.context.new, token[:, None], (0, i)), n_new=i + 1)
        return d.replace(state=state, token=token, finished=d.finished | (token == end_id), context=context)

    return lax.while_loop(unfinished, advance, decoding)
