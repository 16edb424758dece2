"""What pmap and a mesh cost on one device, where they have nothing to do, against plain jit: in turns.

    python experiments/benchmarks/parallel.py [--rounds 15] [--steps 40]

The character model's step (12 x 64 tokens), float32, AdamW, one step a call. The ratio is of medians.
"""

import argparse
import time

from peer import in_turns


def form(name: str, steps: int):
    """A function that takes so many steps under that form and gives the seconds of each."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxnlp.models import gpt
    from jaxnlp.tasks.language_modeling import LanguageModeling
    from jaxnlp.training import parallel
    from jaxnlp.training.optim import Optim, optimizer
    from jaxnlp.training.step import Trainer

    layout, config, optim = parallel.layout(name), gpt.VARIANTS["char"], Optim()
    trainer = Trainer(config.build(), LanguageModeling(length=64), optim, optimizer(optim, 1000), axis=layout.axis)
    ids = np.random.default_rng(0).integers(0, 65, (1, 12, 65), dtype=np.int32)
    ones = np.ones((1, 12, 64), np.float32)
    batch = {"input_ids": ids[..., :-1], "labels": ids[..., 1:], "weights": ones, "bytes": ones.sum(-1)}
    first = jax.tree.map(lambda x: x[0], batch)
    state = layout.make(
        lambda key: trainer.init(trainer.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"], first),
        jax.random.key(0),
    )
    update = layout.update(trainer.train_steps)

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, sums = update(state, layout.place(batch, 12))
        jax.block_until_ready(sums)
        return (time.perf_counter() - start) / steps

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    seconds = in_turns({name: form(name, args.steps) for name in ("jit", "pmap", "data=1")}, args.rounds)
    for name, s in seconds.items():
        print(f"{name:8} {s * 1e3:7.2f} ms a step   {s / seconds['jit']:.3f} of jit")


if __name__ == "__main__":
    main()
