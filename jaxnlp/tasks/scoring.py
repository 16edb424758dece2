"""Scoring: how likely a language model takes what follows a prompt to be.

    log p(c | x) = sum_t log p(c_t | x, c_<t)

A prompt goes through the model once and fills a cache; all its continuations then read that one cache, as branches of
it, in one call. What comes out is what each whole text gives on its own.

The tokens are those of EleutherAI's lm-evaluation-harness, so that figures compare with published ones: white space at
the prompt's end is moved to the continuation's beginning; c are the tokens of the joined text beyond as many as the
prompt alone has, and x those of the prompt alone. Where tokens merge across the border x is therefore not what the
joined text begins with. An empty prompt is the begin token. A prompt that is too long loses its beginning.

Letters: B prompts, P their bucket, n continuations of each, T their bucket, V vocabulary.
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
from jaxnlp.tasks.beams import branched

TOKENS = 2048  # of a batch at most, prompts and continuations together, padding too
P_SIZES, N_SIZES, T_SIZES = 4, 16, 8  # sizes from a power of two to the next: few programs, little padding

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
    groups: dict[tuple[int, int], list[tuple[Ids, list[Ids], list[tuple[int, int]]]]] = {}
    for i, tree in enumerate(trees):
        for context, texts, numbers in _fitted(i, *tree, model.config):
            n, P = (len(texts) - 1).bit_length(), len(context) - 1
            n = batches.width(len(texts), len(texts) + 2**n, N_SIZES)
            P = P and batches.width(P, model.config.n_positions, P_SIZES)
            groups.setdefault((n, P), []).append((context, texts, numbers))
    for (n, P), group in groups.items():
        group.sort(key=lambda tree: -max(map(len, tree[1])))
        while group:
            T = batches.width(max(map(len, group[0][1])), model.config.n_positions, T_SIZES)
            size = 2 ** (max(1, TOKENS // (P + n * T)).bit_length() - 1)
            part, group = group[:size], group[size:]
            arrays = _arrays(part, 2 ** (len(part) - 1).bit_length(), n, P, T)
            log_p, best = jax.device_get(_score(model, params, *arrays))
            for row, (_, texts, numbers) in enumerate(part):
                for branch, (text, (i, j)) in enumerate(zip(texts, numbers, strict=True)):
                    found[i][j] = (log_p[row, branch, : len(text)], best[row, branch, : len(text)])
    return found


def _fitted(i: int, context: Ids, texts: Sequence[Ids], config: Any):
    """The tree as such that fit the positions: (context, texts, [(i, each text's number)]).

    The last token of a text is not read: together they may have one more than there are positions.
    """
    parts: dict[int, tuple[Ids, list[Ids], list[tuple[int, int]]]] = {}
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
        _, branches, numbers = parts.setdefault(len(kept), (kept, [], []))
        branches.append(text)
        numbers.append((i, j))
    return parts.values()


def _arrays(part, B: int, n: int, P: int, T: int) -> tuple[np.ndarray, ...]:
    """What `_score` takes. What is not there of rows, branches and tokens is padding, a prompt's on the left.

    [([5, 6], [[7], [8, 9]])] gives prompt [[5]], inputs [[6, 0], [6, 8]] and targets [[7, 0], [8, 9]].
    """
    prompt, mask = np.zeros((B, P), np.int32), np.zeros((B, P), np.int32)
    inputs, targets, real = (np.zeros((B, n, T), np.int32) for _ in range(3))
    for row, (context, texts, _) in enumerate(part):
        *before, last = context
        prompt[row, P - len(before) :], mask[row, P - len(before) :] = before, 1
        for branch, text in enumerate(texts):
            inputs[row, branch, : len(text)] = [last, *text[:-1]]
            targets[row, branch, : len(text)], real[row, branch, : len(text)] = text, 1
    return prompt, mask, inputs, targets, real


@functools.partial(jax.jit, static_argnames="model")
def _score(
    model: nn.Module,
    params: Mapping[str, Any],
    prompt: Int[Array, "B P"],
    prompt_mask: Int[Array, "B P"],
    inputs: Int[Array, "B n T"],
    targets: Int[Array, "B n T"],
    real: Int[Array, "B n T"],
) -> tuple[Float[Array, "B n T"], Bool[Array, "B n T"]]:
    """Each target's log p, and whether it is the likeliest token; the inputs begin with the prompt's last token."""
    (B, P), (_, n, T) = prompt.shape, inputs.shape
    apply = functools.partial(model.apply, {"params": params})
    cache = model.init_cache(B, P)
    if P:
        cache = apply(prompt, prompt_mask, cache=cache, logits=False)["cache"]
    cache = branched(cache, n, T)
    logits = apply(inputs.reshape(B * n, T), real.reshape(B * n, T), cache=cache)["logits"].astype(jnp.float32)
    logits = logits.reshape(B, n, T, -1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), logits.argmax(-1) == targets
