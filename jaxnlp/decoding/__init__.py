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

Letters: B batch, P prompt, N new tokens, V vocabulary, n beams of a text, or the best of them.
"""

from jaxnlp.decoding.beams import (
    Beams,
    Search,
    Shared,
    beam_search,
    best_beams,
    extend_search,
    regroup,
    repeat,
    start_search,
    unfinished_rows,
)
from jaxnlp.decoding.loop import Choose, Decoding, Step, decode, greedy, sample, start
from jaxnlp.decoding.processors import (
    Context,
    Logits,
    Processor,
    banned,
    chain,
    forced,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
)

__all__ = [
    "Beams",
    "Choose",
    "Context",
    "Decoding",
    "Logits",
    "Processor",
    "Search",
    "Shared",
    "Step",
    "banned",
    "beam_search",
    "best_beams",
    "chain",
    "decode",
    "extend_search",
    "forced",
    "greedy",
    "regroup",
    "repeat",
    "repetition_penalty",
    "sample",
    "start",
    "start_search",
    "temperature",
    "top_k",
    "top_p",
    "unfinished_rows",
]
