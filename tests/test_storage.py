"""Runs and data in Google Cloud Storage, against an emulator: the same numbers as here, with lost connections too."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types
import warnings
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import jaxnlp
from jaxnlp import files
from jaxnlp.data.corpora import text_files
from jaxnlp.data.sources import TFDS, fingerprint, open_source
from jaxnlp.data.tokenizers import Characters
from jaxnlp.models import gpt
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training import lease, loop
from jaxnlp.training.checkpoint import CheckpointError, Checkpoints
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.folder import Folder, FolderError, locked
from jaxnlp.training.optim import Optim

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = (
    "false"  # asks Google, which the emulator is not, for the bucket's kind
)
pytest.importorskip("gcsfs", reason="needs jaxnlp[gcs]")
pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator, of jaxnlp[dev]")
from tests.emulator import Emulator

pytestmark = [
    # When one array cannot be written, Orbax closes its event loop under the others: TensorStore reports to it later.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # aiohttp's advice to gcsfs, of which users see nothing, about bodies over 1 MiB, which a trace may be
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),
]

TEXTS = [{"text": f"{a} and {b} make {a + b}.", "label": (a + b) % 3} for a in range(6) for b in range(10)]
TINY = Experiment(
    model=gpt.Config(n_layers=1, d_model=16, n_heads=2, vocab_size=40, n_positions=32, dropout=0.1),
    task=LanguageModeling(length=16, prompts=("1 and",)),
    data=Data(train=TEXTS[:50], validation=TEXTS[50:]),
    tokenizer=Characters(),
    optim=Optim(lr=1e-2),
    steps=4,
    batch_size=6,
    log_every=0.25,
    evaluate_every=0.5,
    save_every=0.25,
)
TIMING = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def store():
    """The clients read their endpoints once, so one emulator serves all tests."""
    emulator = Emulator()
    os.environ["STORAGE_EMULATOR_HOST"] = emulator.url  # gcsfs, google-cloud-storage
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = emulator.url
    os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = emulator.url  # ArrayRecord
    yield emulator
    emulator.close()


@pytest.fixture(autouse=True)
def _impatient(store, monkeypatch, tmp_path_factory):
    """Clients that try as often as ever, TensorStore apart, and wait a hundredth of the time in between."""
    import asyncio

    import gcsfs.retry
    from google.cloud.storage.retry import DEFAULT_RETRY
    from orbax.checkpoint._src.serialization import tensorstore_utils

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    quick = types.SimpleNamespace(**vars(asyncio) | {"sleep": lambda seconds: asyncio.sleep(seconds / 100)})
    monkeypatch.setattr(gcsfs.retry, "asyncio", quick)
    delays = {"max_retries": 6, "initial_delay": "10ms", "max_delay": "100ms"}
    monkeypatch.setitem(tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT, "gcs_request_retries", delays)
    retry = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.1).with_timeout(1)
    monkeypatch.setattr(lease.Lease, "_retry", staticmethod(lambda: retry))
    store.answer_all()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "here"
    return folder, jaxnlp.train(TINY, folder)


@pytest.fixture
def no_report(monkeypatch):
    """Drawing takes longer than four steps."""
    monkeypatch.setattr(loop, "write_report", lambda *args: None)


def metrics(workdir):
    return [{k: v for k, v in m.items() if k not in TIMING} for m in Folder(workdir).read_metrics()]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def upload(folder: pathlib.Path, to: str) -> None:
    files.locate(to)
    for path in folder.rglob("*"):
        if path.is_file():
            (epath.Path(to) / str(path.relative_to(folder))).write_bytes(path.read_bytes())


def test_a_run_in_the_store_equals_the_one_here(here):
    folder, expected = here
    run = jaxnlp.train(TINY, "gs://bucket/whole")
    assert_same(run.params, expected.params)
    assert metrics("gs://bucket/whole") == metrics(folder)
    names = {path.name for path in epath.Path("gs://bucket/whole").iterdir()}
    wanted = {path.name for path in folder.iterdir() if not path.name.startswith(("events", ".lock"))}
    assert wanted <= names
    assert ".lock" not in names
    lines = (epath.Path("gs://bucket/whole") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == Folder("gs://bucket/whole").read_metrics()
    (events,) = (path for path in epath.Path("gs://bucket/whole").iterdir() if path.name.startswith("events"))
    assert events.read_bytes().count(b"loss/train") == 4
    steps = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert sorted(path.name for path in epath.Path("gs://bucket/whole/checkpoints").iterdir()) == steps  # old ones went
    loaded = jaxnlp.load("gs://bucket/whole", step="best")
    assert loaded.generate(["1 and"], max_new_tokens=5, temperature=0) == expected.generate(
        ["1 and"], max_new_tokens=5, temperature=0
    )


def test_a_file_of_some_megabytes_comes_back():
    path, data = epath.Path("gs://bucket/large"), os.urandom(3_000_000)
    files.write_atomically(path, data)
    assert path.read_bytes() == data


def test_a_trace_goes_to_the_store_from_the_first_process_alone(monkeypatch):
    monkeypatch.setattr(loop.processes, "first", lambda: False)
    with loop._traced(Folder("gs://bucket/traced")):
        pass
    assert files.entries(epath.Path("gs://bucket/traced")) == []
    monkeypatch.undo()
    with loop._traced(Folder("gs://bucket/traced")):
        jax.block_until_ready(jax.numpy.ones(3))
    (trace,) = epath.Path("gs://bucket/traced").glob("plugins/profile/*/perfetto_trace.json.gz")
    assert trace.stat().length > 0


@pytest.mark.slow
def test_fine_tuning_from_the_store_predicts(here):
    upload(here[0], "gs://bucket/base")
    experiment = Experiment(
        task=Classification(labels=("0", "1", "2"), length=24),
        data=Data(train=TEXTS),
        init=Pretrained("gs://bucket/base", fresh="heads/.*"),
        steps=1,
        batch_size=4,
    )
    jaxnlp.train(experiment, "gs://bucket/tuned")
    assert [row["label"] in ("0", "1", "2") for row in jaxnlp.load("gs://bucket/tuned").predict(["1 and 2"])] == [True]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import tests.conftest
from tests import test_storage
from jaxnlp.training import lease, loop
lease.SECONDS = 5.0
def update(self, step, metrics):
    if step == 3:
        checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
original = loop._Loop.go
def go(self, *args):
    global checkpoints
    checkpoints = self.checkpoints
    return original(self, *args)
loop.Progress.update, loop._Loop.go = update, go
loop.train(test_storage.TINY, "gs://bucket/killed")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_killed_and_resumed_over_a_bad_line_equals_undisturbed(here, store):
    """The lease that the killed process leaves names it, holds others off, and runs out. Lost requests are repeated."""
    code = KILLED.format(root=str(pathlib.Path(__file__).parent.parent))
    process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait() == -signal.SIGKILL
    (epath.Path("gs://bucket/killed") / "checkpoints" / "3" / "debris").write_text("of a save that was cut off")
    try:
        with pytest.raises(FolderError, match=f"in use by process {process.pid} on .*, until"):
            jaxnlp.train(TINY, "gs://bucket/killed")
    finally:
        time.sleep(5.0)
    assert [m["step"] for m in metrics("gs://bucket/killed")] == [1, 2, 2]
    store.lose_each(11)
    with pytest.warns(UserWarning, match="step 3 is passed over for step 2: 3.json is missing: its save was cut off"):
        run = jaxnlp.train(TINY, "gs://bucket/killed")
    assert_same(run.params, here[1].params)
    assert metrics("gs://bucket/killed") == metrics(here[0])


def test_second_training_is_refused_with_the_holder():
    with (
        locked("gs://bucket/held"),
        pytest.raises(FolderError, match=rf"held is in use by process {os.getpid()} on \S+, until .* one training"),
    ):
        jaxnlp.train(TINY, "gs://bucket/held")
    with locked("gs://bucket/held"):
        pass


def test_a_renewed_lease_lasts_and_a_stale_one_is_taken_over(monkeypatch):
    """Who sleeps past the end of a lease finds out before writing, and leaves the other's lease alone."""
    monkeypatch.setattr(lease, "SECONDS", 0.4)
    first, second, third = (lease.Lease("gs://bucket/.lease", name) for name in ("first", "second", "third"))
    assert first.take() is None
    time.sleep(1)
    assert "first, until" in second.take()
    first._given_up.set()  # as if it were asleep
    first._thread.join()
    time.sleep(0.5)
    assert second.take() is None
    assert "taken over by second, until" in first.check()
    folder = Folder("gs://bucket/asleep", first)
    with pytest.raises(
        FolderError, match=r"asleep: this training has lost its lease on the folder, and stops: .*second"
    ):
        folder.append_metrics({"step": 1})
    first.give_up()
    assert second.check() is None
    assert "second" in third.take()
    second.give_up()
    assert third.take() is None
    third.give_up()


