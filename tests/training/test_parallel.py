"""jit = pmap = mesh: losses, gradients and parameters after SGD, with padding, accumulation and dropout; the rules."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxnlp.models import bert, gpt, heads, rnn, seq2seq, transformer
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.labelled import with_next
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.masked_lm import MaskedLM
from jaxnlp.tasks.translation import Translation
from jaxnlp.training import parallel
from jaxnlp.training.optim import Optim, optimizer
from jaxnlp.training.step import Trainer, losses_of

CONFIG = gpt.Config(
    n_layers=2, d_model=32, n_heads=4, vocab_size=120, n_positions=16, dropout=0.0, attention_dropout=0.0
)
MESHES = (
    "data=8",
    "fsdp=8",
    "fsdp=2,tensor=4",
    "fsdp=4,sequence=2",
    "data=2,fsdp=2,tensor=2",
    "fsdp=2,sequence=2,tensor=2",
)
FORMS = ("pmap", *MESHES)
ROWS, LENGTH, STEPS = 16, 16, 20


def trainer(config=CONFIG, **fields) -> Trainer:
    given = {"model": config.build(), "task": LanguageModeling(length=LENGTH), **fields}
    return Trainer(optim=Optim(), optimizer=SGD, **given)


def _sgd(gradient, state, params=None):
    return jax.tree.map(lambda g: -0.3 * g, gradient), gradient


SGD = optax.GradientTransformation(init=optax.tree.zeros_like, update=_sgd)  # its state is the last gradient


@pytest.fixture(scope="module")
def batches():
    """Rows with 16, 15, … tokens that count, the last ones with none: the mean of parts' means would be wrong."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 120, (STEPS, ROWS, LENGTH + 1)).astype(np.int32)
    weights = (np.arange(LENGTH) < LENGTH + 2 - 1.5 * np.arange(ROWS)[:, None]).astype(np.float32)
    weights = np.tile(weights, (STEPS, 1, 1))
    return {"input_ids": ids[..., :-1], "labels": ids[..., 1:], "weights": weights, "bytes": weights.sum(-1)}


def run(form: str, batches, **fields):
    """The state after all batches, from a run of one step a call with a gradient at its start."""
    layout = parallel.layout(form)
    t = trainer(**{"axis": layout.axis, **fields})
    first = jax.tree.map(lambda x: x[0], batches)

    def init(key):
        return t.init(t.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"], first)

    state = layout.make(init, jax.random.key(0))
    update = layout.update(t.train_steps)
    measured = layout.measure(t.eval_step)(state.params, layout.place(jax.tree.map(lambda x: x[:1], batches), ROWS))
    losses = []
    for i in range(len(batches["input_ids"])):
        state, sums = update(state, layout.place(jax.tree.map(lambda x, i=i: x[i : i + 1], batches), ROWS))
        losses.append(sum(float(sums[name][0] / sums[name][1]) for name in losses_of(t.task)))
        if i == 0:
            gradient = jax.device_get(state.opt_state)
    return state, losses, gradient, jax.device_get(measured)


def assert_close(found, expected, tolerance=1e-5):
    def close(path, a, b):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * np.abs(b).max(), path

    paths = parallel.by_path(lambda path, _: path, expected)
    jax.tree.map(close, paths, found, expected)


@pytest.fixture(scope="module")
def expected(batches):
    return run("jit", batches)


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        *(pytest.param(form, {}, marks=[pytest.mark.slow] * (form in MESHES[:4]), id=form) for form in FORMS),
        *((form, {"accumulate": 2}) for form in ("pmap", MESHES[-1])),
    ],
)
def test_agrees_with_plain_jit(form, fields, batches, expected):
    state, losses, gradient, measured = run(form, batches, **fields)
    np.testing.assert_allclose(losses, expected[1], rtol=1e-5)
    assert_close(gradient, expected[2])
    assert_close(state.params, expected[0].params)
    np.testing.assert_allclose(measured["loss"], expected[3]["loss"], rtol=1e-5)
    np.testing.assert_allclose(jax.device_get(state.sums)["loss"], expected[0].sums["loss"], rtol=1e-5)


