"""The notebooks run from top to bottom, beside a small run in place of the quickstart's."""

import pathlib
import shutil

import nbclient
import nbformat
import pytest

import jaxnlp
from jaxnlp.data.tokenizers import ByteBPE
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training.experiment import Data, Experiment

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    texts = [
        {"text": f"Return the number of {i}, or raise an error when a file has no {j}."} for i in "abc" for j in "defg"
    ]
    experiment = Experiment(
        model=gpt.Config(vocab_size=290, n_positions=64, n_layers=2, d_model=16, n_heads=2),
        task=LanguageModeling(length=16),
        data=Data(train=texts),
        tokenizer=ByteBPE(290),
        steps=2,
        batch_size=4,
    )
    jaxnlp.train(experiment, tmp_path / "runs" / "quickstart" / "pretrain")
    place = tmp_path / "experiments" / "notebooks"
    place.mkdir(parents=True)
    notebook = nbformat.read(shutil.copy(path, place), as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    tuned = notebook.cells[-1].outputs[0]["data"]["text/plain"]
    assert "'label'" in tuned and "'scores'" in tuned
