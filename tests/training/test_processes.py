"""Several processes that train one model: they give what one process gives, stop together, and never wait for ever.

The processes are real ones on this machine, with virtual devices of their own: see cluster.py.
"""

import dataclasses
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import pytest
from etils import epath

from jaxnlp.training import checkpoint, processes

PROGRAM = pathlib.Path(__file__).parent / "cluster.py"
MESH = "data=2,fsdp=2,tensor=2"


def arguments(workdir, parallel, *more):
    return {"arguments": ["--workdir", str(workdir), "--parallel", parallel, *more]}


@pytest.fixture(scope="module")
def two(cluster, tmp_path_factory):
    """Two processes with 4 devices each: what differs is refused, then the second one gets SIGTERM."""
    folder = tmp_path_factory.mktemp("two")
    runs = []
    for i, lr in enumerate(("1e-2", "2e-2")):
        (folder / f"host {i}").mkdir()
        settings = arguments(folder / "settings", "pmap", "--optim.lr", lr)
        data = arguments(folder / "data", "pmap") | {"skip": i}
        runs.append([settings, data, arguments("run", "pmap") | {"folder": str(folder / f"host {i}")}])
    disturbed = arguments(folder / "run", MESH)
    return folder, cluster(4, [[*runs[0], disturbed], [*runs[1], disturbed | {"signal": "SIGTERM", "step": 2}]])


@pytest.mark.slow
@pytest.mark.parametrize(("run", "message"), [
    (0, r'process 1 has another command than process 0: "lr": 0.02 instead of "lr": 0.01; allowed: the same in all'),
    (1, r'process 1 has another set of examples than process 0: "train": "\w+" instead of "train": "\w+"; allowed'),
    (2, r"host 1/run: process 1 on \S+ does not see what process 0 wrote there; allowed: a folder that all .* share"),
], ids=["settings", "data", "folder"])  # fmt: skip
def test_what_differs_between_processes_is_refused(run, message, two):
    folder, ends = two
    assert [lines[run]["code"] for _, lines, _ in ends] == [2, 2]
    assert all(re.search(message, err) for _, _, err in ends)
    assert not (folder / "settings").exists()
    assert [p.name for p in (folder / "host 0/run").iterdir()] == [".lock"]


def test_sigterm_to_one_saves_the_same_step_in_all(two):
    folder, ends = two
    assert [code for code, _, _ in ends] == [75, 75], ends
    stopped = {int(re.search(r"terminated at step (\d+): saved", err)[1]) for _, _, err in ends}
    assert len(stopped) == 1
    assert 2 <= max(stopped) < 16
    assert [p.stem for p in (folder / "run/checkpoints").glob("*.json")] == [str(*stopped)]


def test_two_processes_equal_one(two, train_here, cluster, assert_same_run, tmp_path):
    """The run goes on after SIGTERM and ends as one that was never disturbed, in one process.

    A later checkpoint, of which a file is damaged that the second process reads, is passed over by both.
    """
    folder, _ = two
    damaged = damage_a_copy(folder / "run/checkpoints")
    ends = cluster(4, [[arguments(folder / "run", MESH)]] * 2)
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert all(re.search(rf"is passed over for step \d+: {damaged} is damaged", err) for _, _, err in ends)
    first_row_for_shapes = [0, 1]
    for i, rows in enumerate(([0, 8], [8, 16])):
        assert all(line["rows"] == sorted([first_row_for_shapes, rows]) for line in ends[i][1])
    assert "step 16 of 16" in ends[0][2]
    assert "step 16 of 16" not in ends[1][2]
    expected = train_here(tmp_path / "mesh", MESH)
    assert_same_run(folder / "run", expected)
    names = {re.sub(r"events.*", "events", p.name) for p in (folder / "run").iterdir()}
    assert names == {re.sub(r"events.*", "events", p.name) for p in expected.iterdir()}
    assert len(list((folder / "run").glob("events*"))) == 2  # of the first process, before SIGTERM and after
    assert "The parameters lie in 2 processes" in (folder / "run/report.html").read_text()


