"""A run's folder: what lies where, who may write to it, and its small files.

    experiment.json    what was asked for                       written once
    tokenizer.json     the tokenizer as it was trained          written once
    data.json          by split, a hash of the examples         written once
    checkpoints/       see checkpoint.py
    metrics.jsonl      one JSON object a line: step, split, metrics, timing
    events.*           TensorBoard
    report.html        the curves and samples
    .lock              held while a training writes here; names its process

Files are replaced whole (written beside, synced, renamed), so a killed process leaves the old or the new one. Only
metrics.jsonl grows in place; `cut_metrics` mends it on resume.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from jaxnlp.training.experiment import Experiment, from_json, to_json
from jaxnlp.training.files import is_remote, write_atomically


class FolderError(RuntimeError):
    """A folder that is no run, is in use, or holds a file that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """The paths of one run. It is trained in on this machine; to load, it may be remote: gs://bucket/runs/bert."""

    path: epath.Path

    def __init__(self, path: epath.PathLike):
        object.__setattr__(self, "path", epath.Path(path).expanduser())

    @property
    def experiment(self) -> epath.Path:
        return self.path / "experiment.json"

    @property
    def tokenizer(self) -> epath.Path:
        return self.path / "tokenizer.json"

    @property
    def data(self) -> epath.Path:
        return self.path / "data.json"

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> epath.Path:
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> epath.Path:
        return self.path / "report.html"

    def missing(self) -> list[str]:
        """The parts without which this is no run."""
        return [path.name for path in (self.experiment, self.tokenizer, self.checkpoints) if not path.exists()]

    def write_experiment(self, experiment: Experiment) -> None:
        write_atomically(self.experiment, to_json(experiment))

    def read_experiment(self) -> Experiment:
        try:
            return from_json(self.experiment.read_text())
        except ValueError as error:
            raise FolderError(f"{self.experiment} cannot be read: {error}") from error

    def write_data(self, fingerprints: Mapping[str, str]) -> None:
        write_atomically(self.data, json.dumps(fingerprints, indent=2) + "\n")

    def check_data(self, fingerprints: Mapping[str, str]) -> None:
        """ValueError if the examples are not those that the run began with."""
        began = json.loads(self.data.read_text()) if self.data.exists() else fingerprints
        changed = [f"data.{split}" for split in began if began[split] != fingerprints.get(split)]
        if changed:
            raise ValueError(
                f"{', '.join(changed)}: the examples are not those with which the run in {self.path} began; allowed:"
                " the same ones, or another folder"
            )

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds a line. Those of a step come before its checkpoint is saved, so that a resumed run finds them all."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines; a last one that is still being written is left out."""
        return [json.loads(line) for line in self._whole_lines()]

    def cut_metrics(self, step: int) -> None:
        """Drops the lines after `step` and a half-written last one: the file as it was when that step was reached."""
        lines = self._whole_lines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        if self.metrics.exists():
            write_atomically(self.metrics, "".join(kept))

    def _whole_lines(self) -> list[str]:
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line)["step"]
            except (ValueError, TypeError, KeyError) as error:
                found = line.strip()[:80]
                message = f"{self.metrics}, line {number}: found {found!r}; allowed: a JSON object with a step"
                raise FolderError(message) from error
        return lines


def open_run(path: epath.PathLike) -> Folder:
    """The folder of a run that was started; FolderError if it is none."""
    folder = Folder(path)
    if not folder.path.exists():
        raise FolderError(f"{folder.path}: no such folder; allowed: the folder of a run, as `jaxnlp train` makes it")
    if missing := folder.missing():
        raise FolderError(f"{folder.path} is no run: it lacks {', '.join(missing)}")
    return folder


@contextlib.contextmanager
def locked(path: epath.PathLike) -> Iterator[Folder]:
    """Makes the folder if need be and holds it for one training; a second one is refused.

    The system frees the lock when the process ends, however it ends.
    """
    if is_remote(path):  # object stores have no locks
        raise ValueError(f"workdir={os.fspath(path)}; allowed: a folder of this machine")
    folder = Folder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FolderError(f"{folder.path} is in use by {holder}; a folder takes one training at a time") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield folder
        finally:
            file.truncate(0)
