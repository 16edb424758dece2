"""Generation with GPT-2 124M, float32, against transformers' `generate` with its cache, in turns on one machine.

    python experiments/benchmarks/generate.py --peer-python .venv-parity/bin/python [--batches 1 8 32] [--rounds 5]

A prompt of 128 tokens and 48 new ones, greedy, random weights, all cores on both sides. The first token's seconds, with
the whole prompt before it, are told apart from the tokens a second of the other 47, and compilation from both. Medians.

No token of a batch comes sooner than the weights are read from memory: the limit is their bytes, and the cache's, over
the rate at which this machine reads, measured in the same run by a product of the word table and one vector.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from peer import Peer, serve

PROMPT, NEW, VOCABULARY = 128, 48, 50257


def ours():
    """A function of the batch size that gives the seconds of (the first token, the others, compilation)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxnlp  # noqa: F401  first: it settles the allocator
    from jaxnlp import decoding
    from jaxnlp.models import gpt
    from jaxnlp.tasks import generation

    model = gpt.GPT(gpt.VARIANTS["gpt2"])
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]

    def seconds(batch: int) -> tuple[float, float]:
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

    def run(batch: int) -> tuple[float, float, float]:
        if batch not in compilation:
            compiling.clear()
            seconds(batch)
            compilation[batch] = sum(compiling)
        return *seconds(batch), compilation[batch]

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


def read_rate() -> float:
    """Bytes a second."""
    import jax
    import jax.numpy as jnp

    table, vector = jnp.ones((50304, 768)), jnp.ones((768, 1))
    product, seconds = jax.jit(jnp.matmul), []
    for _ in range(9):
        start = time.perf_counter()
        product(table, vector).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return table.nbytes / statistics.median(seconds)


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
    weights = 4 * (50304 * 768 + 12 * 12 * 768**2)  # each read once a token; biases and norms are small beside them
    print("batch          first token   decoding              of the limit   compilation")
    for batch in args.batches:
        rows, peers, rates = [], [], []
        for _ in range(args.rounds if batch <= 8 else min(args.rounds, 3)):
            rows.append(run(batch))
            if peer:
                peers.append(peer.ask(batch=batch))
            rates.append(read_rate())
        cache = 4 * 2 * batch * 12 * 768 * (PROMPT + NEW / 2)
        limit = batch * statistics.median(rates) / (weights + cache)
        first, others, compilation = (statistics.median(column) for column in zip(*rows))
        speed = batch * (NEW - 1) / others
        print(
            f"{batch:5} ours    {first:8.2f} s {speed:8.1f} tokens/s  {speed / limit:13.0%}   {compilation:8.1f} s"
            f"    the machine reads {statistics.median(rates) / 1e9:.1f} GB/s"
        )
        if peer:
            first_, others_ = (statistics.median(column) for column in zip(*peers))
            speed_ = batch * (NEW - 1) / others_
            print(f"      theirs  {first_:8.2f} s {speed_:8.1f} tokens/s  {speed_ / limit:13.0%}")
            print(f"      ratio   {first_ / first:8.2f}x  {speed / speed_:8.2f}x", flush=True)
    if peer:
        peer.close()


if __name__ == "__main__":
    main()