def damage_a_copy(checkpoints):
    """Copies the only step to the number after it, and flips a byte in one of the second process's files; its name."""
    checkpoints = epath.Path(checkpoints)
    (step,) = (int(path.stem) for path in checkpoints.glob("*.json"))
    shutil.copytree(checkpoints / str(step), checkpoints / str(step + 1))
    manifest = checkpoint._read_manifest(checkpoints, step)
    checkpoint._write_manifest(checkpoints, dataclasses.replace(manifest, step=step + 1))
    name = next(name for name in list(manifest.files)[1::2] if manifest.files[name]["bytes"])
    content = bytearray((checkpoints / str(step + 1) / name).read_bytes())
    content[0] ^= 1
    (checkpoints / str(step + 1) / name).write_bytes(content)
    return f"{step + 1}/{name}"


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["SIGKILL", "error"])
def test_the_end_of_one_ends_the_other(sign, cluster, tmp_path):
    """Within the time after which a silent process counts as dead, instead of waiting for its part of a sum."""
    run = arguments(tmp_path, "pmap") | {"patience": 5}
    (code, _, err), (other, _, _) = cluster(4, [[run], [run | {"signal": sign, "step": 10}]], seconds=100)
    assert other == (-signal.SIGKILL if sign == "SIGKILL" else -signal.SIGABRT)
    assert code not in (0, None)
    assert re.search(r"another (task died|one ended)", err)


@pytest.mark.parametrize(("process", "message"), [
    (1, r"error: the coordinator 127.0.0.1:{port} did not answer in 1 s: .*refused"),
    (0, r"error: not all 2 processes met at 127.0.0.1:{port} within 1 s"),
], ids=["coordinator", "others"])  # fmt: skip
def test_who_does_not_come_is_not_waited_for(process, message, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(process)]
    command = [sys.executable, "-m", "jaxnlp", "train", PROGRAM, *flags, "--connect-timeout", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=PROGRAM.parents[2])
    assert ended.returncode in (1, 2)
    assert re.search(message.format(port=port), ended.stderr)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match=r"coordinator='host'; allowed: HOST:PORT"):
        processes.initialize("host", 2, 0)
    with pytest.raises(ValueError, match=r"process=2 of 2; allowed: 0 … 1"):
        processes.initialize("host:1", 2, 2)
    processes.initialize()  # alone


def test_an_error_of_jax_names_the_others(monkeypatch):
    def fail(message):
        with processes.explained():
            raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(jax.errors.JaxRuntimeError):
        fail("INTERNAL: Gloo all-reduce failed: Connection closed by peer")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(processes.ProcessError, match=r"of 2 processes failed, probably since another one ended"):
        fail("INTERNAL: Gloo all-reduce failed: Connection closed by peer")
    with pytest.raises(jax.errors.JaxRuntimeError):
        fail("RESOURCE_EXHAUSTED: out of memory")


@pytest.mark.slow
@pytest.mark.parametrize(("n", "devices"), [(2, 4), (4, 2)])
def test_every_form_equals_one_process(n, devices, train_here, cluster, assert_same_run, tmp_path):
    forms = ("pmap", "fsdp=8", MESH)
    runs = [arguments(tmp_path / form, form) for form in forms]
    tuned = ["--base", str(tmp_path / "pmap"), "--steps", "4"]
    ends = cluster(devices, [[*runs, arguments(tmp_path / "tuned", MESH, *tuned)]] * n, seconds=400)
    assert [code for code, _, _ in ends] == [0] * n, ends
    for i, (_, lines, _) in enumerate(ends):
        assert all(line["rows"] == sorted([[0, 1], [i * 16 // n, (i + 1) * 16 // n]]) for line in lines)
    assert "Samples, temperature" in (tmp_path / "pmap/report.html").read_text()  # process 0 has all parameters
    for form in forms:
        assert_same_run(tmp_path / form, train_here(tmp_path / f"one {form}", form))
    assert_same_run(tmp_path / "tuned", train_here(tmp_path / "one tuned", MESH, *tuned))
