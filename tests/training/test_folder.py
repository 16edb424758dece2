"""A run's folder: one training at a time, files that are whole, metrics that continue."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from etils import epath

from jaxnlp.data.tokenizers import Characters
from jaxnlp.files import StorageError, write_atomically
from jaxnlp.training.folder import Folder, FolderError, locked, open_run


def test_second_training_is_refused_with_the_holder(tmp_path):
    with locked(tmp_path / "a" / "run") as folder:
        assert folder.path.exists()
        message = rf"run is in use by process {os.getpid()} on \S+; .* one training"
        with pytest.raises(FolderError, match=message), locked(tmp_path / "a" / "run"):
            pass
    with locked(tmp_path / "a" / "run"):
        pass


def test_lock_is_freed_when_its_holder_is_killed(tmp_path):
    code = f"""
from jaxnlp.training.folder import locked
with locked({str(tmp_path)!r}):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(FolderError, match=f"in use by process {process.pid} on"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_folder_that_is_no_run_says_what_it_lacks(tmp_path):
    with pytest.raises(FolderError, match="no such folder"):
        open_run(tmp_path / "none")
    (tmp_path / "experiment.json").touch()
    with pytest.raises(FolderError, match=r"is no run: it lacks tokenizer.json, checkpoints"):
        open_run(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "checkpoints").mkdir()
    assert open_run(tmp_path).path == tmp_path
    assert open_run(tmp_path).metrics == epath.Path(tmp_path / "metrics.jsonl")


def test_damaged_experiment_names_the_file(tmp_path):
    (tmp_path / "experiment.json").write_text('{"type":')
    with pytest.raises(FolderError, match=r"experiment.json cannot be read: "):
        Folder(tmp_path).read_experiment()


def test_resumed_metrics_equal_the_undisturbed_ones(tmp_path):
    records = [
        {"step": step, "split": split, "loss": 1 / step} for step in (1, 2, 3) for split in ("train", "validation")
    ]
    undisturbed, resumed = Folder(tmp_path / "a"), Folder(tmp_path / "b")
    for folder in (undisturbed, resumed):
        folder.path.mkdir()
        folder.cut_metrics(0)  # nothing there yet
    for record in records:
        undisturbed.append_metrics(record)
    for record in records[:5]:  # killed in the middle of a line, after the checkpoint of step 2
        resumed.append_metrics(record)
    with resumed.metrics.open("a") as file:
        file.write('{"step": 3, "spl')
    assert resumed.read_metrics() == records[:5]
    resumed.cut_metrics(2)
    for record in records[4:]:
        resumed.append_metrics(record)
    assert resumed.metrics.read_bytes() == undisturbed.metrics.read_bytes()
    assert resumed.read_metrics() == records
    assert sorted(path.name for path in resumed.path.iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", "3"])
def test_metrics_that_cannot_be_read_name_the_line(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 1}) + "\n" + line + "\n" + json.dumps({"step": 2}) + "\n"
    )
    with pytest.raises(FolderError, match=r"metrics.jsonl, line 2: found"):
        Folder(tmp_path).cut_metrics(1)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "experiment.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tokenizer_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """A run that goes on writes it anew."""
    path, tokenizer = tmp_path / "tokenizer.json", Characters().build(["ab"])
    tokenizer.save(path)
    before = path.read_text()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        Characters().build(["abc"]).save(path)
    assert path.read_text() == before


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs://", "gs:///run"])
def test_other_stores_and_no_bucket_are_refused(path):
    with pytest.raises(ValueError, match=rf"{path}: allowed: a folder of this machine, or gs://bucket/path"):
        Folder(path)


def test_the_store_without_its_client_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r"gs://bucket/run: .* needs its client: pip install 'jaxnlp\[gcs\]'"):
        open_run("gs://bucket/run")
