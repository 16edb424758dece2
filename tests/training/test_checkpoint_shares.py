"""A checkpoint of several processes: each checks its share, and the first vouches for the whole."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax
import jax
import jax.numpy as jnp
import pytest
from etils import epath

from jaxnlp.training import checkpoint
from jaxnlp.training.checkpoint import CheckpointError, Checkpoints


@flax.struct.dataclass
class State:
    step: Any
    params: Any


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """commit(finish) ends the save of step 1 in two processes, played by threads; what each ended in.

    `finish` takes the process's number, as Orbax's part; `client` is what they talk through.
    """
    here, checkpoints = threading.local(), Checkpoints(tmp_path)
    checkpoints.save(1, State(jnp.int32(1), {"kernel": jnp.arange(6.0), "bias": jnp.zeros(3)}))
    checkpoints.wait()
    (manifest,) = checkpoints._manifests()
    (tmp_path / "1.json").unlink()
    monkeypatch.setattr(jax, "process_index", lambda: getattr(here, "index", 0))

    def run(finish, client):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(checkpoint.processes.distributed.global_state, "client", client)

        def one(index):
            here.index = index
            checkpoints._commit(lambda: finish(index), manifest, "save")

        with ThreadPoolExecutor(2) as pool:
            return [ended.exception() for ended in [pool.submit(one, index) for index in range(2)]]

    yield run
    monkeypatch.undo()
    checkpoints.close()


class Coordinator:
    """The part of JAX's client that processes talk through."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 10)
            return self.values[key]

    def key_value_delete(self, key):
        del self.values[key]


def test_a_save_ends_in_all_processes_once_it_is_whole_and_each_reads_a_share(commit, tmp_path, monkeypatch):
    expected = {name: checkpoint._sums(path) for name, path in checkpoint._files(epath.Path(tmp_path / "1"))}
    read, real = {0: 0, 1: 0}, checkpoint._sha256
    seen = []

    def slow(path):
        read[jax.process_index()] += 1
        time.sleep(0.02 if jax.process_index() == 0 else 0)
        return real(path)

    class Watched(Coordinator):
        def blocking_key_value_get(self, key, milliseconds):
            value = super().blocking_key_value_get(key, milliseconds)
            seen.append((jax.process_index(), (tmp_path / "1.json").exists()))
            return value

    monkeypatch.setattr(checkpoint, "_sha256", slow)
    assert commit(lambda index: None, Watched()) == [None, None]
    assert sorted(seen) == [(0, False), (1, True)]  # the second went on once the manifest was there
    assert json.loads((tmp_path / "1.json").read_text())["manifest"]["files"] == expected
    assert abs(read[0] - read[1]) <= 1


@pytest.mark.parametrize("failing", [0, 1])
def test_a_save_that_fails_in_one_process_fails_in_all(failing, commit, tmp_path):
    client = Coordinator()

    def finish(index):
        if index == failing:
            if index == 0:  # which takes back what the other one reads
                client.blocking_key_value_get("save/1", 0)
            raise OSError("No space left")

    ends = commit(finish, client)
    assert all(isinstance(error, CheckpointError) for error in ends)
    assert "be saved" in str(ends[failing]) and f"process {failing} failed: OSError: No space left" in str(
        ends[1 - failing]
    )
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_fails_leaves_the_step_that_the_first_has_vouched_for(commit, tmp_path):
    class Deaf(Coordinator):
        def blocking_key_value_get(self, key, milliseconds):
            value = super().blocking_key_value_get(key, milliseconds)
            if jax.process_index() == 1:
                raise OSError("connection reset")
            return value

    first, second = commit(lambda index: None, Deaf())
    assert first is None and isinstance(second, CheckpointError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.json"]
