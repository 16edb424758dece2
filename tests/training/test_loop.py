"""The loop: what it writes, how it ends, and that an interruption leaves no trace."""

import dataclasses
import gzip
import json
import math
import os
import pathlib
import re
import signal

import jax
import numpy as np
import pytest

import jaxnlp
from jaxnlp.data.tokenizers import Characters
from jaxnlp.models import gpt
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training import loop
from jaxnlp.training.experiment import Data, Experiment, Pretrained, Ramp
from jaxnlp.training.folder import FolderError
from jaxnlp.training.optim import Optim

TEXTS = [{"text": f"{a} and {b} make {a + b}.", "label": (a + b) % 3} for a in range(12) for b in range(12)]
TINY = gpt.Config(n_layers=2, d_model=16, n_heads=2, vocab_size=40, n_positions=32, dropout=0.1)
PRETRAIN = Experiment(
    model=TINY,
    task=LanguageModeling(length=16, prompts=("1 and",)),
    data=Data(train=TEXTS[:120], validation=TEXTS[120:]),
    tokenizer=Characters(),
    optim=Optim(lr=1e-2),
    steps=20,
    batch_size=6,
    log_every=0.1,
    evaluate_every=0.5,
    save_every=0.2,
    ema=0.9,
)
TIMING = ("seconds", "tokens_per_second")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pretrained"
    return workdir, jaxnlp.train(PRETRAIN, workdir)


def metrics(workdir):
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_is_whole(pretrained):
    workdir, run = pretrained
    names = {p.name for p in workdir.iterdir() if not p.name.startswith("events")}
    assert names >= {"experiment.json", "tokenizer.json", "checkpoints", "metrics.jsonl", "report.html", "loss.png"}
    lines = metrics(workdir)
    assert [(m["step"], m["split"]) for m in lines] == [
        *((s, "train") for s in range(2, 11, 2)),
        (10, "validation"),
        *((s, "train") for s in range(12, 21, 2)),
        (20, "validation"),
    ]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    for line in lines:
        assert math.isclose(line["perplexity"], math.exp(line["loss"]), rel_tol=1e-6)
    assert run.step == 20
    assert run.generate(["1 and"], max_new_tokens=5, temperature=0) == run.generate(
        ["1 and"], max_new_tokens=5, temperature=0, seed=3
    )


def test_validation_is_the_mean_over_all_tokens(pretrained):
    """Against the model itself, document by document: sum of -log p over the tokens, and over the bytes."""
    workdir, run = pretrained
    stream = [i for t in TEXTS[120:] for i in [*run.tokenizer.encode(t["text"]), run.tokenizer.eos_id]]
    nats = 0.0
    for start in range(0, len(stream) - 1, 16):
        ids = np.array(stream[start : start + 17], np.int32)
        logits = run.apply({"input_ids": ids[None, :-1]})["logits"][0]
        nats -= sum(float(jax.nn.log_softmax(row)[label]) for row, label in zip(logits, ids[1:], strict=True))
    n_bytes = sum(len(t["text"].encode()) for t in TEXTS[120:]) - len(TEXTS[120]["text"][0].encode())
    found = jaxnlp.evaluate(run)
    assert math.isclose(found["loss"], nats / (len(stream) - 1), rel_tol=1e-5)
    assert math.isclose(found["bits_per_byte"], nats / math.log(2) / n_bytes, rel_tol=1e-5)
    assert math.isclose(found["loss"], metrics(workdir)[-1]["loss"], rel_tol=1e-6)


