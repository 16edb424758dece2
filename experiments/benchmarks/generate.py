"""Generation with GPT-2 124M, float32, against transformers' `generate` with its cache, in turns on one machine.

    python experiments/benchmarks/generate.py --peer-python .venv-parity/bin/python [--batches 1 8 32] [--rounds 5]

A prompt of 128 tokens and 128 new ones, greedy, random weights, all cores on both sides. The first token's seconds,
with the whole prompt before it, are told apart from the tokens a second of the other 127, and compilation from both.
Medians. A third line is ours with weights, products and cache in bfloat16.

No token of a batch comes sooner than the weights and the cache are read from memory, nor than the machine multiplies:
the limit is the longer of the two times, by rates measured in the same run. The reading rate is that of a product of
the word table and one vector, the multiplying rate that of a product of two square matrices, both in float32.
"""

import argparse
import os
import statistics
import time

from peer import Peer, serve

PROMPT, NEW, VOCABULARY = 128, 128, 50257


def ours():
    """A function of the batch size and dtype that gives the seconds of (the first token, the others, compilation)."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxnlp import decoding
    from jaxnlp.models import gpt
    from jaxnlp.tasks import generation

    models, config = {}, gpt.VARIANTS["gpt2"]
    exact = jax.jit(config.build().init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    for dtype in ("float32", "bfloat16"):
        params = jax.tree.map(lambda x: x.astype(dtype), exact)  # noqa: B023
        models[dtype] = dataclasses.replace(config, dtype=dtype).build(), params

    def seconds(batch: int, dtype: str) -> tuple[float, float]:
        model, params = models[dtype]
        prompt = np.random.default_rng(0).integers(0, VOCABULARY, (batch, PROMPT))
        prompt, mask, n_new = generation._pad(prompt.tolist(), NEW, model.config.n_positions)
        times = [time.perf_counter()]
        keys = jax.random.split(jax.random.key(0), batch)
        state = decoding.start(None, prompt, mask, keys, max_new_tokens=n_new)
        state = state.replace(state=generation._prefill(model, params, prompt, mask, n_slots=PROMPT + n_new))
        for n in (1, NEW - 1):
            state = generation._extend(model, params, state, n, choose=decoding.greedy)
            state.context.new.block_until_ready()
            times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    compiling, compilation = [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiling.append(seconds) if "backend_compile" in name else None
    )

    def run(batch: int, dtype: str = "float32") -> tuple[float, float, float]:
        if (batch, dtype) not in compilation:
            compiling.clear()
            seconds(batch, dtype)
            compilation[batch, dtype] = sum(compiling)
        return *seconds(batch, dtype), compilation[batch, dtype]

    return run


def theirs():
    """The peer: transformers, as it comes."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()

    def run(batch: int) -> tuple[float, float]:
        times = []

        def note(ids, logits):
            times.append(time.perf_counter())
            return logits

        prompt = torch.randint(0, VOCABULARY, (batch, PROMPT))
        start = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([note]),
        )
        return times[0] - start, times[-1] - times[0]

    run(1)
    return run


def rates() -> tuple[float, float]:
    """Bytes and floating-point operations a second."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)

    def seconds(a, b) -> float:
        times = []
        for _ in range(9):
            start = time.perf_counter()
            product(a, b).block_until_ready()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    table, vector, square = jnp.ones((50304, 768)), jnp.ones((768, 1)), jnp.ones((1024, 1024))
    return table.nbytes / seconds(table, vector), 2 * 1024**3 / seconds(square, square)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5, help="three at most are taken of batches above 8")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(theirs())

    run = ours()
    peer = Peer(args.peer_python, __file__) if args.peer_python else None
    weights = 50304 * 768 + 12 * 12 * 768**2  # biases and norms are small beside them
    print("batch          first token   decoding              of the limit   compilation")
    for batch in args.batches:
        rows, halves, peers, measured = [], [], [], []
        for _ in range(args.rounds if batch <= 8 else min(args.rounds, 3)):
            rows.append(run(batch))
            halves.append(run(batch, "bfloat16"))
            if peer:
                peers.append(peer.ask(batch=batch))
            measured.append(rates())
        read, multiply = (statistics.median(column) for column in zip(*measured))
        cache = 2 * batch * 12 * 768 * (PROMPT + NEW / 2)
        operations = 2 * (batch * weights + cache)

        def shown(first: float, others: float, bytes_: int) -> str:
            limit = max(bytes_ * (weights + cache) / read, operations / multiply)  # noqa: B023
            speed = batch * (NEW - 1) / others  # noqa: B023
            return f"{first:8.2f} s {speed:8.1f} tokens/s  {limit * (NEW - 1) / others:13.0%}"

        first, others, compilation = (statistics.median(column) for column in zip(*rows))
        rate = f"the machine reads {read / 1e9:.1f} GB/s and multiplies {multiply / 1e9:.0f} GFLOP/s"
        print(f"{batch:5} ours    {shown(first, others, 4)}   {compilation:8.1f} s    {rate}")
        half, halved, compilation = (statistics.median(column) for column in zip(*halves))
        print(f"      bf16    {shown(half, halved, 2)}   {compilation:8.1f} s    {others / halved:.2f}x")
        if peer:
            first_, others_ = (statistics.median(column) for column in zip(*peers))
            print(f"      theirs  {shown(first_, others_, 4)}")
            print(f"      ratio   {first_ / first:8.2f}x  {others_ / others:8.2f}x", flush=True)
    if peer:
        peer.close()


if __name__ == "__main__":
    main()
