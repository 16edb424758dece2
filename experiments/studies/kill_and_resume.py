"""Does a run that is killed give what an undisturbed one gives? Bit for bit, parameters and metrics.jsonl.

    python experiments/studies/kill_and_resume.py --kills 10

Trains a small GPT twice with the same command. The second time the process is killed with SIGKILL again and again: at
random moments, every other time in the middle of a save; then the command is given again. Timing apart, the two
folders must say the same. Prints where each kill fell; exits with 1 if anything differs.
"""

import argparse
import contextlib
import json
import pathlib
import random
import shlex
import subprocess
import sys
import tempfile
import time

import numpy as np

TIMING = ("seconds", "tokens_per_second")
EXPERIMENT = pathlib.Path(__file__).parents[1] / "quickstart_pretrain.py"
OPTIONS = shlex.split("""
    --steps 120 --batch-size 4 --task.length 64 --save-every 0.05 --evaluate-every 0.25 --ema 0.99
    --model.n-layers 2 --model.d-model 64 --model.n-heads 2 --model.dropout 0.1
""")


def start(workdir: pathlib.Path, arguments: list[str]) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "jaxnlp",
        "train",
        str(EXPERIMENT),
        "--workdir",
        str(workdir),
        *OPTIONS,
        *arguments,
    ]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"training ended with exit code {process.returncode}")


def kill(process: subprocess.Popen, workdir: pathlib.Path, in_a_save: bool, seconds: float) -> str | None:
    """Kills it once it trains: in its next save, or after so many seconds. Says where; None where it ended before."""
    known, at, since = folders(workdir), step(workdir), None
    while process.poll() is None:
        before, at = at, step(workdir)
        if since is None and at > before:  # a resumed run goes back first
            since = time.perf_counter()
        saving = {name for name, _ in folders(workdir) - known} - saved(workdir)  # new, and without its manifest
        if since and (saving if in_a_save else time.perf_counter() - since > seconds):
            process.kill()
            process.wait()
            return f"after step {step(workdir)}, {'in' if saving else 'not in'} a save"
        time.sleep(0.001)
    finish(process)
    return None


def saved(workdir: pathlib.Path) -> set[str]:
    return {p.stem for p in (workdir / "checkpoints").glob("*.json")}


def folders(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """Of all steps, whole or not; made again, a folder has another number."""
    found = set()
    for path in (workdir / "checkpoints").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                found.add((path.name.partition(".")[0], path.stat().st_ino))
    return found


def step(workdir: pathlib.Path) -> int:
    """Of the last whole line of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(whole[-1])["step"] if whole else 0


def result(workdir: pathlib.Path) -> tuple[list[dict], list[tuple[str, np.ndarray]]]:
    """metrics.jsonl without timing, and every array of the last checkpoint's parameters and their average."""
    import jax

    import jaxnlp

    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k not in TIMING} for line in metrics]
    arrays = []
    for ema in (False, True):
        params = jaxnlp.load(workdir, ema=ema).params
        arrays += [(jax.tree_util.keystr(k), np.asarray(x)) for k, x in jax.tree.leaves_with_path(params)]
    return metrics, arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    arguments = ["--data-dir", args.data_dir] if args.data_dir else []
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = pathlib.Path(folder) / "whole", pathlib.Path(folder) / "broken"
        process = start(whole, arguments)
        while process.poll() is None and not step(whole):
            time.sleep(0.01)
        began = time.perf_counter()
        finish(process)
        seconds = time.perf_counter() - began  # of training
        kills = 0
        while kills < args.kills:
            where = kill(start(broken, arguments), broken, kills % 2 == 1, chance.uniform(0, 2 * seconds / args.kills))
            if where is None:
                print("  the run ended before it could be killed")
                break
            kills += 1
            print(f"  kill {kills}: {where}; whole checkpoints: {sorted(map(int, saved(broken)))}", flush=True)
        finish(start(broken, arguments))
        (metrics, arrays), (expected, expected_arrays) = result(broken), result(whole)
        same = metrics == expected and all(
            a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(arrays, expected_arrays, strict=True)
        )
    print(f"{kills} kills, {len(metrics)} lines of metrics, {len(arrays)} arrays: {'equal' if same else 'DIFFERENT'}")
    return 0 if same and kills == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
