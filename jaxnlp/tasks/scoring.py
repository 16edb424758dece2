"""Scoring: how likely a language model takes what follows a prompt to be.

    log p(c | x) = sum_t log p(c_t | x, c_<t)

A prompt goes through the model once and fills a cache; all its continuations then follow in one row, as branches that
do not see one another, and their first tokens are all read off the prompt's last. What comes out is what each whole
text gives on its own. A recurrent model, whose state is no list of tokens, reads the prompt before each.

The tokens are those of EleutherAI's lm-evaluation-harness, so that figures compare with published ones: white space at
the prompt's end is moved to the continuation's beginning; c are the tokens of the joined text beyond as many as the
prompt alone has, and x those of the prompt alone. Where tokens merge across the border x is therefore not what the
joined text begins with. An empty prompt is the begin token. A prompt that is too long loses its beginning.

Letters: B prompts, P their bucket; M tokens that are read after them, Q tokens that are scored, V vocabulary.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxnlp.data import batches
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.models.heads import speaks
from jaxnlp.nn.cache import widened

TOKENS = 2048  # of a batch, prompts and continuations together: more only of one continuation, or by padding
P_SIZES, M_SIZES = 2, 2  # sizes from a power of two to the next: few programs, little padding

Ids = Sequence[int]


class Scored(NamedTuple):
    """One continuation."""

    log_prob: float  # sum of its tokens' log p
    n_tokens: int
    greedy: bool  # whether each of its tokens is the likeliest


def log_likelihoods(
    model: nn.Module,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, Sequence[str]]],
) -> list[list[Scored]]:
    """Of each prompt and its continuations, how likely each of these is.

    log_likelihoods(…, [("One and one is", [" two", " three"]), ("", ["A text."])]) gives two Scored and one.

    Raises:
        ValueError: a continuation has no token of its own, or more than the model has positions; the model has heads,
            and none is a language model's.
    """
    found = of_tokens(model, params, encode(tokenizer, pairs))
    return [[Scored(float(log_p.sum()), len(log_p), bool(best.all())) for log_p, best in texts] for texts in found]


def encode(tokenizer: Tokenizer, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[Ids, list[Ids]]]:
    """Tokens of prompts and continuations.

    [("one ", ["two", "ten"])] -> [([5], [[6], [7, 8]])], as of "one", " two" and " ten"
    """
    prompts, texts = [], []
    for prompt, continuations in pairs:
        if isinstance(continuations, str):
            raise TypeError(f"continuations are one string, {continuations[:40]!r}; allowed: a list of strings")
        prompts.append(prompt.rstrip())
        texts.append([prompt + continuation for continuation in continuations])
    contexts = tokenizer.encode_batch(prompts)
    joined = iter(tokenizer.encode_batch([*itertools.chain(*texts)]))
    trees = [(x or [tokenizer.bos_id], [next(joined)[len(x) :] for _ in more]) for x, more in zip(contexts, texts)]
    for (prompt, continuations), (_, more) in zip(pairs, trees, strict=True):
        for text, ids in zip(continuations, more, strict=True):
            if not ids:
                raise ValueError(f"continuation {text!r} adds no token to {prompt[-40:]!r}; allowed: one and more")
    return trees


def of_tokens(
    model: nn.Module, params: Mapping[str, Any], trees: Sequence[tuple[Ids, Sequence[Ids]]]
) -> list[list[tuple[Float[np.ndarray, " T"], Bool[np.ndarray, " T"]]]]:
    """As `log_likelihoods`, of ids: of each continuation its tokens' log p, and whether each is the likeliest.

    [([5, 6], [[7], [8, 9]])], a prompt of two tokens, gives [[(log p [1], likeliest [1]), (log p [2], likeliest [2])]].
    """
    if not speaks(model.heads):
        raise ValueError(f"the model has the heads {model.heads}, and no language model's output to score with")
    model = model.clone(heads=())
    found: list[list[Any]] = [[None] * len(continuations) for _, continuations in trees]
    groups: dict[int, list[Branches]] = {}
    for i, tree in enumerate(trees):
        for branches in _fitted(i, *tree, model.config, TOKENS if _branches(model) else 1):
            P = len(branches.context) - 1
            groups.setdefault(P and batches.width(P, model.config.n_positions, P_SIZES), []).append(branches)
    for P, group in groups.items():
        group.sort(key=Branches.n_read, reverse=True)
        total = len(group)
        while group:
            M = batches.width(group[0].n_read(), 2 * group[0].n_read() + batches.SMALLEST_BUCKET, M_SIZES)
            size = 2 ** (max(1, TOKENS // (P + M)).bit_length() - 1)
            B = batches.height(len(group[:size]), total, size)
            part, group = group[:size], group[size:]
            log_p, best = jax.device_get(_score(model, params, *_arrays(part, B, P, M)))
            for row, branches in enumerate(part):
                ends = np.cumsum([len(text) for text in branches.texts])
                for text, end, (i, j) in zip(branches.texts, ends, branches.numbers, strict=True):
                    here = slice(end - len(text), end)
                    found[i][j] = (log_p[row, here], best[row, here])
    return found


@functools.cache
def _branches(model: nn.Module) -> bool:
    """Whether the model's cache is a list of tokens, from which several texts can go on."""
    return "layers" in jax.eval_shape(lambda: model.init_cache(1, 1))


