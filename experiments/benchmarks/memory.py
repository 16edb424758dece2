"""Peak memory of a 124M GPT-2 training step, by what the backward pass recomputes.

    python experiments/benchmarks/memory.py [--batch 4] [--length 256] [--steps 3]

For each of remat = none, dots, full, in a process of its own: what the compiled step needs beside its arguments, and
with them (XLA's own account, which `jaxnlp plan` reads too); what the process held at most while it trained, beyond
what Python, JAX and the compiler had held before (Linux); how far the account is from it; the peak of all; and the
least seconds of so many steps. With --steps 0 it only compiles.
"""

import argparse
import ctypes
import json
import pathlib
import resource
import subprocess
import sys
import time

FORMS = ("none", "dots", "full")


def measure(remat: str, batch: int, length: int, steps: int) -> dict[str, float]:
    import dataclasses

    import jax
    import numpy as np

    from jaxnlp.models import gpt
    from jaxnlp.tasks.language_modeling import LanguageModeling
    from jaxnlp.training.optim import Optim, optimizer
    from jaxnlp.training.step import Trainer

    config = dataclasses.replace(gpt.VARIANTS["gpt2"], scan=True, remat=remat, dropout=0.0, attention_dropout=0.0)
    model = gpt.GPT(config)
    optim = Optim()
    trainer = Trainer(model, LanguageModeling(length=length), optim, optimizer(optim, 1000))
    ids = np.zeros((batch, length), np.int32)
    data = {"input_ids": ids, "labels": ids, "weights": np.ones(ids.shape, np.float32)}
    make = jax.jit(lambda key: trainer.init(model.init(key, ids)["params"], data))
    state = make(jax.random.key(0)) if steps else jax.eval_shape(make, jax.random.key(0))
    step = jax.jit(trainer.train_step, donate_argnums=0).lower(state, data).compile()
    found = step.memory_analysis()
    account = found.temp_size_in_bytes + found.argument_size_in_bytes
    account += found.output_size_in_bytes - found.alias_size_in_bytes
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) if steps else 0
    overall = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ctypes.CDLL(None).malloc_trim(0)  # what the initialisation left free would be used again, and not be seen
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS") - size
    seconds = [float("inf")]
    for _ in range(steps):
        start = time.perf_counter()
        state, sums = jax.block_until_ready(step(state, data))
        seconds.append(time.perf_counter() - start)
    held = resident("VmHWM")
    sizes = {"temporary": found.temp_size_in_bytes, "account": account}
    sizes |= {"held": held - before, "peak": max(held, overall)}
    return {name: size / 2**30 for name, size in sizes.items()} | {"seconds": min(seconds)}


def resident(name: str) -> int:
    """Bytes that Linux has of this process under that name."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--remat", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.remat:
        return print(json.dumps(measure(args.remat, args.batch, args.length, args.steps)))
    print(f"GPT-2 124M, {args.batch} x {args.length}, float32, AdamW")
    print("remat   temporaries GiB   account GiB   held GiB    error   peak resident GiB   seconds a step")
    for remat in FORMS:
        sizes = ["--batch", str(args.batch), "--length", str(args.length), "--steps", str(args.steps)]
        command = [sys.executable, __file__, "--remat", remat, *sizes]
        m = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        error = m["account"] / m["held"] - 1 if args.steps else float("nan")
        print(
            f"{remat:6} {m['temporary']:16.2f} {m['account']:13.2f} {m['held']:10.2f} {error:8.1%} {m['peak']:19.2f} "
            f"{m['seconds']:16.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
