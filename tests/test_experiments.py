"""Every file in experiments/: it imports without touching a device, its model has its parameters, and it trains.

A new file is tested without a line here, as long as its arguments have defaults.
"""

import dataclasses
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp import cli
from jaxnlp.data.tokenizers import Characters, WordPiece
from jaxnlp.models import bert, gpt
from jaxnlp.tasks.classification import NextSentence
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.masked_lm import MaskedLM
from jaxnlp.tasks.multiple_choice import MultipleChoice
from jaxnlp.tasks.span_qa import SpanQA
from jaxnlp.tasks.tagging import Tagging
from jaxnlp.tasks.translation import Translation
from jaxnlp.training import loop
from jaxnlp.training.experiment import Data, Experiment, from_json, to_json

FOLDER = pathlib.Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.glob("*.py"))
TEXTS = [f"sentence {i} of many, which is {'odd' if i % 2 else 'even'}" for i in range(40)]


def made(path: pathlib.Path, **arguments) -> Experiment:
    return runpy.run_path(str(path))["experiment"](**arguments)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run to fine-tune from."""
    experiment = Experiment(
        model=gpt.Config(vocab_size=64, n_positions=64, n_layers=1, d_model=16, n_heads=2),
        task=LanguageModeling(length=16),
        data=Data(train=[{"text": text} for text in TEXTS]),
        tokenizer=Characters(),
        steps=1,
        batch_size=2,
    )
    return loop.train(experiment, tmp_path_factory.mktemp("base")).path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(loop, "write_report", lambda folder, shown=(): None)  # drawn in its own tests


def shrunken(experiment: Experiment, base: pathlib.Path) -> Experiment:
    """The same experiment on a handful of texts, in two small layers, for two steps."""
    own = {"overlap": 4} if isinstance(experiment.task, Tagging) else {}
    task, c = dataclasses.replace(experiment.task, length=16, **own), experiment.model
    if isinstance(task, Translation):
        task = dataclasses.replace(task, length=64, buckets=(64,), n_beams=2)
        rows = [{task.source: text, task.target: text[:10]} for text in TEXTS]
    elif isinstance(task, SpanQA):
        task = dataclasses.replace(task, length=32, stride=4, max_question_tokens=8)
        answer = {"text": ["of many"], "answer_start": [TEXTS[0].index("of many")]}
        rows = [{"question": "which", "context": text, "answers": answer} for text in TEXTS[:10] * 4]
    elif isinstance(task, MultipleChoice):
        parts = [task.choices] if isinstance(task.choices, str) else task.choices
        choices = {parts[0]: TEXTS[:2]} if len(parts) == 1 else dict(zip(parts, TEXTS, strict=False))
        rows = [{task.context: text, "sent2": "which", **choices, "label": i % 2} for i, text in enumerate(TEXTS)]
    elif isinstance(task, Tagging):
        rows = [{"tokens": text.split(), task.tags: [i % len(task.labels)] * len(text.split())} for i, text in
                enumerate(TEXTS)]  # fmt: skip
    else:
        labels = getattr(task, "labels", ("none",))
        rows = [{task.text: text, getattr(task, "label", "label"): i % len(labels)} for i, text in enumerate(TEXTS)]
        if getattr(task, "pair", None) is not None:
            rows = [row | {task.pair: text} for row, text in zip(rows, TEXTS[::-1], strict=True)]
        if getattr(task, "document", None) is not None:
            rows = [row | {task.document: i // 5} for i, row in enumerate(rows)]
    experiment = dataclasses.replace(
        experiment,
        task=task,
        data=Data(train=rows[:30], validation=rows[30:]),
        steps=2,
        batch_size=4,
        accumulate=min(experiment.accumulate, 2),
        steps_per_call=min(experiment.steps_per_call, 2),
        log_every=1.0,
        evaluate_every=1.0,
        save_every=1.0,
    )
    if isinstance(task, NextSentence):  # which the base has no pooler for
        small = bert.Config(vocab_size=64, n_positions=64, n_layers=1, d_model=16, n_heads=2)
        return dataclasses.replace(experiment, init=None, model=small, tokenizer=Characters())
    if experiment.init is not None:
        return dataclasses.replace(experiment, init=dataclasses.replace(experiment.init, run=str(base)))
    small = {
        "vocab_size": 64, "target_vocab_size": None, "n_positions": 64, "n_layers": 2,
        "n_encoder_layers": 1, "n_decoder_layers": 1,
        "d_model": 16, "d_embed": 16, "n_heads": 2, "d_head": None, "d_ff": 32,
    }  # fmt: skip
    fields = {field.name for field in dataclasses.fields(c)}
    model = dataclasses.replace(c, **{name: value for name, value in small.items() if name in fields})
    tokenizer = WordPiece(64) if isinstance(task, MaskedLM) else Characters()
    return dataclasses.replace(experiment, model=model, tokenizer=tokenizer)


ALIKE = {
    "bert_docs_tagging",
    "bert_pretrain",
    "comve",
    "glue",
    "gpt1_books",
    "gpt3",
    "gpt_char_shakespeare",
    "quickstart_classify",
    "quickstart_pretrain",
    "rnnsearch_wmt14",
    "sentences",
    "seq2seq_ko_en",
    "seq2seq_multi30k",
    "summarize_docs",
    "sutskever_wmt14",
    "swag",
    "transformer_wmt14",
    "bert_docs_nsp",
    "bert_tagging",
    "gpt1_pretrain",
    "squad",
}  # what compiles is what another experiment compiles
STEPPED = [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in ALIKE)) for path in FILES]


@pytest.mark.parametrize("path", STEPPED, ids=lambda path: path.stem)
def test_takes_a_step(path, base, tmp_path):
    experiment = shrunken(made(path), base)
    folder = loop.train(experiment, tmp_path)
    (train, validation) = folder.read_metrics()
    assert train["step"] == validation["step"] == 2
    assert np.isfinite(train["loss"]) and np.isfinite(validation["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["prefix", "lstm"])
def test_the_storys_other_models_take_a_step(architecture, base, tmp_path):
    folder = loop.train(shrunken(made(FOLDER / "translation_story.py", architecture=architecture), base), tmp_path)
    assert all(np.isfinite(line["loss"]) for line in folder.read_metrics())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_well_formed(path):
    experiment = made(path)
    experiment.validate()
    options, _, _ = cli.parse_experiment(cli.load_experiment(path), (), name=path.stem, prog="jaxnlp train")
    assert options == experiment
    assert from_json(to_json(experiment)) == experiment
    docstring = runpy.run_path(str(path))["__doc__"]
    assert f"jaxnlp train {path.stem}" in docstring, "the docstring gives the command"
    if experiment.model is not None:
        rows = jax.ShapeDtypeStruct((experiment.batch_size, experiment.task.length), jnp.int32)
        model = experiment.model.build(experiment.task.heads)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        given = {"decoder_input_ids": rows} if getattr(experiment.task, "form", "") == "encoder-decoder" else {}
        out = jax.eval_shape(model.apply, params, rows, **given)
        words = getattr(experiment.model, "output_vocab_size", experiment.model.vocab_size)
        logits = out["prediction_logits"] if "prediction_logits" in out else out["logits"]
        assert logits.shape == (*rows.shape, words)


@pytest.mark.parametrize("name", ["bert_tagging", "comve", "glue", "sentences", "squad", "swag"])
def test_scratch_keeps_nothing_of_the_checkpoint(name):
    kept, fresh = (made(FOLDER / f"{name}.py", scratch=scratch) for scratch in (False, True))
    assert (kept.init.fresh, fresh.init.fresh) == ("heads/.*", ".*")
    assert dataclasses.replace(fresh, init=kept.init) == kept


def test_importing_touches_no_device():
    """All experiments, in a process in which JAX may not start a backend."""
    code = f"""
