"""Decoding: loops over a pure step function, and what may be done to the logits on the way.

    step(tokens [B], state) -> (logits [B, V], state)

The state is an RNN's or a key-value cache; the loops only carry it. Each turn of `decode` is

    logits, state = step(last token, state)
    token = choose(process(logits, context), key)              greedy or sample

and each turn of `beam_search`, whose rows are the n beams of each text, is

    scores = score + log softmax(process(logits, context))     the beam's own, and each token's after it
    beams, ended texts = the best of scores [B, n V]

with scores / lp(length) to compare the ended, lp(l) = ((5 + l) / 6)^alpha (Wu et al., 2016, eq. 14).

A processor is any function (logits [B, V], context) -> logits, and processors chain as optax chains gradients:

    process = chain(repetition_penalty(1.2), lambda logits, context: logits.at[:, 13].set(-jnp.inf), top_k(40))

Those made here are pytrees whose numbers are leaves: another temperature does not compile again. They give what
Hugging Face's LogitsProcessors of the same names give.

Letters: B batch, P prompt, N new tokens, V vocabulary, n beams of a text, or the best of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial, all_leaves
from jaxtyping import Array, Bool, Float, Int, Key

from jaxnlp.nn.candidates import candidates


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

ANY, NOTHING = -1, -2  # tokens that equal all others, in a word, and none, in a text
ROOM = 16  # new tokens of a search's first loop, where its state can be widened


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
    tokens, real = _tokens(context)
    score = jnp.take_along_axis(logits, tokens, axis=1, mode="clip")
    score = jnp.where(score < 0, score * penalty, score / penalty)
    rows = jnp.arange(logits.shape[0])[:, None]
    return logits.at[rows, jnp.where(real, tokens, logits.shape[1])].set(score, mode="drop")


def banned(words: Sequence[Sequence[int]]) -> Processor:
    """No text holds a word, given by its tokens: the last one is impossible after the others, prompt included.

    As Hugging Face's NoBadWordsLogitsProcessor, which takes no notice of a word that is longer than the text so far.
    """
    if bad := [list(word) for word in words if not len(word)]:
        raise ValueError(f"banned={[*words]!r} holds {bad[0]!r}; allowed: words of one token and more")
    table = _table(words)
    *before, last = (table[:, i] for i in range(table.shape[1]))
    return Partial(_banned, np.stack(before, axis=1), last)


def _banned(before, last, logits, context):
    n = before.shape[1]
    tokens, real = _tokens(context)
    tokens = jnp.pad(jnp.where(real, tokens, NOTHING), ((0, 0), (n, 0)), constant_values=NOTHING)
    tail = lax.dynamic_slice_in_dim(tokens, context.prompt.shape[1] + context.n_new, n, axis=1)
    found = ((before == ANY)[None] | (before[None] == tail[:, None])).all(2)
    rows, last = jnp.arange(len(logits))[:, None], jnp.where(last == ANY, logits.shape[1], last)[None]
    return logits.at[rows, last].min(jnp.where(found, -jnp.inf, jnp.inf), mode="drop")


def forced(words: Sequence[Sequence[int]], *, end_id: int, max_new_tokens: int) -> Processor:
    """Every text holds all words, given by their tokens, among its new tokens.

    A text does not end before it holds them. Once what is missing needs all tokens that are left, it is written: the
    word that has come furthest first, then the others in their order. Whatever `processors` before it forbade, it is
    allowed then. So any loop can keep to it; the constrained beam search that transformers had (`force_words_ids`, all
    words of a list) holds beams with and without each word against each other instead.
    """
    if bad := [list(word) for word in words if not len(word)]:
        raise ValueError(f"forced={[*words]!r} holds {bad[0]!r}; allowed: words of one token and more")
    if (needed := sum(map(len, words))) > max_new_tokens:
        raise ValueError(f"forced words have {needed} tokens; allowed: at most max_new_tokens={max_new_tokens}")
    table = _table([word[::-1] for word in words])[:, ::-1]
    return Partial(_forced, table, np.int32(end_id), np.int32(max_new_tokens))


def _forced(words, end_id, max_new_tokens, logits, context):
    words, (W, L) = jnp.asarray(words), words.shape
    lengths = (words != ANY).sum(1)
    n_new, N = context.n_new, context.new.shape[1]
    new = jnp.where(jnp.arange(N)[None] < n_new, context.new, NOTHING)
    new = jnp.pad(new, ((0, 0), (L, L)), constant_values=NOTHING)
    begins = jnp.ones((len(new), L + N, W), bool)  # whether a word's first i tokens begin at a place
    progress = jnp.zeros((len(new), W), jnp.int32)
    for i in range(L):  # the tokens of a word
        at_end = lax.dynamic_index_in_dim(begins, L + n_new - i, axis=1, keepdims=False)
        progress = jnp.where(at_end & (i < lengths)[None], i, progress)
        same = new[:, i : i + L + N, None] == words[:, i][None, None]
        begins &= same | (words[:, i] == ANY)[None, None]
    missing = ~begins.any(1)
    needed = jnp.where(missing, lengths[None], 0).sum(1)
    word = jnp.where(missing, progress, -1).argmax(1)
    token = words[word, jnp.take_along_axis(progress, word[:, None], axis=1)[:, 0]]
    must = (needed > 0) & (max_new_tokens - n_new <= needed)
    vocabulary = jnp.arange(logits.shape[1])[None]
    logits = jnp.where((needed > 0)[:, None] & (vocabulary == end_id), -jnp.inf, logits)
    return jnp.where(must[:, None], jnp.where(vocabulary == token[:, None], 0.0, -jnp.inf), logits)


def _table(words: Sequence[Sequence[int]]) -> np.ndarray:
    """The words as rows that end together, after ANY; of few sizes, so that others do not compile again."""
    shape = (-(-max(1, len(words)) // 8) * 8, -(-max(map(len, words), default=1) // 8) * 8)
    table = np.full(shape, ANY, np.int32)
    for row, word in zip(table, words):
        row[len(row) - len(word) :] = word
    return table


def _tokens(context: Context) -> tuple[Int[Array, "B S"], Bool[Array, "B S"]]:
    """Prompt and new tokens, S = P + N, and which of them are there."""
    written = jnp.broadcast_to(jnp.arange(context.new.shape[1]) < context.n_new, context.new.shape)
    return (
        jnp.concatenate([context.prompt, context.new], axis=1),
        jnp.concatenate([context.prompt_mask, written], axis=1),
    )


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


# ------------------------------------------------------------------------------------------------------ one by one


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


# ---------------------------------------------------------------------------------------------------------- beams


@flax.struct.dataclass
class Beams:
    """Texts, the best first. Where a row has fewer, what is left has score -inf and length 0."""

    tokens: Int[Array, "B n N"]  # padding after the end
    scores: Float[Array, "B n"]  # sum of log p(token), over the length penalty
    lengths: Int[Array, "B n"]  # the end token counts


@flax.struct.dataclass
class _Search:
    """How far a search has come: the carry of the loop."""

    state: Any  # what `step` carries, a row for each beam
    last: Int[Array, "B n"]  # the last tokens, not yet put through `step`
    n_new: Int[Array, ""]  # the length of the live beams
    live: Beams  # scores without length penalty
    ended: Beams


@flax.struct.dataclass
class Shared:
    """What the beams of a text have in common: as large as without beams, and `beam_search` reorders nothing of it."""

    tree: Any


def repeat(tree: Any, n: int) -> Any:
    """Each row n times, side by side; scalars and what is shared stay."""
    return _map(lambda x: jnp.repeat(x, n, axis=0), tree)


def _map(function: Callable[[Array], Array], tree: Any) -> Any:
    def own(x):
        return x if isinstance(x, Shared) or not jnp.ndim(x) else function(x)

    return jax.tree.map(own, tree, is_leaf=lambda x: isinstance(x, Shared))


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
    """The `n_best` texts after `token` that a search with `n_beams` beams finds. Pure; to be called inside a jit.

    `state` has the B rows first in every leaf, but for scalars; each row becomes n_beams rows, which follow their
    beams from turn to turn, but for what is `Shared`. `step` sees B * n_beams rows, those of a text side by side, as
    `repeat` lays them.

    A text ends where `end_id` is among the n_beams best candidates of its row; those are taken from 2 n_beams, so
    that n_beams go on whatever ends. At max_new_tokens the live beams count as texts too. A row stops once no live
    beam can come among its n_best any more, at whatever length: nothing is lost by it.

    A processor sees `prompt`, tokens and mask, or `token` alone where there is none.

    Where step's work grows with the state's slots, `widen(state, n)` gives the state slots for n new tokens in all. It
    is called for ROOM at first, then for twice as many when they are full: each size is a loop of its own.

    Logits that are NaN or +inf count as -inf: such a token is never taken. `length_penalty` is alpha, traced.
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
    first = jnp.arange(B)[:, None] * n_beams
    prompt = repeat((token[:, None], jnp.ones((B, 1), bool)) if prompt is None else prompt, n_beams)

    def penalty(length: Int[Array, ""]) -> Float[Array, ""]:
        return ((5 + length).astype(jnp.float32) / 6) ** jnp.asarray(length_penalty, jnp.float32)

    def nothing(n: int) -> Beams:
        tokens = jnp.full((B, n, max_new_tokens), pad_id, jnp.int32)
        return Beams(tokens, jnp.full((B, n), -jnp.inf), jnp.zeros((B, n), jnp.int32))

    def improvable(s: _Search) -> Bool[Array, ""]:
        # A sum only falls, and the penalty has its maximum at one of the ends, for alpha above 0 and below.
        bound = s.live.scores.max(1) / jnp.maximum(penalty(s.n_new), penalty(jnp.int32(max_new_tokens)))
        return (s.n_new < max_new_tokens) & (bound > s.ended.scores[:, -1]).any()

    def advance(s: _Search) -> _Search:
        logits, state = step(s.last.reshape(-1), s.state)
        if n_beams > logits.shape[1]:
            raise ValueError(f"n_beams={n_beams}; allowed: at most the {logits.shape[1]} words of the vocabulary")
        logits = logits.astype(jnp.float32)
        if process is not None:
            new = s.live.tokens.reshape(B * n_beams, -1)
            logits = process(logits, Context(*prompt, new, s.n_new))
        scores, parents, tokens = candidates(s.live.scores, logits, 2 * n_beams)

        texts = _take(s.live, parents)
        texts = Beams(texts.tokens.at[:, :, s.n_new].set(tokens), scores, texts.lengths + 1)
        ends = tokens == end_id
        among = jnp.arange(2 * n_beams)[None] < n_beams
        ended = texts.replace(scores=jnp.where(ends & among, scores / penalty(s.n_new + 1), -jnp.inf))
        live, order = _best(texts.replace(scores=jnp.where(ends, -jnp.inf, scores)), n_beams)
        rows = (first + jnp.take_along_axis(parents, order, axis=1)).reshape(-1)
        return _Search(
            state=_map(lambda x: x.at[rows].get(mode="promise_in_bounds"), state),
            last=jnp.take_along_axis(tokens, order, axis=1),
            n_new=s.n_new + 1,
            live=live,
            ended=_join(s.ended, ended),
        )

    live = nothing(n_beams)
    live = live.replace(scores=live.scores.at[:, 0].set(0.0))  # the others are the same text
    last = repeat(token, n_beams).reshape(B, n_beams).astype(jnp.int32)
    s = _Search(repeat(state, n_beams), last, jnp.int32(0), live, nothing(n_best))

    def texts(s: _Search) -> Beams:
        return _join(s.ended, s.live.replace(scores=s.live.scores / penalty(s.n_new)))

    def search(s: _Search, room: int) -> Beams:
        if widen is not None:
            s = s.replace(state=widen(s.state, room))
        s = lax.while_loop(lambda s: (s.n_new < room) & improvable(s), advance, s)
        if room == max_new_tokens:
            return texts(s)
        return lax.cond(improvable(s), lambda s: search(s, min(2 * room, max_new_tokens)), texts, s)

    return search(s, max_new_tokens if widen is None else min(ROOM, max_new_tokens))


def _take(beams: Beams, index: Int[Array, "B m"]) -> Beams:
    return jax.tree.map(lambda x: x[jnp.arange(len(x))[:, None], index], beams)


def _best(beams: Beams, n: int) -> tuple[Beams, Int[Array, "B n"]]:
    _, index = lax.top_k(beams.scores, n)
    return _take(beams, index), index


def _join(ended: Beams, more: Beams) -> Beams:
    """As many as `ended` has, of both; the first among equals."""
    return _best(jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), ended, more), ended.scores.shape[1])[0]
