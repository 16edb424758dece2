"""A checkpoint of fsdp=4,tensor=2 with AdamW and a moving average goes on anywhere as if nothing had been."""

import json
import pathlib
import shutil

import jax
import pytest

import jaxnlp
from jaxnlp import cli

PROGRAM = pathlib.Path(__file__).parent / "cluster.py"
SAVED, FORM = 8, "fsdp=4,tensor=2"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, train_here):
    """A whole run of 16 steps, which keeps the checkpoint of the 8th."""
    return train_here(tmp_path_factory.mktemp("undisturbed"), FORM)


@pytest.fixture
def interrupted(undisturbed, tmp_path):
    """The folder as it was when step 8 was saved, and some lines of metrics later."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / "checkpoints/16.json").unlink()
    shutil.rmtree(folder / "checkpoints/16")
    return folder


@pytest.mark.parametrize("form", ["jit", pytest.param("data=2,fsdp=4", marks=pytest.mark.slow)])
def test_on_another_mesh(form, interrupted, undisturbed, train_here, assert_same_run):
    assert_same_run(train_here(interrupted, form), undisturbed, 1e-5)


@pytest.mark.parametrize(
    ("processes", "devices", "form"),
    [
        pytest.param(1, 4, "fsdp=2,tensor=2", marks=pytest.mark.slow),
        pytest.param(1, 16, "fsdp=8,tensor=2", marks=pytest.mark.slow),
        pytest.param(2, 2, "fsdp=2,tensor=2", marks=pytest.mark.slow),
    ],
)
def test_on_other_devices(processes, devices, form, interrupted, undisturbed, cluster, assert_same_run):
    ends = cluster(devices, [[{"arguments": ["--workdir", str(interrupted), "--parallel", form]}]] * processes)
    assert [code for code, _, _ in ends] == [0] * processes, ends
    assert f"step {SAVED - 4} of 16" not in ends[0][2]
    assert_same_run(interrupted, undisturbed, 1e-5)


def test_loads_on_one_device(interrupted):
    """Every parameter whole on the first device; the metrics over the validation part are those that were written."""
    run = jaxnlp.load(interrupted, ema=True)
    assert run.step == SAVED
    assert {device for x in jax.tree.leaves(run.params) for device in x.devices()} == {jax.devices()[0]}
    source = cli.load_experiment(PROGRAM)().data.validation
    lines = [json.loads(line) for line in (interrupted / "metrics.jsonl").read_text().splitlines()]
    written = next(line for line in lines if (line["step"], line["split"]) == (SAVED, "validation"))
    for name, value in jaxnlp.evaluate(run, source=source).items():
        assert value == pytest.approx(written[name], rel=1e-5)
