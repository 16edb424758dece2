"""What a checkpoint gives to a model, and that nothing is given or left in silence."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training.checkpoint import Checkpoints
from jaxnlp.training.experiment import Data, Experiment, Pretrained, to_json
from jaxnlp.training.folder import FolderError
from jaxnlp.training.pretrained import merge, read


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    ema: Any


def body(value: float, rows: int = 4) -> dict:
    return {
        "embed": {"tokens": jnp.full((rows, 2), value)},
        "blocks": {str(i): {"kernel": jnp.full((2, 2), value + i)} for i in range(2)},
    }


def test_same_shapes_are_taken_as_they_are_and_in_the_models_dtype():
    merged = merge(body(0.0), jax.tree.map(lambda x: x.astype(jnp.bfloat16), body(1.0)), Pretrained("run"))
    assert jax.tree.map(lambda x: x.tolist(), merged) == jax.tree.map(lambda x: x.tolist(), body(1.0))
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("float32")}


def test_the_bert_example_of_the_design():
    """A new head is fresh, the pretraining head is left behind, the table grows."""
    initial = body(0.0, rows=6) | {"heads": {"label": {"kernel": jnp.full((2, 3), 7.0)}}}
    loaded = body(1.0) | {"heads": {"mlm": {"bias": jnp.ones(4)}, "label": {"kernel": jnp.ones((2, 9))}}}
    spec = Pretrained("run", fresh=r"heads/.*", drop=r"heads/mlm/.*", grow=r"embed/tokens")
    merged = merge(initial, loaded, spec)
    assert merged["heads"] == initial["heads"]
    np.testing.assert_array_equal(merged["embed"]["tokens"], [[1, 1]] * 4 + [[0, 0]] * 2)
    np.testing.assert_array_equal(merged["blocks"]["1"]["kernel"], np.full((2, 2), 2.0))


def test_what_is_fresh_leaves_the_checkpoints_own_behind():
    """Heads begin anew, whatever heads the checkpoint has."""
    initial = body(0.0) | {"heads": {"label": {"kernel": jnp.full((2, 3), 7.0)}}}
    loaded = body(1.0) | {"heads": {"mlm": {"bias": jnp.ones(4)}}}
    merged = merge(initial, loaded, Pretrained("run", fresh=r"heads/.*"))
    assert merged["heads"] == initial["heads"] and merged["embed"]["tokens"][0, 0] == 1


def test_every_path_that_does_not_fit_is_listed_with_what_would_explain_it():
    initial = body(0.0, rows=6) | {"head": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    loaded = body(1.0) | {"head": {"kernel": jnp.ones((2, 9))}, "old": jnp.ones(1)}
    with pytest.raises(ValueError) as error:
        merge(initial, loaded, Pretrained("runs/bert"))
    assert str(error.value).splitlines() == [
        "the checkpoint of runs/bert does not fit the model at 4 paths:",
        "  embed/tokens: (4, 2) in the checkpoint, (6, 2) in the model; `grow` copies its rows",
        "  head/kernel: (2, 9) in the checkpoint, (2, 3) in the model; `fresh` keeps the initial value",
        "  head/bias: nothing from the checkpoint, (3,) in the model; `fresh` keeps the initial value",
        "  old: (1,) in the checkpoint, not in the model; `drop` leaves it behind",
    ]


@pytest.mark.parametrize("rows, width", [(3, 2), (6, 3)])
def test_grow_adds_rows_and_nothing_else(rows, width):
    initial = body(0.0) | {"embed": {"tokens": jnp.zeros((rows, width))}}
    with pytest.raises(
        ValueError, match=rf"embed/tokens: \(4, 2\) in the checkpoint, \({rows}, {width}\) in the model"
    ):
        merge(initial, body(1.0), Pretrained("run", grow=r"embed/tokens"))


@pytest.mark.parametrize("option", ["fresh", "drop", "grow"])
def test_a_pattern_that_matches_nothing_is_an_error_that_names_the_nearest_path(option):
    with pytest.raises(
        ValueError, match=rf"init.{option}='embed/token' matches no path .*nearest path is embed/tokens"
    ):
        merge(body(0.0), body(1.0), Pretrained("run", **{option: "embed/token"}))


def test_a_pattern_that_is_no_regex():
    with pytest.raises(ValueError, match=r"init.fresh='\(' is no regex"):
        merge(body(0.0), body(1.0), Pretrained("run", fresh="("))


def test_what_is_merged_lies_where_the_model_lies():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    initial = jax.tree.map(lambda x: jax.device_put(x, rows), body(0.0, rows=8))
    merged = merge(initial, body(1.0), Pretrained("run", grow="embed/tokens"))
    assert {x.sharding for x in jax.tree.leaves(merged)} == {rows}


def test_scanned_and_unrolled_checkpoints_load_into_each_other():
    unrolled = body(5.0)
    scanned = {**unrolled, "blocks": {"layers": {"kernel": jnp.array([[[5.0] * 2] * 2, [[6.0] * 2] * 2])}}}
    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    for have, want in ((unrolled, scanned), (scanned, unrolled), (scanned, scanned)):
        merged = merge(zeros(want), have, Pretrained("run"))
        assert jax.tree.map(lambda x: x.tolist(), merged) == jax.tree.map(lambda x: x.tolist(), want)
    with pytest.raises(ValueError, match=r"blocks/2/kernel: nothing from the checkpoint"):
        merge(
            {**unrolled, "blocks": {**unrolled["blocks"], "2": {"kernel": jnp.zeros((2, 2))}}}, scanned, Pretrained("r")
        )


def test_load_takes_the_moving_average_and_the_step_that_are_asked_for(tmp_path):
    save_run(tmp_path, body(1.0), body(2.0), ema=True)
    assert read(Pretrained(str(tmp_path)))["embed"]["tokens"][0, 0] == 2.0
    assert read(Pretrained(str(tmp_path), step=0))["embed"]["tokens"][0, 0] == 1.0
    assert read(Pretrained(str(tmp_path), ema=True))["embed"]["tokens"][0, 0] == -2.0


def test_load_from_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FolderError, match=r"is no run: it lacks experiment.json, tokenizer.json, checkpoints"):
        read(Pretrained(str(tmp_path)))


def save_run(path, *params: dict, ema: bool = False) -> None:
    experiment = Experiment(task=LanguageModeling(length=4), data=Data(train=[]), steps=1, batch_size=1)
    (path / "experiment.json").write_text(to_json(experiment))
    (path / "tokenizer.json").touch()
    checkpoints = Checkpoints(path / "checkpoints")
    for step, value in enumerate(params):
        checkpoints.save(step, State(jnp.int32(step), value, jax.tree.map(jnp.negative, value) if ema else None))
    checkpoints.close()