import runpy, jax
for path in {[str(path) for path in FILES]!r}:
    runpy.run_path(path)["experiment"]()
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent)


@pytest.mark.parametrize(
    "path", sorted((*FOLDER.glob("studies/*.py"), *FOLDER.glob("benchmarks/*.py"))), ids=lambda path: path.stem
)
def test_studies_and_benchmarks_load(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)  # as when it is run
    loaded = runpy.run_path(str(path))
    if path.stem != "peer":
        assert f"python experiments/{path.parent.name}/{path.name}" in loaded["__doc__"], (
            "the docstring gives the command"
        )
        assert callable(loaded["main"])


def test_benchmarks_take_the_median_of_turns_after_one_to_warm_up():
    seconds = iter([99.0, 99.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0])
    order = []
    forms = {name: lambda name=name: order.append(name) or next(seconds) for name in "ab"}
    assert runpy.run_path(str(FOLDER / "benchmarks" / "peer.py"))["in_turns"](forms, 3) == {"a": 2.0, "b": 20.0}
    assert "".join(order) == "abababab"


def test_what_xz_needs_after_the_training_text():
    xz = runpy.run_path(str(FOLDER / "studies" / "quickstart.py"))["xz_bits_per_byte"]
    noise = [np.random.default_rng(i).bytes(4000).hex() for i in range(2)]  # 4 bits a byte
    assert 4.0 < xz(noise[:1], noise[1:]) < 4.6
    assert xz(noise, noise[1:]) < 0.1


@pytest.mark.slow
def test_the_quickstart_shrunken(tmp_path, monkeypatch, capsys):
    """The headline command, with two steps of each run."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--steps", "2", "--workdir", str(tmp_path / "runs")])
    runpy.run_path(str(FOLDER / "studies" / "quickstart.py"), run_name="__main__")
    said = capsys.readouterr().out
    for line in (
        "bits per byte",
        "xz -9e",
        "accuracy from the checkpoint",
        "from scratch",
        "the most frequent",
        "loss",
    ):
        assert line in said
    for name in ("pretrain/report.html", "pretrain/loss.png", "classify/checkpoints", "scratch/metrics.jsonl"):
        assert (tmp_path / "runs" / name).exists()


@pytest.mark.slow
def test_killed_ten_times():
    """SIGKILL during a training, half of them in a save: parameters and metrics are the undisturbed run's."""
    command = [sys.executable, str(FOLDER / "studies" / "kill_and_resume.py"), "--kills", "10"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=FOLDER.parent).stdout
    assert said.splitlines()[-1].endswith("equal") and said.count("not in a save") <= 5
