"""Generation: text in, text out, over a decoder with a key-value cache.

The prompts are padded on the left to a bucket's length. All tokens but the last go through the model in one call, which
fills the cache; from the last one on, a loop of `decoding` gives a token a turn. Both are compiled once for each
model and bucket, a beam search for each max_new_tokens too; parameters, seed, temperature and the like are arguments of
what is compiled.

Letters: B batch, P prompt's bucket, N new tokens' bucket, V vocabulary.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Int

from jaxnlp import decoding
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.decoding import Beams, Decoding, Processor
from jaxnlp.nn.blocks import unstack_layers
from jaxnlp.nn.cache import widened
from jaxnlp.tasks import beams, scoring
from jaxnlp.tasks.streaming import Row
from jaxnlp.tasks.task import whole

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
    banned: Sequence[str] = (),
    forced: Sequence[str] = (),
    processors: Sequence[Processor] = (),
    stop: str | Sequence[str] = (),
    seed: int = 0,
    n_samples: int | None = None,
    n_beams: int | None = None,
    length_penalty: float | int = 0.0,
    choices: Sequence[str] | Sequence[Sequence[str]] | None = None,
    window: int | None = None,
    details: bool = False,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Any]:
    """The text that follows each prompt: a list of strings.

    A text ends with the tokenizer's end token, before the first of the strings in `stop`, or after `max_new_tokens`.
    It depends on its own prompt and the seed alone, not on the other prompts; a prompt given twice gives two texts. An
    empty prompt is the begin token.

    Args:
        temperature: 0 takes the best token each time; `top_k` and `top_p` then change nothing.
        banned: strings whose tokens, as they stand or after a space, come in no text (see `decoding.banned`).
        forced: strings whose tokens, as they stand, come in every text (see `decoding.forced`).
        processors: applied after the repetition penalty and what is banned and before what is forced, temperature,
            top_k and top_p, as in Hugging Face.
        n_samples: texts of each prompt, which is read once: a list of lists, as if each prompt came so often.
        n_beams: the best text of a beam search with so many beams; no sampling. `stop` cuts what the search has found.
        length_penalty: alpha of Wu et al. (2016, eq. 14), of a beam search.
        choices: strings, or a list of strings for each prompt, of which the text is the likeliest after the prompt;
            nothing else is asked for then but `details`.
        window: tokens that the model reads at most, beyond which text goes on: once they are full, the last half of
            them is read again as if the text began there. None: prompt and text fit the model's positions.
        details: instead of each text {"text", "tokens", "log_probs", "log_prob"}: its ids with the end token, or with
            those in which a stop string ends, the model's own log p of each, whatever the processors, and their sum.
        on_text: called with (row, piece) as text comes; a row's pieces add up to its text. A character is given when
            it is whole, and the beginning of a stop string when it has turned out to be something else. With
            n_samples, row counts the texts of all prompts.
    """
    counts = {"max_new_tokens": max_new_tokens, "n_samples": n_samples, "n_beams": n_beams, "top_k": top_k}
    for name, value in {**counts, "seed": seed, "window": window}.items():
        if value is not None:
            whole(name, value, 1 if name in counts else None)
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty={length_penalty}; allowed: finite numbers")
    prompts, banned, forced = _texts("prompts", prompts), _texts("banned", banned), _texts("forced", forced)
    stop = _texts("stop", [stop] if isinstance(stop, str) else stop)
    if not all(stop):
        raise ValueError(f"stop={stop!r} holds an empty string; allowed: strings of one character and more")
    sampling = {"temperature": None if temperature in (0, 1) else temperature, "top_k": top_k, "top_p": top_p}
    sampling |= {"n_samples": n_samples, "window": window, "on_text": on_text}
    if choices is not None:
        others = {"n_beams": n_beams, "banned": banned, "forced": forced, "stop": stop, "processors": processors}
        others |= {"repetition_penalty": repetition_penalty, "length_penalty": length_penalty or None}
        _refuse("choices", sampling | others)
        return _choose(model, params, tokenizer, prompts, choices, details)
    if n_beams is not None:
        _refuse(f"n_beams={n_beams}", sampling)
    elif length_penalty:
        raise ValueError(f"length_penalty={length_penalty} without n_beams; allowed: 0, or a beam search")
    if n_samples is not None and n_samples > 1 and temperature == 0:
        raise ValueError(f"n_samples={n_samples} with temperature=0, which gives one text; allowed: above 0")
    if forced and stop:
        raise ValueError(f"forced={forced!r} with stop={stop!r}, which may end a text before; allowed: one of the two")
    if window is not None and not 2 <= window <= model.config.n_positions:
        raise ValueError(f"window={window}; allowed: 2 to model.n_positions={model.config.n_positions}")
    process = _process(
        tokenizer, temperature, top_k, top_p, repetition_penalty, banned, forced, processors, max_new_tokens
    )
    if not prompts:
        return []
    ids = _encode(tokenizer, prompts, model.config, None if window else max_new_tokens)
    model, params = unrolled(model, params)
    n = n_samples or 1
    rows = [Row(one) for one in ids for _ in range(n)]
    model_and_rows = model, params, tokenizer, rows, stop, max_new_tokens
    if n_beams is not None:
        _search_beams(*model_and_rows, n_beams=n_beams, length_penalty=length_penalty, process=process)
        trees = [(row.prompt, [row.ids]) for row in rows if details]
        log_probs = [log_p.tolist() for ((log_p, _),) in scoring.of_tokens(model, params, trees)]
    else:
        log_probs = _decode(
            *model_and_rows,
            _keys(seed, [prompt for prompt in prompts for _ in range(n)]),
            n_samples=n,
            window=window,
            details=details,
            on_text=on_text,
            process=process,
            choose=decoding.greedy if temperature == 0 else decoding.sample,
        )
    texts = [row.details(log_p) for row, log_p in zip(rows, log_probs)] if details else [row.text for row in rows]
    return texts if n_samples is None else [texts[i : i + n] for i in range(0, len(texts), n)]


def _decode(
    model: nn.Module,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    rows: list[Row],
    stop: Sequence[str],
    max_new_tokens: int,
    keys: Array,
    *,
    n_samples: int,
    window: int | None,
    details: bool,
    on_text: Callable[[int, str], None] | None,
    **options: Any,
) -> list[list[float]]:
    """Gives the rows their texts, a token a turn; with `details`, their tokens' log p.

    A window is full at another time in each row. Then all caches are made anew, each of what its own row sees, so that
    a text does not depend on the others.
    """
    end_id = tokenizer.eos_id
    options |= {"end_id": end_id, "pad_id": end_id}
    chunk = 1 if on_text else CHUNK if stop else max_new_tokens
    limit = model.config.n_positions if window is None else None
    prompt, mask, n_new = _pad([row.prompt for row in rows], max_new_tokens, limit)
    start = {"max_new_tokens": n_new, "pad_id": end_id, "log_probs": details}
    state = decoding.start(None, prompt, mask, keys, **start)
    n_done, until = 0, 0
    while n_done < max_new_tokens and not all(row.done for row in rows):
        if n_done == until:  # nothing is read yet, or a window is full
            seen, room, n = (prompt, mask), max_new_tokens, n_new
            if window is not None:
                texts = [row.seen(window) for row in rows]
                room = min(room - n_done, window + 1 - max(map(len, texts)))
                *seen, n = _pad(texts, room, None)
            until, n_slots = n_done + room, seen[0].shape[1] + n
            state = state.replace(state=_prefill(model, params, *seen, n_slots=n_slots, n=1 if n_done else n_samples))
        n_tokens = min(chunk, until - n_done)
        state = _extend(model, params, state, n_tokens, **options)
        n_done += n_tokens
        new, finished = state.context.new.tolist(), state.finished.tolist()
        for i, row in enumerate(rows):
            last = n_done == max_new_tokens or finished[i]
            piece = row.read(new[i][:n_done], tokenizer, stop, last)
            if piece and on_text:
                on_text(i, piece)
        if (done := [row.done for row in rows]) != finished:
            state = state.replace(finished=jnp.array(done))
    return state.log_probs.tolist() if details else []


def _search_beams(
    model: nn.Module,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    rows: list[Row],
    stop: Sequence[str],
    max_new_tokens: int,
    **options: Any,
) -> None:
    """Gives the rows the best texts of a beam search."""
    prompt, mask, _ = _pad([row.prompt for row in rows], max_new_tokens, model.config.n_positions)
    end_id = tokenizer.eos_id
    options |= {"max_new_tokens": max_new_tokens, "end_id": end_id, "pad_id": end_id}
    found = jax.device_get(_search(model, params, prompt, mask, **options))
    for row, tokens, lengths in zip(rows, found.tokens.tolist(), found.lengths.tolist(), strict=True):
        if not lengths[0]:
            raise ValueError(f"no text after {tokenizer.decode(row.prompt)[-40:]!r} has a finite score")
        row.read(tokens[0][: lengths[0]], tokenizer, stop, last=True)


def _choose(
    model: nn.Module,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    choices: Iterable[Any],
    details: bool,
) -> list[Any]:
    """The likeliest choice after each prompt, by the sum of its tokens' log p; the first among equals."""
    one = isinstance(choices, str) or all(isinstance(choice, str) for choice in choices)
    lists = [_texts("choices", texts) for texts in ([choices] * len(prompts) if one else choices)]
    if len(lists) != len(prompts) or not all(lists):
        raise ValueError(f"choices={choices!r} for {len(prompts)} prompts; allowed: one list for all, or one for each")
    for texts in lists:
        _known("choices", texts, tokenizer)
    trees = scoring.encode(tokenizer, list(zip(prompts, lists, strict=True)))
    n_positions = model.config.n_positions
    for i, (context, texts) in enumerate(trees):
        longest = max(map(len, texts))
        if len(context) + longest - 1 > n_positions:  # the last token is not read
            raise ValueError(
                f"prompt {i} has {len(context)} tokens and a choice {longest}; allowed: together at most "
                f"{n_positions + 1}, model.n_positions={n_positions} and one"
            )
    chosen = []
    for texts, (_, ids), found in zip(lists, trees, scoring.of_tokens(model, params, trees), strict=True):
        best = int(np.argmax([log_p.sum() for log_p, _ in found]))
        row = Row([], ids=list(ids[best]), text=texts[best])
        chosen.append(row.details(found[best][0].tolist()) if details else row.text)
    return chosen