@pytest.mark.parametrize("at", [7, pytest.param(12, marks=pytest.mark.slow)])
def test_terminated_and_resumed_equals_undisturbed(at, pretrained, tmp_path, monkeypatch):
    """SIGTERM between two lines of metrics: saved, exit code 75, and then as if nothing had been."""
    steps = []

    def update(self, step, metrics):
        steps.append(step)
        if step == at and steps.count(at) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Progress, "update", update)
    with pytest.raises(loop.Preempted, match=f"step {at}") as stopped:
        jaxnlp.train(PRETRAIN, tmp_path)
    assert stopped.value.exit_code == 75
    run = jaxnlp.train(PRETRAIN, tmp_path)
    assert steps[at:] == list(range(at + 1, 21))
    workdir, undisturbed = pretrained
    assert_same(run.params, undisturbed.params)
    assert metrics(tmp_path) == metrics(workdir)


def test_crash_loses_nothing_before_the_checkpoint(pretrained, tmp_path, monkeypatch):
    """An error at step 11 goes back to the checkpoint of step 8; the lines after it are written once."""
    original = loop.Progress.update

    def update(self, step, metrics):
        if step == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Progress, "update", update)
    with pytest.raises(KeyboardInterrupt):
        jaxnlp.train(PRETRAIN, tmp_path)
    monkeypatch.setattr(loop.Progress, "update", original)
    run = jaxnlp.train(PRETRAIN, tmp_path)
    workdir, undisturbed = pretrained
    assert_same(run.params, undisturbed.params)
    assert metrics(tmp_path) == metrics(workdir)


RAMPED = dataclasses.replace(PRETRAIN, batch_size=16, ramp=Ramp(8, 0.6), parallel="jit")


@pytest.mark.slow
def test_a_ramp_is_the_same_on_a_mesh(tmp_path, assert_same_run):
    for form in ("jit", "data=4,fsdp=2"):
        jaxnlp.train(dataclasses.replace(RAMPED, parallel=form), tmp_path / form)
    assert_same_run(tmp_path / "data=4,fsdp=2", tmp_path / "jit")


@pytest.mark.slow
def test_a_ramp_is_the_same_after_an_interruption(tmp_path, monkeypatch):
    undisturbed = jaxnlp.train(RAMPED, tmp_path / "jit")
    with monkeypatch.context() as patched:
        update = loop.Progress.update
        stop = lambda self, step, metrics: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None  # noqa: E731
        patched.setattr(loop.Progress, "update", stop)
        with pytest.raises(loop.Preempted, match="step 7"):
            jaxnlp.train(RAMPED, tmp_path / "stopped")
        patched.setattr(loop.Progress, "update", update)
    run = jaxnlp.train(RAMPED, tmp_path / "stopped")
    assert_same(run.params, undisturbed.params)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "jit")


@pytest.mark.slow
def test_a_ramp_shorter_than_a_step_is_of_one(tmp_path):
    short = dataclasses.replace(
        PRETRAIN, batch_size=16, ramp=Ramp(8, 0.02), steps=3, evaluate_every=1.0, save_every=1.0
    )
    assert jaxnlp.train(short, tmp_path).step == 3


def test_steps_in_one_call_equal_single_steps(pretrained, tmp_path, assert_same_run):
    jaxnlp.train(dataclasses.replace(PRETRAIN, steps_per_call=2), tmp_path)
    assert_same_run(tmp_path, pretrained[0], 1e-5)


def test_other_settings_are_refused_on_resume(pretrained):
    workdir, _ = pretrained
    with pytest.raises(ValueError, match=r"batch_size: 6 -> 12"):
        jaxnlp.train(dataclasses.replace(PRETRAIN, batch_size=12), workdir)


def test_other_data_is_refused_on_resume(pretrained):
    """Sources in memory have no name that could tell them apart."""
    workdir, _ = pretrained
    other = dataclasses.replace(PRETRAIN, data=Data(train=TEXTS[:119], validation=TEXTS[120:]))
    with pytest.raises(ValueError, match=r"data.train: the examples are not those with which the run in .* began"):
        jaxnlp.train(other, workdir)