def test_of_two_that_take_a_free_lease_one_gets_it():
    first, second = (lease.Lease("gs://bucket/.race", name) for name in ("first", "second"))
    read, before = second._read, iter([(0, {})])  # as it was before the first one's put
    second._read = lambda: next(before, None) or read()
    assert first.take() is None
    assert "first" in second.take()
    first.give_up()


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_store_that_goes_away_harms_nothing(here, store):
    """The error says so, and the same command goes on from what was saved."""
    store.lose_all_after("gone/metrics.jsonl", given="gone/checkpoints/2.json")
    with pytest.raises(
        (files.StorageError, CheckpointError), match="gs://bucket/gone.* unharmed"
    ):  # whichever is first
        jaxnlp.train(TINY, "gs://bucket/gone")
    with pytest.raises(files.StorageError, match="Google Cloud Storage failed after several attempts"):
        jaxnlp.load("gs://bucket/gone")
    store.answer_all()
    epath.Path("gs://bucket/gone/.lock").unlink()  # it would run out
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*step 3 is passed over for step 2: .* its save was cut off")
        assert jaxnlp.load("gs://bucket/gone").step in (2, 3)
        assert_same(jaxnlp.train(TINY, "gs://bucket/gone").params, here[1].params)
    assert metrics("gs://bucket/gone") == metrics(here[0])