_unstack = jax.jit(unstack_layers)


def unrolled(model: nn.Module, params: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
    """The same without a scan, which would copy each layer's weights and cache before it uses them."""
    if not getattr(model.config, "scan", False):
        return model, params
    return model.clone(config=dataclasses.replace(model.config, scan=False)), _unstack(params)


@functools.partial(jax.jit, static_argnames=("model", "n_slots", "n"))
def _prefill(
    model: nn.Module,
    params: Mapping[str, Any],
    prompt: Int[Array, "B P"],
    mask: Bool[Array, "B P"],
    *,
    n_slots: int,
    n: int = 1,
) -> Any:
    """A cache that holds all of the prompt but its last token; each n rows are the same, and are read once."""
    prompt, mask = prompt[::n, :-1], mask[::n, :-1]
    cache = model.init_cache(len(prompt), min(n_slots, model.config.n_positions))
    if "layers" in cache:
        cache = widened(cache, n_slots)
    if prompt.shape[1]:
        cache = model.apply({"params": params}, prompt, mask.astype(jnp.int32), cache=cache, logits=False)["cache"]
    return cache if n == 1 else decoding.repeat(cache, n)


@functools.partial(jax.jit, static_argnames=("model", "choose"), donate_argnames=("state",))
def _extend(
    model: nn.Module, params: Mapping[str, Any], state: Decoding, n_tokens: Int[Array, ""] | int, **options: Any
) -> Decoding:
    """`n_tokens` more, in place."""

    alone = len(state.token) == 1 and "layers" in state.state  # a loop that carried the row's axis would copy all slots

    def layers(cache, change):
        return {**cache, "layers": jax.tree.map(change, cache["layers"])} if alone else cache

    def step(tokens, cache):
        out = model.apply({"params": params}, tokens[:, None], cache=layers(cache, lambda x: x[None]))
        return out["logits"][:, 0], layers(out["cache"], lambda x: x[0])

    state = state.replace(state=layers(state.state, lambda x: x[0]))
    state = decoding.decode(step, state, n_tokens, **options)
    return state.replace(state=layers(state.state, lambda x: x[None]))


@functools.partial(jax.jit, static_argnames=("model", "n_beams", "max_new_tokens"))
def _search(
    model: nn.Module, params: Mapping[str, Any], prompt: Int[Array, "B P"], mask: Bool[Array, "B P"], **options: Any
) -> Beams:
    slots = prompt.shape[1] - 1
    cache = _prefill(model, params, prompt, mask, n_slots=slots)
    apply = functools.partial(model.apply, {"params": params})
    return beams.search(apply, cache, prompt[:, -1], slots=slots, prompt=(prompt, mask), **options)


# ----------------------------------------------------------------------------------------------------- what goes in


def _refuse(what: str, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if value is not None and value != () and value != []:
            raise ValueError(f"{what} with {name}={value!r}; allowed: one of the two")


def _texts(name: str, value: Any) -> list[str]:
    """The strings; TypeError of one alone, and of what is no list of them."""
    if isinstance(value, str):
        raise TypeError(f"{name} is one string, {value[:40]!r}; allowed: a list of strings")
    texts = list(value) if isinstance(value, Iterable) else [value]
    if others := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"{name} holds {others[0]!r}; allowed: a list of strings")
    return texts


def _known(name: str, words: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The words' tokens, as they stand; ValueError of a word of which some, or all, has none."""
    found = tokenizer.encode_batch(words)
    for word, ids in zip(words, found, strict=True):
        if not ids:
            raise ValueError(f"{name}={words!r} holds {word!r}, which has no token; allowed: strings of one and more")
        if tokenizer.unk_id in ids:
            unknown = f"{word!r}, of which the tokenizer does not know all"
            raise ValueError(f"{name}={words!r} holds {unknown}; allowed: strings that its tokens spell")
    return found


def _process(
    tokenizer, temperature, top_k, top_p, repetition_penalty, banned, forced, processors, max_new_tokens
) -> Processor:
    penalty = [] if repetition_penalty is None else [decoding.repetition_penalty(repetition_penalty)]
    shape = [decoding.temperature(temperature)]
    shape += [] if top_k is None else [decoding.top_k(top_k)]
    shape += [] if top_p is None else [decoding.top_p(top_p)]
    bans = _ids("banned", banned, tokenizer, spaced=True)
    single = {ids[0] for ids in bans if len(ids) == 1}
    if bans and not {*range(tokenizer.vocab_size)} - {*tokenizer.special_ids} - single:
        raise ValueError(f"banned={banned!r} leaves no token that stands for text; allowed: fewer words")
    words = _ids("forced", forced, tokenizer, spaced=False)
    for ids in words:
        for ban in bans:
            if any(ids[i : i + len(ban)] == ban for i in range(len(ids))):
                raise ValueError(
                    f"forced={forced!r} holds the banned {tokenizer.decode(ban)!r}; allowed: one of the two"
                )
    before = [*penalty, *([decoding.banned(bans)] if bans else [])]
    after = [decoding.forced(words, end_id=tokenizer.eos_id, max_new_tokens=max_new_tokens)] if words else []
    return decoding.chain(*before, *processors, *after, *(shape if temperature else ()))


def _ids(name: str, words: list[str], tokenizer: Tokenizer, *, spaced: bool) -> list[list[int]]:
    """The words' tokens, with `spaced` after a space too."""
    found = _known(name, words, tokenizer)
    found += tokenizer.encode_batch([" " + word for word in words]) if spaced else []
    return [list(ids) for ids in dict.fromkeys(map(tuple, found))]


def _encode(tokenizer: Tokenizer, prompts: Sequence[str], config: Any, max_new_tokens: int | None) -> list[list[int]]:
    """The prompts' tokens. None: however many."""
    rows = [ids or [tokenizer.bos_id] for ids in tokenizer.encode_batch(prompts)]
    for i, ids in enumerate(rows):
        if max_new_tokens is not None and len(ids) + max_new_tokens > config.n_positions:
            raise ValueError(
                f"prompt {i} has {len(ids)} tokens and max_new_tokens={max_new_tokens}; allowed: together at most "
                f"model.n_positions={config.n_positions}, or window=, beyond which text goes on"
            )
        if max(ids) >= config.vocab_size:
            raise ValueError(f"prompt {i} has token id {max(ids)}; allowed: below model.vocab_size={config.vocab_size}")
    return rows


def _pad(rows: list[list[int]], max_new_tokens: int, n_positions: int | None) -> tuple[Array, Array, int]:
    """Prompts padded on the left, [B, P], their mask, and N: both from few sizes, P + N at most n_positions.

    _pad([[5, 6], [7]], 50, 1024) gives [[0, …, 0, 5, 6], [0, …, 0, 0, 7]] with P = 32, and N = 64.
    """
    P, N = bucket(max(map(len, rows))), bucket(max_new_tokens)
    if n_positions is not None:
        P = min(P, n_positions - max_new_tokens)
        N = min(N, n_positions - P)
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
