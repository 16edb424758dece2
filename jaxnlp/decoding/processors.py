"""What may be done to the logits: pytrees whose numbers are leaves, so that another temperature does not compile again.

They give what Hugging Face's LogitsProcessors of the same names give.

Letters: B batch, P prompt, N new tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial, all_leaves
from jaxtyping import Array, Bool, Float, Int

ANY, NOTHING = -1, -2  # tokens that equal all others, in a word, and none, in a text


@flax.struct.dataclass
class Context:
    """What a processor may look at beside the logits."""

    prompt: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]  # False on padding
    new: Int[Array, "B N"]  # the new tokens; padding from n_new on
    n_new: Int[Array, ""]  # so many are there already


Logits = Float[Array, "B V"]
Processor = Callable[[Logits, Context], Logits]


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
