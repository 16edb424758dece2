"""A tiny experiment, and a program that trains it several times over, as one of several processes.

    python cluster.py '[{"arguments": ["--workdir", "runs/a", "--process", "0", …], "signal": "SIGTERM", "step": 2}, …]'

Prints a line of JSON for each training: its exit code, and the rows that it asked of batches. With `signal`, the
process sends it to itself after that step, or raises an error where it is "error". `patience` is the number of seconds
after which a process that is silent, or ends before the others, ends them. `skip`: so many texts are left out at the
start; `folder`: where the process runs.
"""

import json
import os
import signal
import sys
import time

import numpy as np

from jaxnlp import cli
from jaxnlp.data.batches import Windows
from jaxnlp.data.tokenizers import Characters
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training import loop, processes
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim

TEXTS = [{"text": f"{a} and {b} make {a + b}."} for a in range(12) for b in range(12)]


def experiment(base: str | None = None) -> Experiment:
    """Fine-tunes the run `base`, if there is one."""
    return Experiment(
        model=gpt.Config(n_layers=1, d_model=16, n_heads=2, vocab_size=40, n_positions=16, dropout=0.1),
        init=None if base is None else Pretrained(base),
        task=LanguageModeling(length=16),
        data=Data(
            train=TEXTS[int(os.environ.get("SKIP", 0)) : 120], validation=TEXTS[120:]
        ),  # 16 rows of validation and a few
        tokenizer=Characters() if base is None else None,
        optim=Optim(lr=1e-2),
        steps=16,
        batch_size=16,
        accumulate=2,
        ema=0.9,
        log_every=0.25,
        evaluate_every=0.5,
        save_every=0.5,
    )


def train(run: dict) -> int:
    """The exit code; prints the line."""
    rows = set()
    ask, update = Windows.__call__, loop.Progress.update

    def asked(self, step, part=slice(None)):
        own = np.arange(self.batch_size)[part].tolist()
        rows.add((own[0], own[-1] + 1))
        return ask(self, step, part)

    def disturbed(self, step, metrics):
        update(self, step, metrics)
        if step == run.get("step") and run["signal"] == "error":
            raise OSError("the disk is gone")
        if step == run.get("step"):
            os.kill(os.getpid(), getattr(signal, run["signal"]))
        if step >= run.get("step", step + 1):
            time.sleep(0.1)  # until all have heard of it

    os.environ["SKIP"] = str(run.get("skip", 0))
    os.chdir(run.get("folder", "."))
    Windows.__call__, loop.Progress.update = asked, disturbed
    try:
        code = cli.main(["train", __file__, *run["arguments"]])
    finally:
        Windows.__call__, loop.Progress.update = ask, update
    print(json.dumps({"code": code, "rows": sorted(rows)}), flush=True)
    return code


if __name__ == "__main__":
    runs = json.loads(sys.argv[1])
    if "patience" in runs[0]:
        processes.HEARTBEAT_SECONDS = processes.LEAVE_SECONDS = runs[0]["patience"]
    codes = [train(run) for run in runs]
    sys.exit(codes[-1])
