"""Generation: text in, text out, over a decoder with a key-value cache.

The prompts are padded on the left to a bucket's length. All tokens but the last go through the model in one call, which
fills the cache; from the last one on, the loop of `decoding.py` gives a token a turn. Both are compiled once for each
model and bucket; parameters, seed, temperature and the like are arguments of what is compiled.

Letters: B batch, P prompt's bucket, N new tokens' bucket, V vocabulary.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Int

from jaxnlp import decoding
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.decoding import Decoding, Processor
from jaxnlp.nn.blocks import unstack_layers

CHUNK = 8  # tokens between two looks at the text for a stop string: each look is a round trip to the device


def generate(
    model: nn.Module,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 50,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    repetition_penalty: float | int | None = None,
    processors: Sequence[Processor] = (),
    stop: str | Sequence[str] = (),
    seed: int = 0,
    on_text: Callable[[int, str], None] | None = None,
) -> list[str]:
    """The text that follows each prompt.

    A text ends with the tokenizer's end token, before the first of the strings in `stop`, or after `max_new_tokens`.
    It depends on its own prompt and the seed alone, not on the other prompts; a prompt given twice gives two texts.

    Args:
        temperature: 0 takes the best token each time; `top_k` and `top_p` then change nothing.
        processors: applied after the repetition penalty and before temperature, top_k and top_p, as in Hugging Face.
        on_text: called with (row, piece) as text comes; a row's pieces add up to its text. A character is given when
            it is whole, and the beginning of a stop string when it has turned out to be something else.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts is one string, {prompts[:40]!r}; allowed: a list of strings")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; allowed: 1 and more")
    stop = [stop] if isinstance(stop, str) else stop
    if not all(stop):
        raise ValueError(f"stop={stop!r} holds an empty string; allowed: strings of one character and more")
    process = _process(temperature, top_k, top_p, repetition_penalty, processors)
    if not prompts:
        return []
    rows = [_Row(ids) for ids in _encode(tokenizer, prompts, model.config, max_new_tokens)]
    if getattr(model.config, "scan", False):  # a scan copies each layer's weights and cache before it uses them
        model = model.clone(config=dataclasses.replace(model.config, scan=False))
        params = _unstack(params)

    prompt, mask, n_new = _pad([row.prompt for row in rows], max_new_tokens, model.config.n_positions)
    end_id = tokenizer.eos_id
    state = decoding.start(None, prompt, mask, _keys(seed, prompts), max_new_tokens=n_new, pad_id=end_id)
    state = state.replace(state=_prefill(model, params, prompt, mask, n_slots=prompt.shape[1] + n_new))
    options = {
        "process": process,
        "choose": decoding.greedy if temperature == 0 else decoding.sample,
        "end_id": end_id,
        "pad_id": end_id,
    }
    chunk = 1 if on_text else CHUNK if stop else max_new_tokens
    for n_done in range(0, max_new_tokens, chunk):
        n_tokens = min(chunk, max_new_tokens - n_done)
        state = _extend(model, params, state, n_tokens, **options)
        new, finished = state.context.new.tolist(), state.finished.tolist()
        last = n_done + n_tokens == max_new_tokens
        for i, row in enumerate(rows):
            piece = row.read(new[i][: n_done + n_tokens], tokenizer, stop, last or finished[i])
            if piece and on_text:
                on_text(i, piece)
        done = [row.done for row in rows]
        if all(done):
            break
        if done != finished:
            state = state.replace(finished=jnp.array(done))
    return [row.text for row in rows]


_unstack = jax.jit(unstack_layers)


@functools.partial(jax.jit, static_argnames=("model", "n_slots"))
def _prefill(
    model: nn.Module, params: Mapping[str, Any], prompt: Int[Array, "B P"], mask: Bool[Array, "B P"], *, n_slots: int
) -> Any:
    """A cache that holds all of the prompt but its last token."""
    cache = model.init_cache(len(prompt), n_slots)
    if prompt.shape[1] == 1:
        return cache
    out = model.apply({"params": params}, prompt[:, :-1], mask[:, :-1].astype(jnp.int32), cache=cache, logits=False)
    return out["cache"]


@functools.partial(jax.jit, static_argnames=("model", "choose"), donate_argnames=("state",))
def _extend(
    model: nn.Module, params: Mapping[str, Any], state: Decoding, n_tokens: Int[Array, ""] | int, **options: Any
) -> Decoding:
    """`n_tokens` more, in place."""

    def step(tokens, cache):
        out = model.apply({"params": params}, tokens[:, None], cache=cache)
        return out["logits"][:, 0], out["cache"]

    return decoding.decode(step, state, n_tokens, **options)


