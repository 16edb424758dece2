"""Checkpoints survive kills, flipped bytes and full disks, and load on other devices."""

import dataclasses
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.training import checkpoint
from jaxnlp.training.checkpoint import CheckpointError, Checkpoints, load_average, load_params


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any
    rng: Any


OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(optax.adamw(1e-3), {"embed": True, "blocks": {"0": {"kernel": True, "bias": False}}}),
)


def make_state(step: int, *, size: int = 4, ema: bool = False) -> State:
    """Every number depends on the step, so that a mixture of two steps would show."""
    params = {
        "embed": jnp.full((size, 3), step, jnp.bfloat16),
        "blocks": {
            "0": {"kernel": jnp.arange(3.0 * size).reshape(size, 3) + step, "bias": jnp.full((3,), -1.0 * step)}
        },
    }
    return State(
        step=jnp.int32(step),
        params=params,
        opt_state=jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), OPTIMIZER.init(params)),
        ema=jax.tree.map(lambda x: x / 2, params) if ema else None,
        rng=jax.random.key(step),
    )


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def save(directory, *steps: int, metrics=(), state=make_state, **options) -> None:
    checkpoints = Checkpoints(directory, **options)
    for step, measured in itertools.zip_longest(steps, metrics):
        checkpoints.save(step, state(step), measured)
    checkpoints.close()


ABSTRACT = jax.eval_shape(lambda: make_state(0))


# Round trips


@pytest.mark.parametrize("ema", [False, True])
def test_state_comes_back_bit_for_bit_from_abstract_shapes(tmp_path, ema):
    save(tmp_path, 3, state=lambda step: make_state(step, ema=ema))
    state, step = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: make_state(0, ema=ema)))
    assert step == 3
    assert_same(state, make_state(3, ema=ema))


def test_state_may_be_donated_at_once(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep_latest=9)
    for step in range(3):
        params = {name: jnp.full((512, 1024), step, jnp.float32) for name in "abc"}
        host = np.full(1000, step)
        checkpoints.save(step, State(jnp.int32(step), params, {"host": host}, None, None))
        jax.block_until_ready(overwrite(params))
        host[:] = -1
    abstract = State(jnp.int32(0), params, {"host": host}, None, None)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), abstract)
    for step in range(3):
        state, _ = checkpoints.restore(abstract, step)
        for leaf in jax.tree.leaves(state):
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, step))


def test_params_load_alone(tmp_path):
    save(tmp_path, 1, 2, state=lambda step: make_state(step, ema=True))
    params, step = load_params(tmp_path)
    assert step == 2
    assert_same(params, make_state(2).params)
    assert_same(load_params(tmp_path, 1, ema=True)[0], make_state(1, ema=True).ema)
    params, _ = load_params(tmp_path, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_the_last_checkpoints_average(tmp_path):
    save(tmp_path, 1, 2, 4, keep_latest=3)
    found, step = load_average(tmp_path, 2)
    assert step == 4
    two, four = make_state(2).params, make_state(4).params
    assert_same(found, jax.tree.map(lambda a, b: (a + b) / 2, two, four))
    with pytest.raises(CheckpointError, match=r"average=4: .* has the steps \[1, 2, 4\]; allowed: 1 to 3"):
        load_average(tmp_path, 4)


def test_params_load_without_reading_the_optimizer(tmp_path, monkeypatch):
    save(tmp_path, 1)
    asked = []
    load = checkpoint.ocp.load_checkpointables
    monkeypatch.setattr(
        checkpoint.ocp, "load_checkpointables", lambda path, tree: asked.append(set(tree)) or load(path, tree)
    )
    load_params(tmp_path)
    assert asked == [{"params"}]


def test_no_moving_average(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"1 holds no ema"):
        load_params(tmp_path, ema=True)


SHARDED = """
    import jax, sys
    from jax.sharding import NamedSharding, PartitionSpec as P
    from jaxnlp.training.checkpoint import Checkpoints, load_params
    from test_checkpoint import make_state, assert_same
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = lambda x: NamedSharding(mesh, P("x") if x.ndim == 2 else P())
    params, _ = load_params(sys.argv[1], sharding=lambda tree: jax.tree.map(rows, tree))
    assert len(params["embed"].sharding.device_set) == 8 and params["embed"].addressable_shards[0].data.shape == (1, 3)
    assert_same(params, make_state(1, size=8).params)
    state = make_state(2, size=8)
    state = jax.tree.map(lambda x: jax.device_put(x, rows(x)), state)
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(2, state)
    restored, _ = checkpoints.restore(state)
    assert restored.params["embed"].sharding == state.params["embed"].sharding
    checkpoints.close()
"""


def test_one_device_to_eight_and_back(tmp_path):
    save(tmp_path, 1, state=lambda step: make_state(step, size=8))
    python(SHARDED, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8").communicate()
    with warnings.catch_warnings(action="error"):
        state, step = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: make_state(0, size=8)))
    assert step == 2
    assert_same(state, make_state(2, size=8))
    assert_same(load_params(tmp_path)[0], make_state(2, size=8).params)


