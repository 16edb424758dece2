"""Five-way questions: all answers of a question against its prompt read once, or each with its prompt on its own.

    python experiments/benchmarks/scoring.py [--model gpt2] [--questions 1000] [--turn 250]

Random tokens and weights, float32, all cores; prompts of 40 to 120 tokens and answers of 1 to 8. Both ways are the
package's own, in turns of some questions each, so that a machine's moods meet both. The first turn is taken twice, and
the second time counts: what the first took longer is tracing and compilation, which are told apart. What a later turn
compiles counts.
"""

import argparse
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--turn", type=int, default=250, help="questions of a turn")
    args = parser.parse_args()

    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxnlp.models import gpt
    from jaxnlp.tasks import scoring

    model = gpt.GPT(gpt.VARIANTS[args.model])
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    random = np.random.default_rng(0)

    def ids(low: int, high: int) -> list[int]:
        return random.integers(0, model.config.vocab_size, random.integers(low, high + 1)).tolist()

    questions = [(ids(40, 120), [ids(1, 8) for _ in range(5)]) for _ in range(args.questions)]

    def timed(trees) -> tuple[float, list[float]]:
        """Seconds, and the answers' log p in order."""
        began = time.perf_counter()
        found = scoring.of_tokens(model, params, trees)
        return time.perf_counter() - began, [float(log_p.sum()) for texts in found for log_p, _ in texts]

    totals, furthest = np.zeros(2), 0.0
    for start in range(0, len(questions), args.turn):
        part = questions[start : start + args.turn]
        ways = (part, [(prompt, [answer]) for prompt, answers in part for answer in answers])
        if not start:
            first = [timed(way)[0] for way in ways]
        (shared, a), (alone, b) = map(timed, ways)
        if not start:
            first = np.subtract(first, [shared, alone])
        totals += [shared, alone]
        furthest = max(furthest, float(np.max(np.abs(np.subtract(a, b)) / np.abs(b))))
        one, other = totals
        done = f"{start + len(part):6} questions   shared {one:8.1f} s   alone {other:8.1f} s   {other / one:.2f}x"
        print(done, flush=True)
    print(f"tracing and compilation of the first turn: shared {first[0]:.1f} s, alone {first[1]:.1f} s")
    print(f"log p agree to {furthest:.1e} of their size")


if __name__ == "__main__":
    main()