# ----------------------------------------------------------------------------------------------------- what goes in


def _process(temperature, top_k, top_p, repetition_penalty, processors) -> Processor:
    penalty = [] if repetition_penalty is None else [decoding.repetition_penalty(repetition_penalty)]
    shape = [decoding.temperature(temperature)]
    shape += [] if top_k is None else [decoding.top_k(top_k)]
    shape += [] if top_p is None else [decoding.top_p(top_p)]
    return decoding.chain(*penalty, *processors, *(shape if temperature else ()))


def _encode(tokenizer: Tokenizer, prompts: Sequence[str], config: Any, max_new_tokens: int) -> list[list[int]]:
    rows = [ids or [tokenizer.bos_id] for ids in tokenizer.encode_batch(prompts)]
    for i, ids in enumerate(rows):
        if len(ids) + max_new_tokens > config.n_positions:
            raise ValueError(
                f"prompt {i} has {len(ids)} tokens and max_new_tokens={max_new_tokens}; "
                f"allowed: together at most model.n_positions={config.n_positions}"
            )
        if max(ids) >= config.vocab_size:
            raise ValueError(f"prompt {i} has token id {max(ids)}; allowed: below model.vocab_size={config.vocab_size}")
    return rows


def _pad(rows: list[list[int]], max_new_tokens: int, n_positions: int) -> tuple[Array, Array, int]:
    """Prompts padded on the left, [B, P], their mask, and N: both from few sizes, P + N at most n_positions.

    _pad([[5, 6], [7]], 50, 1024) gives [[0, …, 0, 5, 6], [0, …, 0, 0, 7]] with P = 32, and N = 64.
    """
    longest = max(map(len, rows))
    P = min(bucket(longest), n_positions - max_new_tokens)
    N = min(bucket(max_new_tokens), n_positions - P)
    prompt, mask = np.zeros((len(rows), P), np.int32), np.zeros((len(rows), P), bool)
    for i, ids in enumerate(rows):
        prompt[i, P - len(ids) :], mask[i, P - len(ids) :] = ids, True
    return jnp.asarray(prompt), jnp.asarray(mask), N


def bucket(n: int) -> int:
    """n rounded up to a multiple of 32, and to one of four sizes an octave from 256 on: 32, 64, …, 256, 320, 384, …"""
    size = max(32, 2 ** ((n - 1).bit_length() - 3))
    return -(-n // size) * size


def _keys(seed: int, prompts: Sequence[str]) -> Array:
    """Each row's key: from the seed, its prompt, and how often that prompt has come before."""
    key, seen, keys = jax.random.key(seed), {}, []
    for prompt in prompts:
        seen[prompt] = seen.get(prompt, -1) + 1
        keys.append((zlib.crc32(prompt.encode()), seen[prompt]))
    return functools.reduce(jax.vmap(jax.random.fold_in), np.array(keys, np.uint32).T, jnp.tile(key, len(keys)))


# ---------------------------------------------------------------------------------------------------- what comes out


@dataclasses.dataclass
class _Row:
    """One prompt's text as it grows."""

    prompt: list[int]
    text: str = ""  # as far as it is settled
    done: bool = False

    def read(self, ids: list[int], tokenizer: Tokenizer, stop: Sequence[str], last: bool) -> str:
        """Takes all new token ids so far, and returns what they add to the text."""
        if self.done:
            return ""
        if tokenizer.eos_id in ids:
            ids = ids[: ids.index(tokenizer.eos_id)]
        # Decoded with the prompt before them: a token may give its leading space only after another one.
        text = tokenizer.decode([*self.prompt, *ids])[len(tokenizer.decode(self.prompt)) :]
        ends = [text.index(s) for s in stop if s in text]
        self.done = last or bool(ends)
        if ends:
            text = text[: min(ends)]
        if not self.done:
            text = text[: _settled(text, stop)]
        piece = text[len(self.text) :]
        self.text += piece
        return piece


def _settled(text: str, stop: Sequence[str]) -> int:
    """Characters that later tokens cannot change: not half a character, nor the beginning of a stop string.

    _settled("a b\\ufffd", ()) is 3, and _settled("end\\n", ["\\n\\n"]) is 3.
    """
    n = len(text.rstrip("\ufffd"))
    begun = (
        i for i in range(max(0, n - max(map(len, stop), default=0)), n) if any(s.startswith(text[i:n]) for s in stop)
    )
    return next(begun, n)