def test_restore_lists_every_path_that_does_not_fit(tmp_path):
    save(tmp_path, 1)
    params = {"embed": jnp.zeros((5, 3), jnp.bfloat16), "head": jnp.zeros(2), "blocks": ABSTRACT.params["blocks"]}
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).restore(ABSTRACT.replace(params=params, step=jax.ShapeDtypeStruct((), jnp.uint32)))
    assert str(error.value).splitlines()[1:] == [
        "  params/head: missing (expected float32[2])",
        "  params/embed: found bfloat16[4, 3], expected bfloat16[5, 3]",
        "  training/step: found int32[], expected uint32[]",
    ]
    with pytest.raises(CheckpointError, match=r"params/embed: unexpected \(found bfloat16\[4, 3\]\)"):
        Checkpoints(tmp_path).restore(ABSTRACT.replace(params={"blocks": ABSTRACT.params["blocks"]}))


# What is kept


def test_latest_and_best_are_kept(tmp_path):
    losses = [3.0, 1.0, 2.0, float("nan"), 1.5, 1.7]
    save(tmp_path, *range(6), metrics=[{"loss": loss} for loss in losses], keep_latest=2, keep_best=2)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps == [1, 4, 5]
    assert checkpoints.best_step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.json", "4", "4.json", "5", "5.json"]
    assert checkpoints.restore(ABSTRACT, "best")[1] == load_params(tmp_path, "best")[1] == 1


def test_higher_is_better_for_accuracy_and_unmeasured_steps_are_not_best(tmp_path):
    save(tmp_path, 1, 2, 3, metrics=[{"accuracy": 0.9}, {"accuracy": 0.8}], keep_latest=1, monitor="accuracy")
    assert Checkpoints(tmp_path, monitor="accuracy").best_step == 1
    assert load_params(tmp_path, "best")[1] == 1
    assert Checkpoints(tmp_path).best_step is None  # by the loss, which nobody measured


def test_debris_of_a_killed_save_goes_and_other_files_stay(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "2.orbax-checkpoint-tmp-123" / "params").mkdir(parents=True)
    (tmp_path / "2.json.tmp").touch()
    (tmp_path / "2").mkdir()
    (tmp_path / "notes.txt").touch()
    checkpoints = Checkpoints(tmp_path, keep_latest=2)
    assert checkpoints.steps == [1]
    checkpoints.save(3, make_state(3))
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.json", "3", "3.json", "notes.txt"]


