"""jit = pmap = mesh: losses, gradients and parameters after SGD, with ragged padding and accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training import parallel
from jaxnlp.training.optim import Optim
from jaxnlp.training.step import Trainer

CONFIG = gpt.Config(
    n_layers=2, d_model=32, n_heads=4, vocab_size=120, n_positions=16, dropout=0.0, attention_dropout=0.0
)
MESHES = (
    "data=8",
    "fsdp=8",
    "data=2,fsdp=4",
    "fsdp=2,tensor=4",
    "fsdp=4,sequence=2",
    "data=2,fsdp=2,sequence=1,tensor=2",
    "data=1,fsdp=2,sequence=2,tensor=2",
)
ROWS, LENGTH, STEPS = 16, 16, 20


def trainer(config=CONFIG, **fields) -> Trainer:
    return Trainer(config.build(), LanguageModeling(length=LENGTH), Optim(), optax.sgd(0.3), **fields)


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
    before = jax.device_get(state.params)
    losses = []
    for i in range(len(batches["input_ids"])):
        state, sums = update(state, layout.place(jax.tree.map(lambda x, i=i: x[i : i + 1], batches), ROWS))
        losses.append(float(sums["loss"][0] / sums["loss"][1]))
        if i == 0:  # of plain SGD, the first step is the gradient
            gradient = jax.tree.map(lambda a, b: (a - b) / 0.3, before, jax.device_get(state.params))
    return state, losses, gradient, jax.device_get(measured)


def assert_close(found, expected, tolerance=1e-5):
    def close(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        if "qkv/bias" in path:  # the keys' has gradient zero by mathematics: against the others'
            a, b = a.reshape(-1), b.reshape(-1)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), path

    paths = parallel.by_path(lambda path, _: path, expected)
    jax.tree.map(close, paths, found, expected)


@pytest.fixture(scope="module")
def expected(batches):
    return run("jit", batches)


@pytest.mark.parametrize("fields", [{}, {"accumulate": 2}], ids=["whole", "accumulated"])
@pytest.mark.parametrize("form", ["pmap", *MESHES])
def test_agrees_with_plain_jit(form, fields, batches, expected):
    state, losses, gradient, measured = run(form, batches, **fields)
    np.testing.assert_allclose(losses, expected[1], rtol=1e-5)
    assert_close(gradient, expected[2], 3e-5)  # the difference of parameters of size 1 carries their rounding
    assert_close(state.params, expected[0].params)
    np.testing.assert_allclose(measured["loss"], expected[3]["loss"], rtol=1e-5)
    np.testing.assert_allclose(jax.device_get(state.sums)["loss"], expected[0].sums["loss"], rtol=1e-5)
