"""An experiment as a value: what it allows, its JSON, and what makes it the same run."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from jaxnlp.data.sources import TFDS, Joined
from jaxnlp.models import gpt
from jaxnlp.training.experiment import (
    Data,
    Experiment,
    Pretrained,
    Ramp,
    check_same_run,
    every,
    from_json,
    to_json,
)
from jaxnlp.training.optim import Optim
from jaxnlp.training.serialize import External, decode, encode


@dataclasses.dataclass(frozen=True)
class MyTask:
    """Stands for a dataclass in a user's own file."""

    alpha: float = 0.5


EXPERIMENT = Experiment(
    model=gpt.VARIANTS["char"],
    task=("language_modeling", 64),
    data=Data(train=TFDS("python_docs"), validation=TFDS("python_docs", "validation")),
    tokenizer={"kind": "characters", "special": ["<unk>"]},
    optim=Optim(lr=1e-3 / 3, freeze=r"embed/.*"),
    steps=2000,
    batch_size=12,
    init=Pretrained("runs/bert", step=100, grow=r"embed/tokens"),
)


def changed(**fields: Any) -> Experiment:
    return dataclasses.replace(EXPERIMENT, **fields)


# Numbers


def test_defaults_are_valid():
    EXPERIMENT.validate()
    Experiment(task=1, data=Data(train=1), model=1, tokenizer=1, steps=1, batch_size=1).validate()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 0}, "steps=0; allowed: 1 and more"),
        ({"batch_size": -1}, "batch_size=-1; allowed: 1 and more"),
        ({"keep_best": -1}, "keep_best=-1; allowed: 0 and more"),
        ({"save_every": 0.0}, "save_every=0.0; allowed: a fraction of the steps, 0 < save_every <= 1"),
        ({"log_every": 100.0}, "log_every=100.0; allowed: a fraction"),
        ({"evaluate_every": math.nan}, "evaluate_every=nan; allowed: a fraction"),
        ({"accumulate": 5}, "accumulate=5 does not divide batch_size=12; allowed: 1, 2, 3, 4, 6, 12"),
        ({"ramp": Ramp(5, 0.5)}, "ramp.rows=5; allowed: a divisor of batch_size=12 and a multiple of accumulate=1"),
        ({"ramp": Ramp(2, 0.5), "accumulate": 4}, "ramp.rows=2; allowed: a divisor of batch_size=12 and a multiple"),
        ({"ramp": Ramp(2, 0.0)}, "ramp.until=0.0; allowed: a fraction of the steps, 0 < ramp.until <= 1"),
        ({"ramp": Ramp(2, 0.5), "steps_per_call": 2}, "steps_per_call=2 with a ramp; allowed: 1"),
        ({"ema": 1.0}, "ema=1.0; allowed: None, or a decay between 0 and 1"),
        ({"monitor": "los"}, "monitor='los'; allowed: loss, perplexity"),
        ({"model": None, "init": None}, "model=None; allowed without init: a value"),
        ({"tokenizer": None, "init": None}, "tokenizer=None; allowed without init: a value"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, message):
    with pytest.raises(ValueError) as error:
        changed(**fields).validate()
    assert str(error.value).startswith(message)


def test_intervals_are_whole_calls():
    assert every(0.1, steps=2000) == 200
    assert every(0.1, steps=2000, steps_per_call=64) == 192
    assert every(0.01, steps=50) == 1  # a short run of the same shape
    assert every(0.01, steps=50, steps_per_call=16) == 16
    assert every(1.0, steps=7) == 7


def test_a_ramp_grows_in_even_stages():
    """Brown et al., 2020, appendix B: linearly from a small batch to the whole one."""
    ramped = changed(batch_size=12, ramp=Ramp(4, 0.3), steps=20)
    assert [ramped.rows_at(step) for step in range(8)] == [4, 4, 4, 8, 8, 8, 12, 12]
    assert [changed(ramp=Ramp(4, 0.2), steps=2).rows_at(step) for step in range(2)] == [4, 12]  # a short run's
    assert {changed(batch_size=12, steps=20).rows_at(step) for step in range(20)} == {12}


# JSON


def test_round_trip_is_exact():
    assert from_json(to_json(EXPERIMENT)) == EXPERIMENT
    assert isinstance(from_json(to_json(EXPERIMENT)).tokenizer["special"], list)
    assert isinstance(from_json(to_json(EXPERIMENT)).task, tuple)
    joined = changed(data=Data(train=Joined((TFDS("a"), TFDS("b", "test")))))
    assert from_json(to_json(joined)) == joined


def test_json_names_our_dataclasses_and_plain_values():
    written = json.loads(to_json(EXPERIMENT))
    assert written["model"]["type"] == "jaxnlp.models.gpt.Config"
    assert written["model"]["d_model"] == 128
    assert written["data"]["train"] == {
        "type": "jaxnlp.data.sources.TFDS", "name": "python_docs", "split": "train", "data_dir": None
    }  # fmt: skip
    assert written["task"] == ["language_modeling", 64]