def test_missing_step_and_empty_folder(tmp_path):
    save(tmp_path / "some", 1, 2)
    with pytest.raises(CheckpointError, match=r"no step 3; found: 1, 2"):
        load_params(tmp_path / "some", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint that can be read \(latest\)"):
        load_params(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_params(tmp_path / "none")


def test_a_step_is_saved_once(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="step 1 is already saved"):
        save(tmp_path, 1)


# What goes wrong


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    save(directory, 1, 2)
    return directory


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip, truncate, os.remove])
def test_any_harmed_file_is_noticed_and_the_step_before_taken(two_steps, tmp_path, harm):
    names = ["2.json", *(str(path.relative_to(two_steps)) for path in (two_steps / "2").rglob("*") if path.is_file())]
    assert len(names) > 10
    for number, name in enumerate(names):
        if harm is not os.remove and (two_steps / name).stat().st_size == 0:
            continue
        directory = tmp_path / str(number)
        shutil.copytree(two_steps, directory)
        harm(directory / name)
        with pytest.warns(UserWarning, match=rf"step 2 is passed over for step 1: {name} (is missing|is damaged|has)"):
            _, step = Checkpoints(directory).restore(ABSTRACT)
        assert step == 1
        if name.startswith("2/params/"):
            with pytest.warns(UserWarning, match="step 2 is passed over for step 1"):
                _, step = load_params(directory)
            assert step == 1


