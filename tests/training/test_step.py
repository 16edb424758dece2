"""The one step: microbatches equal the whole batch, bfloat16 equals float32 roughly, remat and scan change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.models import gpt
from jaxnlp.nn.blocks import stack_layers, unstack_layers
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training.optim import Optim
from jaxnlp.training.step import Trainer

CONFIG = gpt.Config(
    n_layers=2, d_model=16, n_heads=2, vocab_size=30, n_positions=12, dropout=0.0, attention_dropout=0.0
)


def trainer(config=CONFIG, **fields):
    return Trainer(config.build(), LanguageModeling(length=12), Optim(), optax.sgd(0.5), **fields)


@pytest.fixture(scope="module")
def batches():
    """Three batches of 8 rows with 12, 11, …, 5 tokens that count: ragged, so that means of means would be wrong."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, (3, 8, 13)).astype(np.int32)
    weights = np.tile((np.arange(12) < 12 - np.arange(8)[:, None]).astype(np.float32), (3, 1, 1))
    return {"input_ids": ids[..., :-1], "labels": ids[..., 1:], "weights": weights, "bytes": weights.sum(-1)}


@pytest.fixture(scope="module")
def params():
    return CONFIG.build().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def after(t: Trainer, params, batches):
    """Parameters after all batches, and what was measured."""
    first = jax.tree.map(lambda x: x[0], batches)
    state, _ = jax.jit(t.train_steps)(t.init(params, first), batches)
    return state.params, state.sums


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance * max(np.abs(y).max(), 0.1)), a, b)


@pytest.fixture(scope="module")
def expected(params, batches):
    return after(trainer(), params, batches)


def test_gradient_is_of_the_mean_over_all_tokens(params, batches, expected):
    """By hand: plain cross entropy from the logits, over all tokens that count, and SGD."""

    def loss(params, batch):
        logits = CONFIG.build().apply({"params": params}, batch["input_ids"])["logits"]
        log_p = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_p, batch["labels"][..., None], -1)[..., 0]
        return (nll * batch["weights"]).sum() / batch["weights"].sum()

    by_hand = params
    for i in range(3):
        gradient = jax.jit(jax.grad(loss))(by_hand, jax.tree.map(lambda x, i=i: x[i], batches))
        by_hand = jax.tree.map(lambda p, g: p - 0.5 * g, by_hand, gradient)
    assert_close(expected[0], by_hand)


def test_the_moving_average_forgets_the_initial_parameters(params, batches):
    """Decays 1/10, 2/11 and 0.2 of at most 0.2: TensorFlow's ExponentialMovingAverage with num_updates."""
    states = [trainer(ema=0.2).init(params, jax.tree.map(lambda x: x[0], batches))]
    for i in range(3):
        states.append(jax.jit(trainer(ema=0.2).train_step)(states[-1], jax.tree.map(lambda x, i=i: x[i], batches))[0])
    average = params
    for decay, state in zip((1 / 10, 2 / 11, 0.2), states[1:], strict=True):
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
        assert_close(state.ema, average)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_microbatches_equal_the_batch(accumulate, params, batches, expected):
    assert_close(after(trainer(accumulate=accumulate), params, batches), expected)


def test_scanned_and_recomputed_layers_equal_plain_ones(params, batches, expected):
    config = dataclasses.replace(CONFIG, scan=True, remat="full")
    found, sums = after(trainer(config), stack_layers(params), batches)
    assert_close((unstack_layers(found), sums), expected)


def test_bfloat16_is_close_and_keeps_float32_parameters(params, batches, expected):
    found, sums = after(trainer(dataclasses.replace(CONFIG, dtype="bfloat16")), params, batches)
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {"float32"}
    moved = lambda tree: jax.tree.map(lambda a, b: a - b, tree, params)  # noqa: E731
    norm = optax.tree.norm(jax.tree.map(jnp.subtract, found, expected[0]))
    assert norm < 0.03 * optax.tree.norm(moved(expected[0]))
    np.testing.assert_allclose(sums["loss"][0], expected[1]["loss"][0], rtol=5e-3)


def test_dropout_differs_from_step_to_step_and_seed_to_seed(params, batches):
    config = dataclasses.replace(CONFIG, dropout=0.5)
    same = jax.tree.map(lambda x: np.stack([x[0]] * 3), batches)
    losses = set()
    for seed in (0, 1):
        t = dataclasses.replace(trainer(config, seed=seed), optimizer=optax.sgd(0.0))
        state = t.init(params, jax.tree.map(lambda x: x[0], same))
        for i in range(3):
            state, sums = jax.jit(t.train_step)(state, jax.tree.map(lambda x, i=i: x[i], same))
            losses.add(float(sums["loss"][0]))
    assert len(losses) == 6


def test_the_first_bad_step_is_remembered(params, batches):
    broken = batches | {"weights": batches["weights"].copy()}
    broken["weights"][1, 0, 0] = np.inf
    first = jax.tree.map(lambda x: x[0], broken)
    state, _ = jax.jit(trainer().train_steps)(trainer().init(params, first), broken)
    assert int(state.bad_step) == 2