class Branches(NamedTuple):
    """Continuations of one context, of the prompts' and continuations' `numbers`."""

    context: Ids
    texts: list[Ids]
    numbers: list[tuple[int, int]]

    def n_read(self) -> int:
        """Tokens after those of the cache: the context's last, and of each text all but its last."""
        return 1 + sum(len(text) - 1 for text in self.texts)


def _fitted(i: int, context: Ids, texts: Sequence[Ids], config: Any, most: int) -> list[Branches]:
    """The tree as such that fit the positions, and are of `most` tokens at most, with one text or more.

    The last token of a text is not read: together they may have one more than there are positions.
    """
    parts: list[Branches] = []
    last: dict[int, tuple[Branches, int]] = {}  # of each length of context, and its tokens
    for j, text in enumerate(texts):
        room = config.n_positions + 1 - len(text)
        if room < 1:
            raise ValueError(
                f"continuation {j} of prompt {i} has {len(text)} tokens; "
                f"allowed: at most model.n_positions={config.n_positions}"
            )
        if max(*context, *text) >= config.vocab_size:
            raise ValueError(
                f"prompt {i} or its continuation {j} has token id {max(*context, *text)}; "
                f"allowed: below model.vocab_size={config.vocab_size}"
            )
        kept = context[-room:]
        part, n = last.get(len(kept), (None, 0))
        if part is None or len(kept) + n + len(text) > most:
            part, n = Branches(kept, [], []), 0
            parts.append(part)
        last[len(kept)] = part, n + len(text)
        part.texts.append(text)
        part.numbers.append((i, j))
    return parts


def _arrays(part: Sequence[Branches], B: int, P: int, M: int) -> tuple[np.ndarray, ...]:
    """What `_score` takes. What is not there of rows and tokens is padding, a prompt's on the left.

    [([5, 6], [[7], [8, 9]])] gives prompt [[5]], inputs [[6, 8]] in the segments [[1, 3]], and targets [[7, 8, 9]],
    which are scored at the inputs [[0, 0, 1]].
    """
    Q = 2 ** (M + max(len(branches.texts) for branches in part) - 1).bit_length()  # more than are scored: few programs
    prompt, mask = np.zeros((B, P), np.int32), np.zeros((B, P), np.int32)
    inputs, segments = np.zeros((B, M), np.int32), np.zeros((B, M), np.int32)
    at, targets = np.zeros((B, Q), np.int32), np.zeros((B, Q), np.int32)
    for row, (context, texts, _) in enumerate(part):
        *before, last = context
        prompt[row, P - len(before) :], mask[row, P - len(before) :] = before, 1
        inputs[row, 0], segments[row, 0] = last, 1
        read, scored = 1, 0
        for number, text in enumerate(texts, start=2):
            more = len(text) - 1
            inputs[row, read : read + more], segments[row, read : read + more] = text[:-1], number
            targets[row, scored : scored + more + 1] = text
            at[row, scored + 1 : scored + 1 + more] = np.arange(read, read + more)
            read, scored = read + more, scored + more + 1
    return prompt, mask, inputs, segments, at, targets


@functools.partial(jax.jit, static_argnames="model")
def _score(
    model: nn.Module,
    params: Mapping[str, Any],
    prompt: Int[Array, "B P"],
    prompt_mask: Int[Array, "B P"],
    inputs: Int[Array, "B M"],
    segments: Int[Array, "B M"],
    at: Int[Array, "B Q"],
    targets: Int[Array, "B Q"],
) -> tuple[Float[Array, "B Q"], Bool[Array, "B Q"]]:
    """Each target's log p, and whether it is the likeliest token."""
    (B, P), M = prompt.shape, inputs.shape[1]
    apply = functools.partial(model.apply, {"params": params})
    cache = model.init_cache(B, P)
    if P:
        cache = apply(prompt, prompt_mask, cache=cache, logits=False)["cache"]
    if "layers" in cache:
        out = apply(inputs, segment_ids=segments, cache=widened(cache, P + M))
    else:  # one continuation, which follows the prompt
        out = apply(inputs, jnp.minimum(segments, 1), cache=cache)
    logits, rows = out["logits"].astype(jnp.float32), jnp.arange(B)[:, None]
    log_p = logits[rows, at, targets] - jax.nn.logsumexp(logits, axis=-1)[rows, at]
    return log_p, logits.argmax(-1)[rows, at] == targets