def test_harmed_step_is_replaced_and_never_counts(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    flip(tmp_path / "2" / "params" / "_METADATA")
    checkpoints = Checkpoints(tmp_path, keep_latest=2)
    with pytest.warns(UserWarning, match="step 2 is passed over"):
        state, step = checkpoints.restore(ABSTRACT)
    assert_same(state, make_state(1))
    assert (step, checkpoints.steps) == (1, [1])
    checkpoints.save(2, make_state(2))
    checkpoints.close()
    assert checkpoints.steps == [1, 2]
    assert_same(Checkpoints(tmp_path).restore(ABSTRACT)[0], make_state(2))


def test_harmed_step_does_not_push_out_a_good_one(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    flip(tmp_path / "2" / "params" / "_METADATA")
    checkpoints = Checkpoints(tmp_path, keep_latest=2)
    with pytest.warns(UserWarning, match="step 2 is passed over"):
        checkpoints.restore(ABSTRACT)
    checkpoints.save(3, make_state(3))
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.json", "3", "3.json"]


def test_nothing_left_names_every_harm(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    truncate(tmp_path / "1" / "params" / "_METADATA")
    os.remove(tmp_path / "2.json")
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).restore(ABSTRACT)
    assert [line.split(" has ")[0] for line in str(error.value).splitlines()[1:]] == [
        "  step 1: 1/params/_METADATA",
        "  step 2: 2.json is missing: its save was cut off",
    ]
    with pytest.raises(CheckpointError, match=r"step 1: 1/params/_METADATA has"):
        load_params(tmp_path, 1)


def test_only_manifest_harmed_is_a_run_begun_and_not_a_fresh_start(tmp_path):
    assert not Checkpoints(tmp_path).begun
    save(tmp_path, 1)
    truncate(tmp_path / "1.json")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.begun and checkpoints.steps == []
    with pytest.raises(CheckpointError, match=r"step 1: 1\.json is damaged"):
        checkpoints.restore(ABSTRACT)


def test_harmed_best_gives_way_to_the_next_best(tmp_path):
    save(tmp_path, 1, 2, 3, metrics=[{"loss": 2.0}, {"loss": 1.0}, {"loss": 3.0}], keep_latest=3)
    truncate(tmp_path / "2" / "params" / "_METADATA")
    with pytest.warns(UserWarning, match="step 2 is passed over for step 1"):
        assert load_params(tmp_path, "best")[1] == 1


def test_full_disk_leaves_the_old_checkpoint_and_is_told_once(tmp_path):
    """A limit on the size of files stands for the full disk: the system refuses to write in the same places."""
    size = 100_000
    save(tmp_path, 1, state=lambda step: make_state(step, size=size))
    before = sorted(tmp_path.iterdir())
    checkpoints = Checkpoints(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        checkpoints.save(2, make_state(2, size=size))
        with pytest.raises(CheckpointError, match=rf"step 2 could not be saved \({tmp_path}, [\d,]+ bytes free\)"):
            checkpoints.save(3, make_state(3, size=size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before
    assert checkpoints.steps == [1]
    checkpoints.save(3, make_state(3, size=size))  # room again
    checkpoints.close()
    assert checkpoints.steps == [1, 3]


def test_no_room_for_the_folder(tmp_path, monkeypatch):
    save(tmp_path, 1)
    before = sorted(tmp_path.iterdir())
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        began = time.perf_counter()
        with pytest.raises(CheckpointError, match="step 2 could not be saved"):
            checkpoints.save(2, make_state(2))
            checkpoints.wait()
    assert time.perf_counter() - began < 10
    assert sorted(tmp_path.iterdir()) == before
    checkpoints.save(2, make_state(2))
    checkpoints.close()
    assert checkpoints.steps == [1, 2]


def test_no_room_for_the_manifest(tmp_path, monkeypatch):
    save(tmp_path, 1)
    before = sorted(tmp_path.iterdir())

    def full(path, data):
        path.with_name(path.name + ".tmp").write_text(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    checkpoints = Checkpoints(tmp_path, keep_latest=1)
    checkpoints.save(2, make_state(2))
    with pytest.raises(CheckpointError, match=r"step 2 could not be saved .* No space left on device"):
        checkpoints.close()
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_deleted_before_the_new_step_is_whole(tmp_path, monkeypatch):
    save(tmp_path, 1)
    events = []
    write, delete = checkpoint._write_manifest, checkpoint._delete
    monkeypatch.setattr(checkpoint, "_write_manifest", lambda d, m: (write(d, m), events.append(("whole", m.step))))
    monkeypatch.setattr(checkpoint, "_delete", lambda d, step: (delete(d, step), events.append(("gone", step))))
    checkpoints = Checkpoints(tmp_path, keep_latest=1)
    checkpoints.save(2, make_state(2))
    checkpoints.close()
    assert events == [("gone", 2), ("whole", 2), ("gone", 1)]  # the first makes room for 2 where nothing is


KILLED = """
    import sys
    from jaxnlp.training.checkpoint import Checkpoints
    from test_checkpoint import make_state
    checkpoints = Checkpoints(sys.argv[1], keep_latest=2)
    for step in range(1, 10_000):
        checkpoints.save(step, make_state(step, size=50_000))
        print(step - 1, flush=True)  # the one before is whole
"""


def test_killed_while_saving(tmp_path):
    rng = random.Random(0)
    processes = [python(KILLED, tmp_path / str(i)) for i in range(3)]
    lines = [[process.stdout.readline() for _ in range(3)] for process in processes]
    for process in processes:
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
    for i, process in enumerate(processes):
        whole = int((lines[i] + process.communicate()[0].splitlines())[-1])
        checkpoints = Checkpoints(tmp_path / str(i))
        with warnings.catch_warnings(action="ignore"):  # the step that was cut off
            state, step = checkpoints.restore(jax.eval_shape(lambda: make_state(0, size=50_000)))
        assert step >= whole
        assert_same(state, make_state(step, size=50_000))
        checkpoints.save(step + 1, make_state(step + 1))
        checkpoints.close()
        names = [str(step), f"{step}.json", str(step + 1), f"{step + 1}.json"]
        assert {path.name for path in (tmp_path / str(i)).iterdir()} <= {str(step - 1), f"{step - 1}.json", *names}


def python(code: str, *args: Any, **environment: str) -> subprocess.Popen:
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.pathsep.join([os.path.dirname(os.path.dirname(here)), here])
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process


def test_manifest_says_what_the_step_holds(tmp_path):
    save(tmp_path, 1, metrics=[{"loss": 0.5}])
    manifest = json.loads((tmp_path / "1.json").read_text())["manifest"]
    assert manifest["metrics"] == {"loss": 0.5}
    assert manifest["leaves"]["params/blocks/0/kernel"] == {"dtype": "float32", "shape": [4, 3]}
    assert manifest["leaves"]["training/rng"] == {"dtype": "key<fry>", "shape": []}
    assert {field.name for field in dataclasses.fields(checkpoint.Manifest)} == set(manifest)
