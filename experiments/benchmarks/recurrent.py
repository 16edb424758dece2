"""Seconds of recurrent layers, forward and with the backward pass, against PyTorch and Flax, in turns on one machine.

    python experiments/benchmarks/recurrent.py --peer-python .venv-parity/bin/python [--cells lstm,gru,rnn] [--rounds 7]
    python experiments/benchmarks/recurrent.py --memory

All: float32, one layer in one direction; the backward pass gives the gradients of parameters and inputs. Flax is its
nn.RNN over OptimizedLSTMCell, GRUCell and SimpleCell. The rate of matrix products (512 x 512 squares) is measured in
the same run; a layer's is 2 B T G H (D + H), three times that with the backward pass, over its seconds. --memory
compiles the backward pass of an LSTM at time 2,048 instead, plain and in blocks, and prints what it needs beside its
arguments.
"""

import argparse
import os
import time

from peer import Peer, in_turns, serve, timed

SIZES = ((64, 64, 512), (32, 256, 256), (1, 512, 256))  # batch, time, width
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def ours(cell: str, size: tuple[int, int, int]) -> dict[str, dict]:
    """Seconds of a call, by side and pass."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from jaxnlp.nn.recurrent import Recurrent

    B, T, H = size
    flax = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}[cell]
    x = jax.random.normal(jax.random.key(0), (B, T, H))
    sides = {}
    for name, model, first in (("ours", Recurrent(cell, H), lambda y: y[0]), ("Flax", nn.RNN(flax(H)), lambda y: y)):
        params = jax.jit(model.init)(jax.random.key(1), x)
        forward = jax.jit(lambda params, x, model=model, first=first: first(model.apply(params, x)))
        backward = jax.jit(jax.grad(lambda params, x, forward=forward: jnp.sum(forward(params, x)), argnums=(0, 1)))
        sides[name] = {"forward": timed(forward, params, x), "with backward": timed(backward, params, x)}
    return sides


def theirs():
    """The peer: torch.nn.LSTM, GRU and RNN."""
    import torch

    torch.set_num_threads(os.cpu_count())
    made = {}

    def answer(cell: str, size: list[int], form: str) -> float:
        B, T, H = size
        if form == "products":
            a = torch.randn(512, 512)
            start = time.perf_counter()
            for _ in range(50):
                a @ a
            return 50 * 2 * 512**3 / (time.perf_counter() - start)
        if (cell, *size) not in made:
            model = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell](H, H, batch_first=True)
            made.clear()
            made[cell, *size] = model, torch.randn(B, T, H, requires_grad=True)
        model, x = made[cell, *size]
        start = time.perf_counter()
        if form == "forward":
            with torch.inference_mode():
                model(x)
        else:
            model.zero_grad(set_to_none=True)
            x.grad = None
            model(x)[0].sum().backward()
        return time.perf_counter() - start

    return answer


def memory() -> None:
    import jax
    import jax.numpy as jnp

    from jaxnlp.nn.recurrent import Recurrent

    B, T, H = 16, 2048, 256
    x = jax.ShapeDtypeStruct((B, T, H), jnp.float32)
    for remat_steps in (None, 128, 64, 32):
        model = Recurrent("lstm", H, remat_steps=remat_steps)
        params = jax.eval_shape(model.init, jax.random.key(0), x)

        def loss(params, x, model=model):
            return jnp.sum(jnp.square(model.apply(params, x)[0]))

        found = jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis()
        print(f"  remat_steps = {remat_steps!s:5} {found.temp_size_in_bytes / 2**20:8.1f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--cells", default="lstm,gru,rnn")
    parser.add_argument("--sizes", default="0,1,2", help="which of the sizes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(theirs())
    if args.memory:
        return memory()
    peer = Peer(args.peer_python, __file__) if args.peer_python else None
    for cell in args.cells.split(","):
        for size in (SIZES[int(i)] for i in args.sizes.split(",")):
            sides = ours(cell, size)
            print(f"{cell} {size}: medians of {args.rounds} rounds")
            for form in ("forward", "with backward"):
                forms = {side: runs[form] for side, runs in sides.items()}
                if peer:
                    ask = lambda form, cell=cell, size=size: peer.ask(cell=cell, size=size, form=form)  # noqa: E731
                    forms |= {"PyTorch": lambda form=form, ask=ask: ask(form), "rate": lambda ask=ask: ask("products")}
                medians = in_turns(forms, args.rounds)
                B, T, H = size
                flops = 4 * B * T * GATES[cell] * H * H * (1 if form == "forward" else 3)
                line = "   ".join(f"{name} {m * 1e3:7.1f} ms" for name, m in medians.items() if name != "rate")
                times = "  ".join(
                    f"{m / medians['ours']:.2f}x {name}" for name, m in medians.items() if name in ("PyTorch", "Flax")
                )
                part = (
                    f"{flops / medians['ours'] / medians['rate']:.0%} of the rate {medians['rate'] / 1e9:.0f} GF/s"
                    if peer
                    else ""
                )
                print(f"  {form:14} {line}   {times}   {part}", flush=True)


if __name__ == "__main__":
    main()