@pytest.mark.slow
def test_muon_resumes_as_if_nothing_had_been(tmp_path, monkeypatch):
    experiment = dataclasses.replace(PRETRAIN, optim=Optim(name="muon", lr=1e-2))
    undisturbed = jaxnlp.train(experiment, tmp_path / "undisturbed")
    original = loop.Progress.update

    def update(self, step, metrics):
        if step == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Progress, "update", update)
    with pytest.raises(KeyboardInterrupt):
        jaxnlp.train(experiment, tmp_path / "run")
    monkeypatch.setattr(loop.Progress, "update", original)
    assert_same(jaxnlp.train(experiment, tmp_path / "run").params, undisturbed.params)


def test_second_training_is_refused(pretrained):
    workdir, _ = pretrained
    with loop.locked(workdir), pytest.raises(FolderError, match="in use by process"):
        jaxnlp.train(PRETRAIN, workdir)


def test_non_finite_loss_stops(tmp_path):
    """A rate that blows up: the step is named, and the last good checkpoint is one from before."""
    wild = dataclasses.replace(
        PRETRAIN, optim=Optim(lr=1e38, clip=None, warmup=0.0), steps=40, save_every=0.025, log_every=1.0, ema=None
    )
    with pytest.raises(loop.NonFiniteLoss, match=r"the loss or the gradient of step (\d+) is not finite") as stopped:
        jaxnlp.train(wild, tmp_path)
    assert stopped.value.exit_code == 70
    bad, good = map(int, re.findall(r"of step (\d+) .* checkpoint is step (\d+)", str(stopped.value))[0])
    assert good < bad
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jaxnlp.load(tmp_path, step=good).params))
    assert not (tmp_path / "metrics.jsonl").exists()  # no line of it was due yet


def test_fine_tuning_starts_from_the_checkpoint(pretrained, tmp_path):
    """Frozen parameters stay the checkpoint's, bit for bit; the rest moves; the text's class is predicted."""
    workdir, base = pretrained
    experiment = Experiment(
        task=Classification(labels=("0", "1", "2"), length=24),
        data=Data(train=TEXTS[:120], validation=TEXTS[120:]),
        init=Pretrained(str(workdir), fresh="heads/.*", ema=True),
        optim=Optim(lr=1e-3, freeze="embed/.*|blocks/0/.*", layer_decay=0.5),
        steps=10,
        batch_size=7,
        evaluate_every=1.0,
        monitor="accuracy",
    )
    run = jaxnlp.train(experiment, tmp_path)
    base_params = jaxnlp.load(workdir, ema=True).params
    assert_same(run.params["embed"], base_params["embed"])
    assert_same(run.params["blocks"]["0"], base_params["blocks"]["0"])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), run.params["blocks"]["1"], base_params["blocks"]["1"])
    assert min(jax.tree.leaves(moved)) > 0
    assert run.tokenizer.fingerprint == base.tokenizer.fingerprint
    predictions = run.predict([t["text"] for t in TEXTS[120:]])
    accuracy = np.mean([int(p["label"]) == t["label"] for p, t in zip(predictions, TEXTS[120:], strict=True)])
    assert math.isclose(accuracy, metrics(tmp_path)[-1]["accuracy"], rel_tol=1e-6)
    assert math.isclose(sum(predictions[0]["scores"].values()), 1, rel_tol=1e-5)


