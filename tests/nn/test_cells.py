"""Each cell against Flax's own and against a few lines of numpy; what its parameters begin with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxnlp.nn.cells import CELLS, ElmanCell, GRUCell, LSTMCell, orthogonal

B, D, H = 3, 4, 6
FLAX = {  # the names of its gates in our order
    "rnn": (nn.SimpleCell, ("",)),
    "lstm": (nn.LSTMCell, ("i", "f", "g", "o")),
    "gru": (nn.GRUCell, ("r", "z", "n")),
}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def randomized(params, seed=0):
    """Every parameter random, so that none may be left out unnoticed."""
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten([0.4 * random(*x.shape, seed=seed + i) for i, x in enumerate(leaves)])


def close(actual, desired):
    scale = np.abs(np.asarray(desired)).max()
    np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-5 * scale)


def as_flax(name, params):
    """Our parameters by Flax's names; Flax keeps the LSTM's bias on the side of the state."""
    gates = {}
    for g, gate in enumerate(FLAX[name][1]):
        inside, state = {"kernel": params["input"]["kernel"][g].T}, {"kernel": params["recurrent"]["kernel"][g].T}
        (state if name == "lstm" else inside)["bias"] = params["input"]["bias"][g]
        if (name, gate) == ("gru", "n"):
            state["bias"] = params["recurrent"]["bias"]
        gates |= {f"i{gate}": inside, f"h{gate}": state}
    return gates


@pytest.mark.parametrize("name", CELLS)
def test_equals_flax(name):
    ours, theirs = CELLS[name](H), FLAX[name][0](H)
    x = random(B, D)
    carry = randomized(ours.initialize_carry(jax.random.key(0), x.shape), seed=7)
    params = randomized(ours.init(jax.random.key(0), carry, x)["params"])

    def run(cell, convert, params, carry, x):
        return cell.apply({"params": convert(params)}, carry, x)

    found, pull = jax.vjp(lambda *a: run(ours, lambda p: p, *a), params, carry, x)
    expected, pull_expected = jax.vjp(lambda *a: run(theirs, lambda p: as_flax(name, p), *a), params, carry, x)
    jax.tree.map(close, found, expected)
    weights = randomized(found, seed=11)
    jax.tree.map(close, pull(weights), pull_expected(weights))


def test_gru_resets_before_the_product_as_in_the_paper():
    cell, x, h = GRUCell(H, reset="before"), random(B, D), random(B, H, seed=1)
    params = randomized(cell.init(jax.random.key(0), h, x)["params"])
    assert set(params["recurrent"]) == {"kernel"}
    (W, b), U = (
        (np.asarray(params["input"][k]) for k in ("kernel", "bias")),
        np.asarray(params["recurrent"]["kernel"]),
    )
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    r, z = (sigmoid(x @ W[g].T + b[g][None] + h @ U[g].T) for g in (0, 1))
    n = np.tanh(x @ W[2].T + b[2][None] + (r * h) @ U[2].T)
    carry, y = cell.apply({"params": params}, h, x)
    close(y, (1 - z) * n + z * h)
    np.testing.assert_array_equal(carry, y)


def test_relu():
    cell, x, h = ElmanCell(H, activation="relu"), random(B, D), random(B, H, seed=1)
    params = randomized(cell.init(jax.random.key(0), h, x)["params"])
    (W, b), (U,) = params["input"].values(), params["recurrent"].values()
    W, b = (params["input"][k][0] for k in ("kernel", "bias"))
    close(cell.apply({"params": params}, h, x)[1], np.maximum(x @ W.T + b[None] + h @ U[0].T, 0))


@pytest.mark.parametrize("cell", [ElmanCell(H), LSTMCell(H), GRUCell(H), GRUCell(H, reset="before")], ids=repr)
def test_a_call_is_project_then_step_and_project_takes_any_leading_axes(cell):
    x = random(B, 2, D)
    carry = randomized(cell.initialize_carry(jax.random.key(0), (B, D)), seed=3)
    params = {"params": randomized(cell.init(jax.random.key(0), carry, x[:, 0])["params"])}
    projected = cell.apply(params, x, method="project")
    assert projected.shape == (B, 2, cell.N_GATES, H)
    stepped = cell.apply(params, carry, projected[:, 1], method="step")
    jax.tree.map(close, stepped, cell.apply(params, carry, x[:, 1]))


def test_what_parameters_begin_with():
    cell = LSTMCell(H, forget_bias=1.0)
    params = cell.init(jax.random.key(0), cell.initialize_carry(None, (B, 200)), random(B, 200))["params"]
    U = params["recurrent"]["kernel"]
    np.testing.assert_allclose(jnp.einsum("ghk,gik->ghi", U, U), np.broadcast_to(np.eye(H), U.shape), atol=1e-5)
    assert np.abs(U[0] - U[1]).max() > 0.1
    np.testing.assert_array_equal(params["input"]["bias"], np.array([[0], [1], [0], [0]]) * np.ones(H))
    np.testing.assert_allclose(params["input"]["kernel"].std(), 200**-0.5, rtol=0.05)  # LeCun: 1 / sqrt(inputs)


def test_bfloat16_computes_and_float32_is_kept():
    cell, x = GRUCell(H, dtype=jnp.bfloat16), random(B, D)
    carry = cell.initialize_carry(None, x.shape)
    params = cell.init(jax.random.key(0), carry, x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert {y.dtype for y in jax.tree.leaves(cell.apply(params, carry, x))} == {jnp.dtype("bfloat16")}


def test_recurrent_kernels_are_orthogonal_and_all_alike_likely():
    kernels = np.asarray(orthogonal(jax.random.key(0), (3, 40, 40)))
    for kernel in kernels:
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(40), atol=1e-5)
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    # Of uniformly distributed 3 x 3 matrices every entry has mean 0 and variance 1/3, and half the determinants are 1.
    many = np.asarray(orthogonal(jax.random.key(1), (4000, 3, 3)))
    np.testing.assert_allclose(many.mean(0), np.zeros((3, 3)), atol=0.04)
    np.testing.assert_allclose((many**2).mean(0), np.full((3, 3), 1 / 3), atol=0.03)
    assert abs(np.linalg.det(many).mean()) < 0.06