OTHERS = {
    "rnn": (rnn.Config(vocab_size=120, cell="gru", d_model=32, dropout=0.0), LanguageModeling(length=LENGTH)),
    "seq2seq": (
        seq2seq.Config(vocab_size=120, d_embed=16, d_model=32, tied=True, attention="general", input_feeding=True),
        Translation(length=LENGTH),
    ),
    "transformer": (
        transformer.Config(
            vocab_size=120, n_encoder_layers=1, n_decoder_layers=2, d_model=32, n_heads=4, d_ff=64, dropout=0.0
        ),
        Translation(length=LENGTH),
    ),
}


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        *(pytest.param(form, {}, marks=pytest.mark.slow) for form in ("pmap", MESHES[-1])),
        (MESHES[-2], {"accumulate": 2}),
    ],
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("rnn", "seq2seq"))) for name in OTHERS]
)
def test_other_models_agree_with_plain_jit(name, form, fields, batches):
    config, task = OTHERS[name]
    few = {key: batches[key][:4] for key in ("input_ids", "labels", "weights")}
    if name != "rnn":
        mask = few["weights"][..., ::-1] if fields else few["weights"]  # padding on the left, or on the right
        few |= {"attention_mask": mask.astype(np.int32), "decoder_input_ids": few["input_ids"][..., ::-1]}
    given = {"model": config.build(), "task": task}
    expected = run("jit", few, **given)
    found = run(form, few, **given, **fields)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    assert_close(found[2], expected[2])
    assert_close(found[0].params, expected[0].params)
    np.testing.assert_allclose(found[3]["loss"], expected[3]["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (MESHES[-1], {}),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("pmap", {"accumulate": 2}), (MESHES[1], {}))),
    ],
)
def test_two_losses_agree_with_plain_jit(form, fields):
    """Masked words and the next sentence, each a mean over the whole batch; three places a row, which nothing cuts."""
    task, rng = MaskedLM(length=LENGTH), np.random.default_rng(0)
    shapes = {name: (4, *x.shape) for name, x in task.shapes(ROWS).items()}
    few = {name: rng.integers(0, 120, shape).astype(np.int32) for name, shape in shapes.items()}
    real = np.float32(rng.random((4, ROWS)) < 0.7)
    few |= {"next_sentence_weights": real, "weights": real[..., None] * (rng.random(shapes["weights"]) < 0.6)}
    few["weights"] = few["weights"].astype(np.float32)
    few["masked_positions"] %= LENGTH
    few["attention_mask"] = np.broadcast_to(np.int32(np.arange(LENGTH) < 13), shapes["attention_mask"]).copy()
    for name in ("token_type_ids", "next_sentence_labels"):
        few[name] %= 2
    config = bert.Config(
        vocab_size=120, n_positions=16, n_layers=1, d_model=32, n_heads=4, dropout=0.0, attention_dropout=0.0
    )
    given = {"model": config.build(task.heads), "task": task}
    expected, found = run("jit", few, **given), run(form, few, **given, **fields)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    assert_close(found[2], expected[2])
    assert_close(found[0].params, expected[0].params)
    for name, sums in expected[3].items():
        np.testing.assert_allclose(found[3][name], sums, rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (MESHES[-1], {}),
        *(pytest.param(*form, marks=pytest.mark.slow) for form in (("pmap", {"accumulate": 2}), (MESHES[1], {}))),
    ],
)
def test_a_label_and_the_words_beside_it_agree_with_plain_jit(form, fields):
    """Each a mean over the whole batch, of rows in both orders and of ragged lengths, some of weight 0."""
    task = Classification(labels=("x", "y", "z"), text="a", pair="b", symmetric=True, length=LENGTH, auxiliary=0.5)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 120, (4, ROWS, 2, LENGTH)).astype(np.int32)
    mask = np.int32(np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (4, ROWS, 1, 1)))
    few = {"input_ids": ids, "attention_mask": np.broadcast_to(mask, ids.shape).copy()}
    few |= {
        "labels": rng.integers(0, 3, (4, ROWS)).astype(np.int32),
        "weights": np.float32(rng.random((4, ROWS)) < 0.7),
    }
    parts = [with_next({name: x[i] for name, x in few.items()}) for i in range(4)]
    few = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    given = {"model": CONFIG.build(task.heads), "task": task}
    expected, found = run("jit", few, **given), run(form, few, **given, **fields)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    assert_close(found[2], expected[2])
    assert_close(found[0].params, expected[0].params)
    for name, sums in expected[3].items():
        np.testing.assert_allclose(found[3][name], sums, rtol=1e-5)


# Dropout --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [pytest.param("data=2,fsdp=2,tensor=2", marks=pytest.mark.slow), "fsdp=2,sequence=4"])
def test_a_mesh_draws_the_masks_of_plain_jit(form, batches):
    few = jax.tree.map(lambda x: x[:3], batches)
    config = dataclasses.replace(CONFIG, dropout=0.3, attention_dropout=0.3)
    dropped = run("jit", few, model=config.build(), accumulate=2)
    np.testing.assert_allclose(run(form, few, model=config.build(), accumulate=2)[1], dropped[1], rtol=1e-5)
    assert abs(dropped[1][1] / run("jit", few)[1][1] - 1) > 1e-4  # something was dropped


