"""The blocked vocabulary cross entropy against the plain one: seconds and memory, forward and backward.

    python experiments/benchmarks/cross_entropy.py [--peer-python .venv-parity/bin/python] [--out cross_entropy.png]

In turns, medians, float32, gradients of the hidden states and of the table. Memory is what the compiled program needs
beside arguments and results (XLA's own account), and the peak of a process that does nothing else. plain is
`cross_entropy` of all logits, differentiated by JAX; the peer is torch.nn.functional.cross_entropy of a linear layer.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

from peer import Peer, in_turns, serve, timed

SIZES = {  # batch, length, width, rows of the table, words; rounds
    "8,192 tokens": ((8, 1024, 768, 50304, 50257), 2),
    "GPT-2 124M": ((4, 256, 768, 50304, 50257), 5),
    "char GPT": ((12, 64, 128, 128, 65), 50),
}
FORMS = ("blocked", "plain")


def ours(form: str, size: tuple[int, ...]):
    """(a function that gives the seconds of one forward and backward pass, bytes of temporaries)"""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxnlp.losses import blocked_cross_entropy, cross_entropy

    B, T, D, V, words = size

    def loss(hidden, table, labels):
        if form == "blocked":
            total, weight = blocked_cross_entropy(hidden, table, labels, vocab_size=words)
        else:
            logits = jnp.einsum("btd,vd->btv", hidden, table)
            total, weight = cross_entropy(jnp.where(jnp.arange(V) < words, logits, -jnp.inf), labels)
        return total / weight

    rng = np.random.default_rng(0)
    hidden, table = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((B, T, D), (V, D)))
    args = hidden, 0.02 * table, jnp.asarray(rng.integers(0, words, (B, T)), jnp.int32)
    gradients = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile()
    return timed(gradients, *args), gradients.memory_analysis().temp_size_in_bytes


def theirs():
    """The peer: a function of the size that gives the seconds of one forward and backward pass."""
    import torch

    torch.set_num_threads(os.cpu_count())

    def run(size: list[int]) -> float:
        B, T, D, _, words = size
        hidden = torch.randn(B * T, D, requires_grad=True)
        table = (0.02 * torch.randn(words, D)).requires_grad_()
        labels = torch.randint(0, words, (B * T,))
        start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(hidden @ table.T, labels)
        torch.autograd.grad(loss, (hidden, table))
        return time.perf_counter() - start

    return run


def peak(name: str, form: str) -> int:
    """Bytes resident at most in a process of its own that runs once."""
    command = [sys.executable, __file__, "--peak", name, form]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--out", help="a picture of the first row")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(theirs())
    if args.peak:
        name, form = args.peak
        ours(form, SIZES[name][0])[0]()
        return print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    # First, as a process starts with the peak of the one that it comes from.
    residents = {(name, form): peak(name, form) for name in SIZES for form in FORMS}
    peer = Peer(args.peer_python, __file__) if args.peer_python else None
    print("                                                            seconds  temporaries MiB  peak resident MiB")
    results = {}
    for name, (size, rounds) in SIZES.items():
        forms = {form: ours(form, size) for form in FORMS}
        if peer:
            forms["PyTorch"] = (lambda size=size: peer.ask(size=size)), float("nan")
        seconds = in_turns({form: run for form, (run, _) in forms.items()}, rounds)
        for form, (_, memory) in forms.items():
            resident = residents.get((name, form), float("nan"))
            row = results[name, form] = seconds[form], memory / 2**20, resident / 2**20
            print(f"{name:13} {size!s:32} {form:8} {row[0]:12.4f} {row[1]:16.0f} {row[2]:18.0f}", flush=True)
    if peer:
        peer.close()
    if args.out:
        draw(args.out, {form: results[next(iter(SIZES)), form] for form in FORMS})


def draw(out: str, rows: dict[str, tuple[float, ...]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained")
    titles = "Seconds", "Temporary memory, MiB", "Peak resident memory, MiB"
    for column, (axis, title) in enumerate(zip(axes, titles)):
        bars = axis.barh(list(rows), [row[column] for row in rows.values()], color=["C0", "C1"])
        axis.bar_label(bars, fmt="{:,.1f}" if column == 0 else "{:,.0f}", padding=2)
        axis.set(title=title, xticks=[])
        axis.margins(x=0.25)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    B, T, D, _, words = next(iter(SIZES.values()))[0]
    figure.suptitle(f"Cross entropy, forward and backward: {B * T:,} tokens, {words:,} words, width {D}, float32")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