def test_a_users_objects_come_back_by_name():
    experiment = changed(task=MyTask(), data=Data(train=[{"text": "a"}] * 10_000, validation=np.arange(3)))
    text = to_json(experiment)
    assert len(text) < 2_500  # the source is named, not written
    loaded = from_json(text)
    assert loaded.task == External(f"{__name__}.MyTask")
    assert loaded.data == Data(train=External("builtins.list"), validation=External("numpy.ndarray"))
    assert loaded.model == EXPERIMENT.model
    assert to_json(loaded) == text
    check_same_run(loaded, experiment)


@pytest.mark.parametrize("value", [np.float32(1), np.arange(3), {1, 2}, b"x", print, MyTask, float, 1j])
def test_other_values_are_refused_by_name(value):
    with pytest.raises(ValueError, match=r"task.*; allowed: "):
        to_json(changed(task=value))
    with pytest.raises(ValueError, match=r"task\[1\]"):
        to_json(changed(task=(1, value)))


@pytest.mark.parametrize("key", [3, "type", "list", "external"])
def test_keys_that_would_not_come_back_are_refused(key):
    with pytest.raises(ValueError, match="has the key"):
        encode({key: 1})


@pytest.mark.parametrize(
    "name",
    [
        "os.path.join",
        "jaxnlp",
        "jaxnlp.Config",
        "jaxnlp_evil.module.Class",
        "jaxnlp.__main__.Class",
        "jaxnlp..os.Class",
        "jaxnlp.models.gpt.sized",  # a function
        "jaxnlp.training.experiment.Optim",  # another module's
        "jaxnlp.models.nothing.Config",
        "jaxnlp.models.gpt.Nothing",
        ["jaxnlp.models.gpt.Config"],
    ],
)
def test_only_our_dataclasses_are_built(name):
    with pytest.raises(ValueError, match="has type"):
        decode({"type": name})


def test_nothing_outside_the_package_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    text = to_json(EXPERIMENT).replace("jaxnlp.models.gpt.Config", "evil.Config")
    with pytest.raises(ValueError, match=r"model has type 'evil.Config'; allowed: a dataclass inside jaxnlp"):
        from_json(text)


def test_unknown_field_names_the_nearest():
    text = to_json(EXPERIMENT).replace('"d_model"', '"d_modle"')
    with pytest.raises(ValueError, match=r"model.d_modle: .* has no field 'd_modle'; the nearest is 'd_model'"):
        from_json(text)


def test_missing_fields_take_their_defaults_and_needed_ones_are_named():
    written = json.loads(to_json(changed(seed=0)))
    del written["seed"], written["model"]["epsilon"]
    assert from_json(json.dumps(written)) == EXPERIMENT
    del written["steps"]
    with pytest.raises(ValueError, match="steps"):
        from_json(json.dumps(written))


def test_json_of_something_else():
    with pytest.raises(ValueError, match="found a dict; allowed: an Experiment"):
        from_json("{}")
    with pytest.raises(ValueError, match="Expecting value"):
        from_json("")


# The same run


def test_what_differs_is_named_by_path_with_both_values():
    check_same_run(EXPERIMENT, EXPERIMENT)
    other = changed(
        model=dataclasses.replace(EXPERIMENT.model, d_ff=1),
        optim=dataclasses.replace(EXPERIMENT.optim, lr=1.0),
        init=None,
    )
    with pytest.raises(ValueError) as error:
        check_same_run(EXPERIMENT, other)
    found = [line.strip() for line in str(error.value).splitlines() if " -> " in line]
    assert [line.partition(": ")[0] for line in found] == ["model.d_ff", "optim.lr", "init"]
    assert found[0] == "model.d_ff: None -> 1"
    with pytest.raises(ValueError, match=r"model: jaxnlp.models.gpt.Config -> jaxnlp.training.optim.Optim\n"):
        check_same_run(EXPERIMENT, changed(model=Optim()))


def test_what_the_numbers_do_not_depend_on_may_change():
    check_same_run(EXPERIMENT, changed(log_every=0.5, save_every=0.2, evaluate_every=1.0, keep_latest=9, keep_best=0))
    check_same_run(EXPERIMENT, changed(monitor="accuracy"))


@pytest.mark.parametrize(
    "fields", [{"batch_size": 24}, {"seed": 1}, {"steps": 100}, {"model": gpt.VARIANTS["gpt2"]}, {"accumulate": 2}]
)
def test_what_they_depend_on_may_not(fields):
    with pytest.raises(ValueError, match=rf"may not change on resume:\n  {next(iter(fields))}"):
        check_same_run(EXPERIMENT, changed(**fields, log_every=0.5))


def test_the_folder_of_the_data_may_change():
    sets = [TFDS("python_docs", data_dir=path) for path in ("/a", "/b")]
    for here, there in (sets, [Joined((one, one)) for one in sets]):
        check_same_run(changed(data=Data(train=here)), changed(data=Data(train=there)))
    with pytest.raises(ValueError, match="may not change on resume:\n  data.train.parts.1.name"):
        joined = (Joined((sets[0], TFDS(name))) for name in ("a", "b"))
        check_same_run(*(changed(data=Data(train=one)) for one in joined))
