"""Causal attention, forward and backward: seconds and memory of its paths, by length and at the sizes of two GPTs.

    python experiments/benchmarks/attention.py [--peer-python .venv-parity/bin/python] [--out FILE.png] [--rounds 5]

All forms in turns, medians, float32. Memory is what the compiled program needs beside arguments and results (XLA's own
account). `jax.nn` is jax.nn.dot_product_attention; the peer is PyTorch's scaled_dot_product_attention.
"""

import argparse
import os
import time

from peer import Peer, in_turns, serve, timed

STEPS = {"char GPT": (12, 4, 64, 32), "GPT-2 124M": (4, 12, 256, 64)}  # batch, heads, length, head width
LENGTHS = {f"length {T}": (1, 4, T, 64) for T in (256, 512, 1024, 2048, 4096, 8192)}
FORMS = ("blocked", "plain", "jax.nn")


def ours(form: str, shape: tuple[int, ...]):
    """(a function that gives the seconds of one forward and backward pass, bytes of temporaries)"""
    import jax
    import jax.numpy as jnp

    from jaxnlp.nn.attention import Mask, attention

    def attend(q, k, v):
        if form == "jax.nn":
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # its order is [B, T, H, K]
            return jax.nn.dot_product_attention(q, k, v, is_causal=True).swapaxes(1, 2)
        return attention(q, k, v, Mask(causal=True), implementation=form)

    args = tuple(jax.random.normal(jax.random.key(i), shape, jnp.float32) for i in range(4))
    gradients = jax.jit(lambda q, k, v, dout: jax.vjp(attend, q, k, v)[1](dout)).lower(*args).compile()
    return timed(gradients, *args), gradients.memory_analysis().temp_size_in_bytes


def theirs():
    """The peer: a function of the shape that gives the seconds of one forward and backward pass."""
    import torch

    torch.set_num_threads(os.cpu_count())

    def run(shape: list[int]) -> float:
        q, k, v, dout = (torch.randn(shape, requires_grad=True) for _ in range(4))
        start = time.perf_counter()
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(out, (q, k, v), dout)
        return time.perf_counter() - start

    return run


def measure(shape: tuple[int, ...], rounds: int, peer: Peer | None) -> dict[str, tuple[float, float]]:
    """form -> (median seconds, bytes of temporaries)"""
    forms = {form: ours(form, shape) for form in FORMS}
    if peer:
        forms["PyTorch"] = (lambda: peer.ask(shape=shape)), float("nan")
    seconds = in_turns({form: run for form, (run, _) in forms.items()}, rounds)
    return {form: (seconds[form], memory) for form, (_, memory) in forms.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--out", help="a picture of seconds and memory by length")
    parser.add_argument("--rounds", type=int, default=5, help="three at most are taken from length 4096 on")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(theirs())

    peer = Peer(args.peer_python, __file__) if args.peer_python else None
    print("seconds and MiB           " + "".join(f"{form:>20}" for form in (*FORMS, *(["PyTorch"] if peer else []))))
    results = {}
    for name, shape in {**STEPS, **LENGTHS}.items():
        work = shape[0] * shape[1] * shape[2] ** 2
        rounds = min(args.rounds, 3) if shape[2] >= 4096 else args.rounds * max(1, 2**22 // work)
        results[name] = measure(shape, rounds, peer)
        cells = "".join(f"{s:11.4f} {memory / 2**20:8.1f}" for s, memory in results[name].values())
        print(f"{name:12} {shape!s:>16}{cells}", flush=True)
    if peer:
        peer.close()
    if args.out:
        draw(args.out, [shape[2] for shape in LENGTHS.values()], [results[name] for name in LENGTHS])


def draw(out: str, lengths: list[int], results: list[dict[str, tuple[float, float]]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for column, (axis, title, unit) in enumerate(zip(axes, ("Seconds", "Temporary memory, MiB"), (1, 2**20))):
        for form in results[0]:
            values = [result[form][column] / unit for result in results]
            if values[0] == values[0]:  # PyTorch's memory is not known
                axis.loglog(lengths, values, "o-", base=2, label=form)
        axis.set(title=title, xlabel="length")
        axis.set_xticks(lengths, [str(n) for n in lengths])
        axis.set_yscale("log", base=10)
        axis.grid(alpha=0.3)
        axis.legend()
    _, heads, _, width = LENGTHS["length 256"]
    figure.suptitle(f"Causal attention, forward and backward: {heads} heads of width {width}, float32")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