class Drop(nn.Module):
    """Nothing but dropout of a row of ones for each row of the batch."""

    @nn.compact
    def __call__(self, input_ids, deterministic=True):
        ones = jnp.ones((len(input_ids), 64)) * self.param("scale", nn.initializers.ones, (1, 64))
        return nn.Dropout(0.5, deterministic=deterministic)(ones)


def test_under_pmap_and_accumulation_no_two_rows_share_a_mask(batches):
    """Of all rows, in every device's part, every microbatch and three steps."""
    seen = []

    class Watch(LanguageModeling):
        def sums(self, apply, batch, *, training):
            dropped = apply(batch["input_ids"])
            jax.debug.callback(lambda x: seen.extend(np.asarray(x) != 0), jax.lax.stop_gradient(dropped))
            return {"loss": (dropped.sum(), jnp.float32(len(dropped)))}

    run_three = jax.tree.map(lambda x: x[:3], batches)
    layout = parallel.layout("pmap")
    t = trainer(model=Drop(), task=Watch(), accumulate=2, axis=layout.axis)
    state = layout.make(lambda: t.init({"scale": jnp.ones((1, 64))}, jax.tree.map(lambda x: x[0], batches)))
    jax.block_until_ready(layout.update(t.train_steps)(state, layout.place(run_three, ROWS)))
    jax.effects_barrier()
    assert len(seen) == 3 * ROWS
    assert len({row.tobytes() for row in seen}) == 3 * ROWS
    assert 0.4 < np.mean(seen) < 0.6


# Rules ----------------------------------------------------------------------------------------------------------------


BUILT = {
    "gpt": gpt.VARIANTS["gpt2"].build((heads.Classification(3),)),
    "scanned": dataclasses.replace(gpt.VARIANTS["gpt2"], scan=True).build((heads.Classification(3),)),
    "bert": bert.VARIANTS["tiny"].build((heads.MaskedLM(), heads.NextSentence())),
    "rnn": rnn.Config().build(),
    **{name: seq2seq.VARIANTS[name].build() for name in ("rnnsearch", "luong")},
    "transformer": dataclasses.replace(transformer.VARIANTS["base"], target_vocab_size=999, output_bias=True).build(),
    "transformer scanned": dataclasses.replace(transformer.VARIANTS["big"], scan=True, norm_first=True).build(),
}


def parameters(name: str):
    """Shapes of every parameter that a model may have, by path."""
    model = BUILT[name]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return flatten_dict(shapes, sep="/")


@pytest.mark.parametrize("name", BUILT)
def test_every_matrix_matches_a_rule(name):
    for path, x in parameters(name).items():
        rules = [names for pattern, names in parallel.RULES.items() if re.search(f"(^|/)({pattern})$", path)]
        assert len(rules) == 1, f"{path}: {rules}"
        layers = ("scanned" in name and "blocks/" in path) or path.startswith("memory/")
        assert len(rules[0]) == x.ndim - layers, path
        assert parallel.axes(path, x.ndim) == (None,) * layers + rules[0]


def test_every_rule_matches_something():
    paths = [path for name in BUILT for path in parameters(name)]
    for pattern in parallel.RULES:
        assert any(re.search(f"(^|/)({pattern})$", path) for path in paths), pattern