def test_ema_follows_the_parameters(tmp_path):
    """From the initial parameters on, with decays 1/10 and 2/11 as those of 0.5 begin: two steps by hand."""
    experiment = dataclasses.replace(PRETRAIN, ema=0.5, steps=2, save_every=0.5, keep_latest=5, log_every=1.0)
    jaxnlp.train(experiment, tmp_path)
    start = jax.jit(experiment.model.build().init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    one, two = (jaxnlp.load(tmp_path, step=i).params for i in (1, 2))
    expected = jax.tree.map(lambda a, b, c: 2 / 11 * (0.1 * a + 0.9 * b) + 9 / 11 * c, start, one, two)
    found = jaxnlp.load(tmp_path, ema=True).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_what_does_not_fit_together_is_refused(pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"s3://bucket/run: allowed: a folder of this machine, or gs://bucket/path"):
        jaxnlp.train(PRETRAIN, "s3://bucket/run")
    with pytest.raises(ValueError, match=r"monitor='accuracy' is not measured; allowed: bits_per_byte, loss"):
        jaxnlp.train(dataclasses.replace(PRETRAIN, monitor="accuracy"), tmp_path / "monitor")


def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(pretrained, tmp_path):
    """Else its rows of the table would stand for other tokens."""
    workdir, _ = pretrained
    digits = [{"text": "0123456789"}] * 20

    def tune(**init):
        init = Pretrained(str(workdir), **init)
        jaxnlp.train(dataclasses.replace(PRETRAIN, data=Data(train=digits), init=init, steps=1), tmp_path / "tuned")

    with pytest.raises(ValueError, match=r"the tokenizer is not the one of .*: token \d+ is '.', there '.'; allowed"):
        tune()
    with pytest.raises(ValueError, match="the tokenizer is not the one of"):
        tune(grow="embed/tokens")
    tune(fresh="embed/tokens")


def test_vocabulary_larger_than_the_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, model.vocab_size=9"):
        jaxnlp.train(dataclasses.replace(PRETRAIN, model=dataclasses.replace(TINY, vocab_size=9)), tmp_path)


def test_rows_longer_than_the_positions_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"task.length=64; allowed: at most model.n_positions=32"):
        jaxnlp.train(dataclasses.replace(PRETRAIN, task=LanguageModeling(length=64)), tmp_path)
    shorter = dataclasses.replace(PRETRAIN, steps=1)
    assert jaxnlp.train(shorter, tmp_path).step == 1  # the folder is not spoiled by what was refused


def test_id_outside_the_vocabulary_is_refused(pretrained):
    _, run = pretrained
    with pytest.raises(ValueError, match=r"input_ids holds 40; allowed: 0 … 39"):
        run.apply({"input_ids": [[1, 40]]})


def test_hidden_states_and_attentions_on_request(pretrained):
    _, run = pretrained
    out = run.apply({"input_ids": np.array([[2, 3, 4]])}, outputs=("attentions", "hidden_states"))
    assert len(out["attentions"]) + 1 == len(out["hidden_states"]) == 3
    np.testing.assert_allclose(np.sum(out["attentions"][1], -1), 1, atol=1e-6)
    table = run.params["embed"]
    np.testing.assert_allclose(
        out["hidden_states"][0][0], table["tokens"][np.array([2, 3, 4])] + table["positions"][:3], atol=1e-6
    )


def test_load_in_bfloat16(pretrained):
    workdir, run = pretrained
    half = jaxnlp.load(workdir, dtype="bfloat16", ema=True)
    ids = {"input_ids": np.array([[2, 3, 4]])}
    assert {x.dtype.name for x in jax.tree.leaves(half.params)} == {"bfloat16"}
    out = half.apply(ids)
    assert (out["last_hidden_state"].dtype, out["logits"].dtype) == ("bfloat16", "float32")
    np.testing.assert_allclose(out["logits"], run.apply(ids)["logits"], atol=0.1)


@pytest.mark.slow
def test_a_trace_of_some_steps(tmp_path, monkeypatch):
    """Also where an earlier one was cut off by an error, which ends it."""
    short = dataclasses.replace(PRETRAIN, steps=4, evaluate_every=1.0, save_every=1.0)

    def update(self, step, metrics):
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Progress, "update", update)
        loop.train(short, tmp_path, profile=(2, 3))
    loop.train(short, tmp_path, profile=(2, 3))
    (trace,) = tmp_path.glob("plugins/profile/*/perfetto_trace.json.gz")
    assert b"train_steps" in gzip.decompress(trace.read_bytes())
