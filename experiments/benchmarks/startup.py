"""Seconds from the command to the first step's end, with and without programs compiled before.

    python experiments/benchmarks/startup.py [--rounds 5] [EXPERIMENT]

Runs `jaxnlp train EXPERIMENT` until metrics.jsonl has its first line, with log_every at one step. Data is prepared and
tokenised before. Cold: an empty compilation cache each time; warm: the one that the round before has filled. In turns.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

EXPERIMENTS = pathlib.Path(__file__).parents[1]


def seconds(experiment: str, compiled: str) -> float:
    with tempfile.TemporaryDirectory() as workdir:
        lines = pathlib.Path(workdir) / "metrics.jsonl"
        path = EXPERIMENTS / f"{experiment}.py"
        command = [sys.executable, "-m", "jaxnlp", "train", str(path), "--workdir", workdir, "--log-every", "0.0001"]
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled},
        )
        while not (lines.exists() and lines.read_text().count("\n")):
            if process.poll() is not None:
                raise RuntimeError(f"training ended with exit code {process.returncode}")
            time.sleep(0.01)
        taken = time.perf_counter() - start
        process.kill()
        process.wait()
        return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="quickstart_pretrain")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as kept:
        seconds(args.experiment, kept)
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as empty:
                times["cold"].append(seconds(args.experiment, empty))
            times["warm"].append(seconds(args.experiment, kept))
    for name, taken in times.items():
        print(f"{name}: {statistics.median(taken):.1f} s  [{min(taken):.1f} … {max(taken):.1f}]")


if __name__ == "__main__":
    main()
