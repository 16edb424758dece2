"""A benchmark's two sides in two processes that work in turns, so that noise of the machine meets both alike.

The peer runs under its own Python, with its own packages: it answers one JSON line for each JSON line that it is sent.
"""

import json
import subprocess
import sys
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
