"""A run's folder: what lies where, who may write to it, and its small files.

    experiment.json    what was asked for                       written once
    tokenizer.json     the tokenizer as it was trained          written once
    data.json          by split, a hash of the examples         written once
    base.json          of a run with LoRA: what it adapts       written once, and by whoever moves that
    checkpoints/       see checkpoint.py
    metrics.jsonl      one JSON object a line: step, split, metrics, timing
    events.*           TensorBoard
    report.html        the curves and samples
    .lock              held while a training writes here; names its process. In the store: a lease, see lease.py

It lies on this machine or in Google Cloud Storage, gs://bucket/runs/bert. Files are replaced whole, so a killed process
leaves the old or the new one. Only a metrics.jsonl on this machine grows in place; `cut_metrics` mends it on resume.
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

from jaxnlp.files import explained, is_remote, locate, make_folder, write_atomically
from jaxnlp.training.experiment import Experiment, from_json, to_json
from jaxnlp.training.lease import Lease


class FolderError(RuntimeError):
    """A folder that is no run, is in use, or holds a file that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """The paths of one run, and the lease of the training that holds it, where the store needs one."""

    path: epath.Path
    lease: Lease | None = dataclasses.field(default=None, compare=False)

    def __init__(self, path: epath.PathLike, lease: Lease | None = None):
        object.__setattr__(self, "path", locate(path))
        object.__setattr__(self, "lease", lease)

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
    def base(self) -> epath.Path:
        return self.path / "base.json"

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

    def write_base(self, known: Mapping[str, str] | None) -> None:
        if known is not None:
            write_atomically(self.base, json.dumps(known, indent=2) + "\n")

    def read_base(self) -> dict[str, str]:
        """{"run", "sha256"} of what is adapted here; FolderError where that is not known."""
        try:
            known = json.loads(self.base.read_text())
            return {name: str(known[name]) for name in ("run", "sha256")}
        except (OSError, ValueError, TypeError, KeyError) as error:
            found = f"{self.base}, which says what this run with LoRA adapts, cannot be read: {error!r}"
            raise FolderError(f'{found}; allowed: {{"run", "sha256"}}, as the run began with them') from error

    def append_metrics(self, *records: Mapping[str, Any]) -> None:
        """Adds lines. Those of a step come before its checkpoint is saved, so that a resumed run finds them all.

        The store appends nothing: there the file is written anew, so several lines at once are better than one by one.
        """
        self.check_held()
        lines = "".join(json.dumps(record) + "\n" for record in records)
        if is_remote(self.path):
            write_atomically(self.metrics, "".join(self._whole_lines()) + lines)
            return
        with self.metrics.open("a") as file:
            file.write(lines)

    def check_held(self) -> None:
        """FolderError if the lease was lost: another training may be writing here."""
        if self.lease is not None and (how := self.lease.check()) is not None:
            raise FolderError(f"{self.path}: this training has lost its lease on the folder, and stops: {how}")

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

    The system frees the lock when the process ends, however it ends; a lease in the store is freed, or runs out.
    StorageError if the store is away for good, now or later.
    """
    folder = Folder(path)
    hold = _leased if is_remote(path) else _flocked
    with explained(path), hold(folder, f"process {os.getpid()} on {socket.gethostname()}") as held:
        yield held


@contextlib.contextmanager
def _leased(folder: Folder, holder: str) -> Iterator[Folder]:
    lease = Lease(folder.path / ".lock", holder)
    if (other := lease.take()) is not None:
        raise _in_use(folder, other)
    try:
        yield Folder(folder.path, lease)
    finally:
        lease.give_up()


@contextlib.contextmanager
def _flocked(folder: Folder, holder: str) -> Iterator[Folder]:
    make_folder(folder.path)
    with open(folder.path / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _in_use(folder, file.read().strip() or "another process") from None
        file.truncate(0)
        file.write(f"{holder}\n")
        file.flush()
        try:
            yield folder
        finally:
            file.truncate(0)


def _in_use(folder: Folder, holder: str) -> FolderError:
    return FolderError(f"{folder.path} is in use by {holder}; a folder takes one training at a time")
