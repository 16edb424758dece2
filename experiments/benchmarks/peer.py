"""A benchmark's sides work in turns, so that noise of the machine meets all alike; the peer in a process of its own.

The peer runs under its own Python, with its own packages: it answers one JSON line for each JSON line that it is sent.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


class Peer:
    """A process that serves requests: `ask(name=value)` sends one and waits for the answer."""

    def __init__(self, python: str, file: str, *args: str):
        self.process = subprocess.Popen(
            [python, file, "--serve", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> Any:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer stopped with exit code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(answer: Callable[..., Any]) -> None:
    """The peer's side: answers requests until the other side closes."""
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def in_turns(forms: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each form gives in so many rounds, after one to warm up."""
    turns = [{name: run() for name, run in forms.items()} for _ in range(rounds + 1)]
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in forms}


def timed(function: Callable[..., Any], *args: Any) -> Callable[[], float]:
    """A call's seconds, until the arrays that it gives are there."""
    import jax

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        return time.perf_counter() - start

    return run
