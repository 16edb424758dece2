"""What the gates of an LSTM or GRU are while it reads: against their definitions in numpy, one step after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.nn import cudnn
from jaxnlp.nn.recurrent import Recurrent

B, T, D, H = 2, 4, 3, 5
MASK = np.array([[False, True, True, False], [True, True, True, True]])


def random(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def randomized(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([random(*leaf.shape, seed=seed + i) for i, leaf in enumerate(leaves)])


def read(cell, mask=MASK, **options):
    """A layer of both directions, all of it random: parameters, what it reads, its first carry, outputs, gates."""
    model = Recurrent(cell, H, bidirectional=True, **options)
    x, carry = random(B, T, D, seed=0), randomized(model.initial_carry(B), seed=1)
    params = randomized(jax.eval_shape(model.init, jax.random.key(0), x)["params"], seed=9)

    @jax.jit
    def run(params, *inputs):
        own = {"rngs": {"dropout": jax.random.key(0)}}
        asked = model.apply({"params": params}, *inputs, **own, mutable=["intermediates"])
        return asked, model.apply({"params": params}, *inputs, **own)

    (found, seen), plain = run(params, x, mask, carry)
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    return params["0"], x, carry[0], np.asarray(found[0]), seen["intermediates"]["0"]["gates"][0]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm(cell, x, carry):
    c, h = carry
    a = np.einsum("ghd,bd->gbh", cell["input"]["kernel"], x) + cell["input"]["bias"][:, None]
    a = a + np.einsum("ghk,bk->gbh", cell["recurrent"]["kernel"], h)
    gates = {"input": sigmoid(a[0]), "forget": sigmoid(a[1]), "cell": np.tanh(a[2]), "output": sigmoid(a[3])}
    c = gates["forget"] * c + gates["input"] * gates["cell"]
    return gates, (c, gates["output"] * np.tanh(c))


def gru(cell, x, h):
    a = np.einsum("ghd,bd->gbh", cell["input"]["kernel"], x) + cell["input"]["bias"][:, None]
    of = lambda g, h: h @ cell["recurrent"]["kernel"][g].T  # noqa: E731
    r, z = (sigmoid(a[g] + of(g, h)) for g in (0, 1))
    own = cell["recurrent"].get("bias")
    n = np.tanh(a[2] + (of(2, r * h) if own is None else r * (of(2, h) + own[None])))
    return {"reset": r, "update": z, "candidate": n}, (1 - z) * n + z * h


CELLS = {"lstm": (lstm, {}), "gru": (gru, {}), "gru before": (gru, {"reset": "before"})}


@pytest.mark.parametrize("name", CELLS)
def test_gates_are_those_of_every_step(name):
    step, options = CELLS[name]
    params, x, carries, y, found = read(name.split()[0], **options)
    assert set(found) == {"forward", "backward"}
    for d, direction in enumerate(("forward", "backward")):
        carry = carries[d]
        for t in range(T) if direction == "forward" else reversed(range(T)):
            real = MASK[:, t, None]
            gates, after = step(params[direction], x[:, t], carry)
            assert set(found[direction]) == set(gates)
            for gate, value in gates.items():
                np.testing.assert_allclose(found[direction][gate][:, t], np.where(real, value, 0), atol=1e-5)
            carry = jax.tree.map(lambda new, old, real=real: np.where(real, new, old), after, carry)
            h = jax.tree.leaves(carry)[-1]
            np.testing.assert_allclose(y[:, t, d * H : (d + 1) * H], np.where(real, h, 0), atol=1e-5)


def test_the_states_follow_from_the_gates_with_dropout_too():
    options = {"recurrent_dropout": 0.5, "deterministic": False, "remat_steps": 3}
    _, _, carries, y, found = read("gru", mask=None, **options)
    _, _, _, without, _ = read("gru", mask=None)
    assert np.abs(y - without).max() > 0.1
    for d, direction in enumerate(("forward", "backward")):
        h, gates = carries[d], found[direction]
        for t in range(T) if direction == "forward" else reversed(range(T)):
            z, n = gates["update"][:, t], gates["candidate"][:, t]
            h = (1 - z) * n + z * h
            np.testing.assert_allclose(y[:, t, d * H : (d + 1) * H], h, atol=1e-5)


def test_an_elman_network_has_none():
    model, x = Recurrent("rnn", H), jnp.zeros((B, T, D))
    params = model.init(jax.random.key(0), x)
    assert jax.eval_shape(lambda: model.apply(params, x, mutable=["intermediates"]))[1] == {}


def test_cudnn_which_keeps_no_gates_is_left_out_on_request(monkeypatch):
    model, x = Recurrent("lstm", H), jnp.zeros((B, T, D))
    params = model.init(jax.random.key(0), x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "lstm", lambda x, *_: (jnp.zeros((B, T, H)), ()))
    run = lambda mutable: jax.eval_shape(lambda: model.apply(params, x, mutable=mutable))  # noqa: E731
    assert run(False)[1] == ((),)
    assert "gates" in run(["intermediates"])[1]["intermediates"]["0"]
