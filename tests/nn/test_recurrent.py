"""Layers over time against PyTorch (stored arrays), and what must hold of any cell."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn
from jax.test_util import check_grads

from jaxnlp.nn.recurrent import Recurrent, from_torch, lengths_to_mask, to_torch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ORACLE = runpy.run_path(str(GOLDEN / "recurrent.py"))
B, T, D, H, LENGTHS, MODELS = (ORACLE[name] for name in ("B", "T", "D", "H", "LENGTHS", "MODELS"))
MASK = lengths_to_mask(np.array(LENGTHS), T)
CELLS = {"rnn": {}, "lstm": {}, "gru": {}, "gru before": {"reset": "before"}}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "recurrent.npz"))


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def randomized(params, seed=0, scale=0.4):
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten([scale * random(*x.shape, seed=seed + i) for i, x in enumerate(leaves)])


def close(actual, desired, tolerance=1e-5):
    scale = max(np.abs(np.asarray(desired)).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(actual), desired, rtol=0, atol=tolerance * scale)


def made(name, **options):
    """A model of the cell, every parameter random, a batch, and a first carry."""
    model = Recurrent(name.split()[0], H, **CELLS[name], **options)
    x = random(B, T, options.get("width", D))
    carry = randomized(model.initial_carry(B), seed=50)
    return model, randomized(jax.eval_shape(model.init, jax.random.key(0), x)["params"]), x, carry


def _weights(a):
    return jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape)


def value_and_gradients(model, params, x, mask, carry, rngs=None):
    """Outputs and last carry, and the gradients of a fixed weighting of both."""

    def loss(params, x, carry):
        y, last = model.apply({"params": params}, x, mask, carry, rngs=rngs)
        weighted = jax.tree.map(lambda a: (a * _weights(a)).sum(), (y, last))
        return sum(jax.tree.leaves(weighted)), (y, last)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, x, carry)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["whole", "ragged"])
def test_equals_torch(name, form, golden):
    kind, n_layers, both = MODELS[name]
    own = {"activation": "relu"} if kind == "RNN-relu" else {}
    model = Recurrent(kind.partition("-")[0].lower(), H, n_layers=n_layers, bidirectional=both, **own)
    of = lambda at: {k.removeprefix(at): v for k, v in golden.items() if k.startswith(at)}  # noqa: E731
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), from_torch(of(f"{name}/params/")))
    stored = of(f"{name}/{form}/")

    def carries(at):
        rows = {k: jnp.asarray(stored[at + k], jnp.float32) for k in "hc" if at + k in stored}
        row = lambda i: (rows["c"][i], rows["h"][i]) if "c" in rows else rows["h"][i]  # noqa: E731
        return tuple(tuple(row(i * (1 + both) + d) for d in range(1 + both)) for i in range(n_layers))

    weights = jnp.asarray(stored["weights/y"], jnp.float32), carries("weights/")

    @jax.jit
    def run(params, x, carry):
        found, pull = jax.vjp(
            lambda *a: model.apply({"params": a[0]}, a[1], MASK if form == "ragged" else None, a[2]), params, x, carry
        )
        return found, pull(weights)

    (y, last), (dparams, dx, dcarry) = run(params, jnp.asarray(stored["x"], jnp.float32), carries(""))
    close(y, stored["y"])
    jax.tree.map(close, last, carries("last/"))
    close(dx, stored["gradient/x"])
    jax.tree.map(close, dcarry, carries("gradient/"))
    gradients = {k.removeprefix("gradient/params/"): v for k, v in stored.items() if k.startswith("gradient/params/")}
    found = to_torch(dparams)
    for at, expected in gradients.items():  # both of PyTorch's biases have the gradient of their sum
        if not at.startswith("bias_hh"):
            close(found[at], expected)
        elif kind == "GRU":
            close(found[at][-H:], expected[-H:])


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_parameters_go_to_torch_and_back(name):
    _, params, _, _ = made(name, n_layers=2, bidirectional=True)
    state = to_torch(params)
    assert state["weight_ih_l1_reverse"].shape == ({"rnn": 1, "lstm": 4, "gru": 3}[name] * H, 2 * H)
    jax.tree.map(np.testing.assert_array_equal, from_torch(state), jax.tree.map(np.asarray, params))


def test_what_torch_cannot_hold():
    with pytest.raises(ValueError, match='reset="before"; allowed: reset="after"'):
        to_torch(made("gru before")[1])
    with pytest.raises(ValueError, match="found weight_hr_l0; allowed: weight_ih_l0"):
        from_torch({"weight_hh_l0": np.zeros((4, 1)), "weight_hr_l0": np.zeros((1, 1))})


@pytest.mark.parametrize("name", CELLS)
def test_padding_changes_nothing_on_either_side(name):
    model, params, x, carry = made(name, bidirectional=True)
    length = 3
    (dparams, dx, dcarry), (y, last) = value_and_gradients(model, params, x[:, :length], None, carry)

    @jax.jit
    def run(params, padded, real, carry, weights):
        found, pull = jax.vjp(lambda *a: model.apply({"params": a[0]}, a[1], real, a[2]), params, padded, carry)
        return found, pull(weights)

    for before in (0, T - length):
        inside = slice(before, before + length)
        real = np.zeros((B, T), np.int32)
        real[:, inside] = 1
        padded = jnp.full((B, T, D), 1e3).at[:, inside].set(x[:, :length])
        weights = jnp.zeros((B, T, 2 * H)).at[:, inside].set(_weights(y)), jax.tree.map(_weights, last)
        found, gradients = run(params, padded, real, carry, weights)
        np.testing.assert_array_equal(np.asarray(found[0])[real == 0], 0)
        np.testing.assert_array_equal(np.asarray(gradients[1])[real == 0], 0)
        expected = (y, last), (dparams, dx, dcarry)
        jax.tree.map(
            close, ((found[0][:, inside], found[1]), (gradients[0], gradients[1][:, inside], gradients[2])), expected
        )


@pytest.mark.parametrize("name", CELLS)
def test_unrolled_and_recomputed_equal_plain(name):
    model, params, x, carry = made(name, bidirectional=True)
    gaps = jnp.asarray([[1, 0, 1, 1, 1], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    plain = value_and_gradients(model, params, x, gaps, carry)
    other = value_and_gradients(model.clone(unroll=2, remat_steps=2), params, x, gaps, carry)
    jax.tree.map(close, other, plain)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_inputs_multiplied_before_the_loop_as_on_a_gpu(name, monkeypatch):
    model, params, x, carry = made(name)
    inside = value_and_gradients(model, params, x, MASK, carry)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.tree.map(close, value_and_gradients(model, params, x, MASK, carry), inside)


@pytest.mark.parametrize("bidirectional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_cudnn_is_given_what_it_takes(bidirectional, monkeypatch):
    """JAX's own reference, from cuDNN's arguments, stands for the GPU."""
    model, params, x, carry = made("lstm", n_layers=2, bidirectional=bidirectional, right_padded=True)
    plain = value_and_gradients(model, params, x, MASK, carry)
    calls = []

    def reference(x, h, c, packed, lengths, **options):
        calls.append(options)
        shapes = {k: options[k] for k in ("input_size", "hidden_size", "num_layers", "bidirectional")}
        parts = rnn.unpack_lstm_weights(packed, **shapes)
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return rnn.lstm_ref(x, h, c, *parts, lengths, *options.values())

    monkeypatch.setattr(rnn, "lstm", reference)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.tree.map(close, value_and_gradients(model, params, x, MASK, carry), plain)
    assert len(calls) == 2
    for other in ({"right_padded": False}, {"remat_steps": 2}, {"dtype": jnp.bfloat16}, {"cell": "gru"}):
        model.clone(**other).init(jax.random.key(0), x, MASK)
    model.clone(recurrent_dropout=0.5, deterministic=False).init(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, MASK
    )
    assert len(calls) == 2


@pytest.mark.parametrize("remat_steps", [2, 9])
def test_blocks_that_do_not_divide_the_length(remat_steps):
    model, params, x, carry = made("rnn", bidirectional=True)
    plain = model.apply({"params": params}, x, None, carry)
    jax.tree.map(close, model.clone(remat_steps=remat_steps).apply({"params": params}, x, None, carry), plain)


@pytest.mark.parametrize("name", CELLS)
def test_one_step_at_a_time_equals_all_and_the_cells_own_step(name):
    model, params, x, carry = made(name, n_layers=2)
    y, last = model.apply({"params": params}, x, None, carry)
    step = jax.jit(functools.partial(model.apply, {"params": params}))
    for t in range(T):
        one, carry = step(x[:, t : t + 1], None, carry)
        close(one[:, 0], y[:, t])
    jax.tree.map(close, carry, last)


def test_recurrent_dropout_is_one_mask_over_time_for_each_row():
    """With U = 1 and W = 0, h_t = b + m h_{t-1}: a unit that is dropped stays at b, another one doubles and adds b."""
    model = Recurrent("rnn", 8, activation="relu", recurrent_dropout=0.5, deterministic=False)
    x = jnp.zeros((4, 6, 2))
    params = {
        "input": {"kernel": jnp.zeros((1, 8, 2)), "bias": jnp.ones((1, 8))},
        "recurrent": {"kernel": jnp.eye(8)[None]},
    }
    apply = functools.partial(model.apply, {"params": {"0": {"forward": params}}}, x)
    y, _ = apply(rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y)[:, -1] > 1
    expected = np.where(kept[:, None], (2.0 ** np.arange(1, 7) - 1)[:, None], 1)
    np.testing.assert_array_equal(y, expected)
    assert kept.any() and not kept.all() and not (kept == kept[:1]).all()
    z, _ = apply(rngs={"dropout": jax.random.key(1)})
    assert (np.asarray(z) != y).any()
    np.testing.assert_array_equal(
        model.clone(deterministic=True).apply({"params": {"0": {"forward": params}}}, x)[0][0, :, 0], np.arange(1, 7)
    )


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_recurrent_dropout(name):
    model, params, x, carry = made(name, recurrent_dropout=0.4, deterministic=False)
    rngs = {"dropout": jax.random.key(3)}

    def run(params, x, carry):
        return model.apply({"params": params}, jnp.asarray(x), MASK, carry, rngs=rngs)

    check_grads(jax.jit(run), (params, x, carry), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_residual_adds_the_input_from_the_second_layer_on():
    model, params, x, carry = made("gru", n_layers=3, residual=True)
    y = x
    for i in range(3):
        own = Recurrent("gru", H)
        added, _ = own.apply({"params": {"0": params[str(i)]}}, y, MASK, carry[i : i + 1])
        y = added + y if i else added
    found, _ = model.apply({"params": params}, x, MASK, carry)
    close(found, y)
    np.testing.assert_array_equal(np.asarray(found)[~np.asarray(MASK)], 0)


def test_dropout_falls_on_the_input_of_every_layer_but_the_first():
    run = lambda n_layers, rng: (  # noqa: E731
        lambda made: made[0].apply({"params": made[1]}, made[2], rngs={"dropout": jax.random.key(rng)})[0]
    )(made("gru", n_layers=n_layers, dropout=0.5, deterministic=False))
    np.testing.assert_array_equal(run(1, 0), run(1, 1))
    assert (np.asarray(run(2, 0)) != run(2, 1)).any()


def test_bfloat16():
    model, params, x, _ = made("lstm", bidirectional=True, dtype=jnp.bfloat16)
    y, _ = model.apply({"params": params}, x, MASK)
    assert y.dtype == jnp.bfloat16
    close(np.asarray(y, np.float32), model.clone(dtype=jnp.float32).apply({"params": params}, x, MASK)[0], 0.03)


def test_lengths():
    np.testing.assert_array_equal(lengths_to_mask(jnp.array([2, 1]), 3), [[True, True, False], [True, False, False]])
    np.testing.assert_array_equal(
        jax.jit(lambda n: lengths_to_mask(n, 2))(jnp.array([9, 0])), [[True] * 2, [False] * 2]
    )
    for lengths, found in (([2, 0], "0 in row 1"), ([4, 1], "4 in row 0")):
        with pytest.raises(ValueError, match=f"lengths: found {found}; allowed: 1 to 3"):
            lengths_to_mask(np.array(lengths), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstn"}, "cell: found 'lstn'; allowed: gru, lstm, rnn"),
        ({"remat_steps": 0}, "remat_steps: found 0; allowed: None, or 1 or more"),
        ({"dropout": 1.0}, "dropout: found 1.0; allowed: 0 <= dropout < 1"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout: found -0.1; allowed"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Recurrent(features=H, **options).init(jax.random.key(0), jnp.zeros((B, T, D)))