@flax.struct.dataclass
class State:
    step: Any
    params: Any


@pytest.mark.parametrize("lost", ["2/params", "2.json"])  # what TensorStore puts, and gcsfs
def test_a_save_that_fails_leaves_the_one_before(store, lost):
    name, state = f"save-{lost.replace('/', '-')}", State(jnp.int32(1), {"table": jnp.arange(12.0)})
    checkpoints = Checkpoints(f"gs://bucket/{name}")
    checkpoints.save(1, state)
    checkpoints.wait()
    store.lose_all_after(f"{name}/{lost}", given=f"{name}/1.json")
    with pytest.raises(CheckpointError, match="step 2 could not be saved .* older checkpoints are unharmed"):
        checkpoints.save(2, state)
        checkpoints.wait()
    store.answer_all()
    checkpoints.close()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*step 2 is passed over for step 1: .* its save was cut off")
        restored, step = Checkpoints(checkpoints.directory).restore(state)
    assert step == 1
    assert_same(restored, state)


def test_a_damaged_checkpoint_is_passed_over(here):
    upload(here[0], "gs://bucket/damaged")
    checkpoints = epath.Path("gs://bucket/damaged/checkpoints")
    (data,) = (checkpoints / "4" / "params" / "d").iterdir()
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match=r"step 4 is passed over for step 3: 4/params/d/\w+ is damaged"):
        assert jaxnlp.load("gs://bucket/damaged").step == 3
    assert Checkpoints("gs://bucket/damaged/checkpoints").begun


@pytest.fixture(scope="module")
def data(tmp_path_factory, store):
    """The same set here and there."""
    folder = tmp_path_factory.mktemp("tfds")
    for part, numbers in (("train", range(40)), ("test", range(40, 50))):
        (folder / f"{part}.txt").write_text("\n".join(f"{i} and {i} make {2 * i}." for i in numbers))
    with_files = {part: [str(folder / f"{part}.txt")] for part in ("train", "test")}
    text_files.prepare("sums", with_files, data_dir=str(folder / "data"), unit="line")
    upload(folder / "data", "gs://bucket/data")
    return str(folder / "data"), "gs://bucket/data"


def test_data_in_the_store_equal_those_here(data):
    here, there = data
    for split in ("train", "test", "train[10:20]+test"):
        assert list(open_source(TFDS("sums", split), there)) == list(open_source(TFDS("sums", split), here))
        assert fingerprint(TFDS("sums", split), there) == fingerprint(TFDS("sums", split), here)


@pytest.mark.slow
def test_training_on_data_in_the_store(data, tmp_path):
    experiment = dataclasses.replace(TINY, data=Data(train=TFDS("sums"), validation=TFDS("sums", "test")), steps=2)
    runs = [jaxnlp.train(experiment, tmp_path / str(i), data_dir=folder) for i, folder in enumerate(data)]
    assert_same(runs[0].params, runs[1].params)
    assert metrics(tmp_path / "0") == metrics(tmp_path / "1")


def test_a_missing_or_shortened_shard_is_named(data):
    """ArrayRecord alone would read it as empty."""
    upload(pathlib.Path(data[0]), "gs://bucket/holes")
    (shard,) = (p for p in epath.Path("gs://bucket/holes/sums/1.0.0").iterdir() if "train.array_record" in p.name)
    whole = shard.read_bytes()
    shard.unlink()
    name = r"gs://bucket/holes/sums/1.0.0/sums-train.array_record-00000-of-00001"
    with pytest.raises(files.StorageError, match=rf"not whole; copy it again:\n  {name}: missing, expected 40 records"):
        open_source(TFDS("sums"), "gs://bucket/holes")
    assert len(open_source(TFDS("sums", "test"), "gs://bucket/holes")) == 10
    shard.write_bytes(whole[:-1000])
    with pytest.raises(files.StorageError, match=rf"{name}: found 0, expected 40 records"):
        open_source(TFDS("sums"), "gs://bucket/holes")


@pytest.mark.parametrize("name", ["none_such", "python_docs"])
def test_what_is_not_prepared_in_the_store_is_not_prepared_there(name):
    with pytest.raises(ValueError, match=rf"set '{name}': not in gs://bucket/data.*cp -r DIR/{name} gs://bucket/data/"):
        open_source(TFDS(name), "gs://bucket/data")


def test_a_folder_or_bucket_that_is_not_there():
    with pytest.raises(FolderError, match="gs://bucket/nowhere: no such folder"):
        jaxnlp.load("gs://bucket/nowhere")
    with pytest.raises(files.StorageError, match="gs://no-such-bucket/run: "):
        jaxnlp.train(TINY, "gs://no-such-bucket/run")