@pytest.mark.parametrize("name", ["gpt", "scanned", "rnnsearch"])
def test_what_is_large_is_cut_and_what_follows_the_parameters_lies_with_them(name):
    layout = parallel.OverMesh(parallel.make_mesh({"fsdp": 4, "tensor": 2}))
    t = dataclasses.replace(trainer(BUILT[name].config), optimizer=optimizer(Optim(), 10), ema=0.9)
    if name == "rnnsearch":
        t = dataclasses.replace(t, task=Translation(length=8))
    batch = t.task.shapes(8)

    def init(key):
        return t.init(t.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"], batch)

    state = layout.abstract(jax.eval_shape(init, jax.random.key(0)))
    leaves = {}
    parallel.by_path(lambda path, x: leaves.update({path: x}), state)
    for path, x in leaves.items():
        if x.size > 2**16:
            assert math.prod(x.sharding.shard_shape(x.shape)) <= x.size / 4, path
    for path, x in leaves.items():
        if not path.startswith("params/"):
            continue
        name = path.removeprefix("params/")
        followers = [follower for follower in leaves if follower.endswith(f"/{name}") and follower != path]
        assert len(followers) == 3, followers  # ema, and AdamW's two moments
        assert {leaves[follower].sharding for follower in followers} == {x.sharding}


# What cannot be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["fsdp", "fsdp=0", "fsdp=4,fsdp=2", "model=2", "fsdp=two", ""])
def test_an_axis_or_size_that_is_none_is_refused(text):
    with pytest.raises(
        ValueError, match=r"found '.*'; allowed: jit, pmap, auto, or sizes of data, fsdp, sequence, tens"
    ):
        parallel.parse(text)


@pytest.mark.parametrize(("sizes", "message"), [
    ({"fsdp": 2, "tensor": 2}, r"parallel=fsdp=2,tensor=2 is for 4 devices, and there are 8; allowed: .* as fsdp=4 w"),
    ({"tensor": 3}, r"parallel=tensor=3 is for 3 devices, and there are 8; allowed: sizes that multiply to 8$"),
])  # fmt: skip
def test_a_mesh_of_other_than_all_devices_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        parallel.make_mesh(sizes)


@pytest.mark.parametrize(("sizes", "changed", "message"), [
    ({"tensor": 8}, {}, r"heads=4 cannot be cut by tensor=8; allowed: 1, 2, 4$"),
    ({"tensor": 3}, {}, r"cannot be cut by tensor=3; allowed: "),
    ({"fsdp": 3, "sequence": 2}, {}, r"width=32 cannot be cut by fsdp=3 \* sequence=2; allowed: 1, 2, 4, 8, 16, 32"),
    ({"sequence": 4}, {"lengths": [16, 6]}, r"queries=6 cannot be cut by sequence=4; allowed: 1, 2, 3, 6"),
    ({"data": 2, "fsdp": 4}, {"batch": {"ramp.rows": 12}}, r"ramp.rows=12 cannot be cut by data=2 \* fsdp=4; allowed"),
    ({"data": 8}, {"batch": {"batch_size": 4}}, r"batch_size=4 cannot be cut by data=8; allowed: 8 or a multiple"),
    ({"fsdp": 8}, {"accumulate": 4}, r"batch_size=16 cannot be cut by fsdp=8 \* accumulate=4; allowed: 32 or"),
])  # fmt: skip
def test_what_a_mesh_cannot_cut_is_refused(sizes, changed, message):
    params = jax.eval_shape(CONFIG.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    wanted = {"batch": {"batch_size": ROWS}, "accumulate": 1, "lengths": [LENGTH]} | changed
    with pytest.raises(ValueError, match=message):
        parallel.check({**parallel.Jit.sizes, **sizes}, params, **wanted)


def test_plain_jit_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"parallel='jit' in 2 processes; allowed: pmap, auto, or a mesh"):
        parallel.layout("jit")


@dataclasses.dataclass(frozen=True)
class _Device:
    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def test_data_runs_along_slices():
    devices = [_Device(id=i, slice_index=i % 2) for i in range(8)]
    mesh = parallel.make_mesh({"data": 2, "fsdp": 4}, devices)
    for row in range(2):
        assert {device.slice_index for device in mesh.devices[row].flat} == {row}
    assert parallel.whole_fsdp(devices) == {"data": 2, "fsdp": 4}
    mesh = parallel.make_mesh({"fsdp": 4, "tensor": 2}, devices)  # a model too large for one slice
    for half in (mesh.devices[0, :2], mesh.devices[0, 2:]):
        assert len({device.slice_index for device in half.flat}) == 1
    with pytest.raises(ValueError, match="2 slices or hosts with slow links between them; allowed: data=2"):
        parallel.make_mesh({"tensor": 8}, devices)


@pytest.mark.parametrize("each", [1, 3])
def test_a_process_loads_its_own_rows_alone_wherever_its_devices_lie(monkeypatch, each):
    layout = parallel.OverMesh(parallel.make_mesh({"fsdp": 8}))

    def of_two_devices(sharding, shape):
        return {d: index for d, index in sharding.devices_indices_map(shape).items() if d.id in (1, 6)}

    monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", of_two_devices)
    np.testing.assert_array_equal(layout.rows(16), [2, 3, 12, 13])
    parts = []

    def make(shape, sharding, part):
        parts.append((shape, [part(index) for index in of_two_devices(sharding, shape).values()]))
        return jnp.zeros(shape)

    monkeypatch.setattr(jax, "make_array_from_callback", make)
    every = np.arange(16 * each).reshape(1, 16, each)  # `each` rows where batch_size counts one
    layout.place({"input_ids": every[:, [2, 3, 12, 13]].reshape(1, -1)}, 16)
    [(shape, found)] = parts
    assert shape == (1, 16 * each)
    np.testing.assert_array_equal(found, [every[:, 2:4].reshape(1, -1), every[:, 12:14].reshape(1, -1)])
