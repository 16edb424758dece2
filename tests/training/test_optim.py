"""The optimizer against PyTorch's, the schedule against its formula, and which parameter gets what."""

import dataclasses
import math
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.models import gpt
from jaxnlp.nn.blocks import stack_layers, unstack_layers
from jaxnlp.training import optim
from jaxnlp.training.optim import Optim, optimizer, schedule

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def params():
    model = gpt.GPT(gpt.Config(n_layers=3, d_model=8, n_heads=2, vocab_size=8, n_positions=8))
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return params | {"heads": {"classification": {"kernel": jnp.ones((8, 2))}}}


def test_equals_torch_adamw():
    oracle = runpy.run_path(str(GOLDEN / "adamw.py"))
    params, gradients = oracle["problem"]()
    expected = np.load(GOLDEN / "adamw.npz")
    o = Optim(lr=oracle["LR"], warmup=0, decay="constant", weight_decay=oracle["DECAY"], clip=oracle["CLIP"])
    transform = optimizer(o, oracle["STEPS"])
    params = {"layer": {k: jnp.asarray(x) for k, x in params.items()}}
    state = transform.init(params)
    for step in range(oracle["STEPS"]):
        gradient = {"layer": {k: jnp.asarray(g[step]) for k, g in gradients.items()}}
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    for name, value in params["layer"].items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_schedule(decay):
    """Up over 10 of 100 steps, from lr / 11 at step 0 to lr at step 10; then down to a tenth."""
    rate = schedule(Optim(lr=2.0, warmup=0.1, decay=decay, end=0.1), 100)
    for t in range(10):
        assert math.isclose(rate(t), 2.0 * (t + 1) / 11, rel_tol=1e-6)
    shape = {
        "cosine": lambda x: 0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2,
        "linear": lambda x: 1 - 0.9 * x,
        "constant": lambda x: 1.0,
    }[decay]
    for t in range(10, 101):
        assert math.isclose(rate(t), 2.0 * shape((t - 10) / 90), rel_tol=1e-5)


def test_the_transformers_schedule():
    """D^-0.5 min(s^-0.5, s W^-1.5) at the s-th step (Vaswani et al., 2017, eq. 3), W = 11."""
    rate = schedule(Optim(lr=(512 * 11) ** -0.5, warmup=0.1, decay="rsqrt"), 100)
    for s in range(1, 101):
        assert math.isclose(rate(s - 1), 512**-0.5 * min(s**-0.5, s * 11**-1.5), rel_tol=1e-6)


def test_the_schedule_ends_where_it_is_told():
    """GPT-3's: warm until step 10, at a tenth from step 60 of 100 on."""
    rate = schedule(Optim(lr=2.0, warmup=0.1, end=0.1, end_at=0.6), 100)
    assert math.isclose(rate(35), 2.0 * (0.1 + 0.9 / 2), rel_tol=1e-6)
    for t in (60, 61, 80, 99):
        assert math.isclose(rate(t), 0.2, rel_tol=1e-6)
    with pytest.raises(ValueError, match=r"optim.end_at=0.05; allowed: optim.warmup=0.1 to 1"):
        Optim(warmup=0.1, end_at=0.05)


def test_first_moments_in_bfloat16():
    """Half the bytes of the first moments, nothing else, and nearly the same update."""
    params = {"layer": {"kernel": jnp.ones((4, 3))}}
    for dtype in ("float32", "bfloat16"):
        state = optimizer(Optim(mu_dtype=dtype), 10).init(params)
        assert [x.dtype for x in jax.tree.leaves(state) if x.ndim] == [jnp.dtype(dtype), jnp.float32]
    whole, half = (updates(Optim(mu_dtype=dtype), params) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(half["layer"]["kernel"], whole["layer"]["kernel"], rtol=0.02)


def test_decay_is_on_matrices_and_tables_alone(params):
    decayed = {path for path, on in zip(optim.paths(params), jax.tree.leaves(optim.decayed(params)), strict=True) if on}
    assert decayed == {path for path in optim.paths(params) if path.endswith(("kernel", "tokens", "positions"))}


def updates(o: Optim, params):
    transform = optimizer(o, 10)
    gradient = jax.tree.map(jnp.ones_like, params)
    return transform.update(gradient, transform.init(params), params)[0]


def ratio(a, b):
    return jax.tree.map(lambda x, y: np.unique(np.round(np.asarray(x / y), 5)).tolist(), a, b)


def orthogonal(matrix):
    """Jordan et al., 2024: five steps of Newton and Schulz's iteration, here in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = np.asarray(matrix, np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.slow), True])
def test_muon(scan, params):
    keys = iter(jax.random.split(jax.random.key(0), 99))
    gradient = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)
    if scan:
        params, gradient = stack_layers(params), stack_layers(gradient)
    o = Optim(lr=0.5, warmup=0, clip=None, weight_decay=0.1)

    def update(o):
        transform = optimizer(o, 10)
        return transform.update(gradient, transform.init(params), params)[0]

    found, adamw = update(dataclasses.replace(o, name="muon")), update(o)
    for path, u, a, g, p in zip(optim.paths(params), *map(jax.tree.leaves, (found, adamw, gradient, params))):
        if not (path.startswith("blocks") and path.endswith("kernel")):
            np.testing.assert_array_equal(u, a)
            continue
        layers = zip(u, g, p) if scan else [(u, g, p)]
        for u, g, p in layers:
            if "qkv" in path:  # [H, 3, K, D]
                matrices = [tuple(np.asarray(x)[:, i].reshape(8, 8) for x in (u, g, p)) for i in range(3)]
            elif "attention/out" in path:  # [D, H, K]
                matrices = [(u.reshape(8, 8), g.reshape(8, 8), p.reshape(8, 8))]
            else:
                matrices = [(u, g, p)]
            for u, g, p in matrices:
                expected = -0.5 * (0.2 * max(g.shape) ** 0.5 * orthogonal(g) + 0.1 * np.asarray(p))
                np.testing.assert_allclose(u, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_lamb(scan, params):
    """Three steps by the paper's algorithm 2 in float64; a matrix by itself in each layer, and of q, k and v."""
    o = Optim(name="lamb", lr=0.1, warmup=0, decay="constant", clip=None, b2=0.99, epsilon=1e-6, weight_decay=0.1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    gradients = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params) for _ in range(3)]
    start, transform = params, optimizer(o, 10)
    if scan:
        params, gradients = stack_layers(params), [stack_layers(g) for g in gradients]
    state = transform.init(params)
    for gradient in gradients:
        updates, state = jax.jit(transform.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)

    def by_hand(path, w, *gradients):
        w, m, v = np.float64(w), 0.0, 0.0
        for t, g in enumerate(np.float64(gradients), 1):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-6)
            if path.endswith(("bias", "scale")):
                w = w - 0.1 * u
                continue
            u = u + 0.1 * w
            three = u.shape[1] if "qkv" in path else 1  # [H, 3, K, D]
            for i in range(three):
                part = np.s_[:, i] if three > 1 else ...
                w[part] = w[part] - 0.1 * np.linalg.norm(w[part]) / np.linalg.norm(u[part]) * u[part]
        return w

    gradients = [unstack_layers(g) if scan else g for g in gradients]
    found = unstack_layers(params) if scan else params
    for path, value, *known in zip(optim.paths(start), *map(jax.tree.leaves, (found, start, *gradients))):
        np.testing.assert_allclose(value, by_hand(path, *known), rtol=1e-4, atol=1e-6, err_msg=path)


def test_lamb_moves_what_is_zero():
    """Without a length of its own a table moves by u; without a gradient and decay it stays."""
    o = Optim(name="lamb", lr=0.5, warmup=0, clip=None, weight_decay=0.0)
    transform, params = optimizer(o, 10), {"layer": {"kernel": jnp.zeros((2, 2))}}
    update, _ = transform.update({"layer": {"kernel": jnp.ones((2, 2))}}, transform.init(params), params)
    np.testing.assert_allclose(update["layer"]["kernel"], -0.5, rtol=1e-5)
    params = {"layer": {"kernel": jnp.ones((2, 2))}}
    update, _ = transform.update({"layer": {"kernel": jnp.zeros((2, 2))}}, transform.init(params), params)
    assert not update["layer"]["kernel"].any()


@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.slow), True])
def test_layer_decay(scan, params):
    """Half the rate for each layer below the top: heads 1, blocks 1/2, 1/4, 1/8, embeddings 1/16."""
    params = stack_layers(params) if scan else params
    found = ratio(updates(Optim(layer_decay=0.5), params), updates(Optim(), params))
    assert found["heads"]["classification"]["kernel"] == found["norm"]["scale"] == [1.0]
    assert found["embed"]["tokens"] == [0.0625]
    blocks = found["blocks"]
    if scan:
        assert blocks["layers"]["mlp"]["in"]["kernel"] == [0.125, 0.25, 0.5]
    else:
        assert [blocks[str(i)]["mlp"]["in"]["kernel"] for i in range(3)] == [[0.125], [0.25], [0.5]]


def test_frozen_paths_have_no_update_and_no_state(params):
    o = Optim(freeze="embed/.*|blocks/[01]/.*")
    found = updates(o, params)
    assert not any(np.any(x) for x in jax.tree.leaves([found["embed"], found["blocks"]["0"], found["blocks"]["1"]]))
    assert all(np.all(x != 0) for x in jax.tree.leaves([found["blocks"]["2"], found["heads"]]))
    sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    trained = sizes([params["blocks"]["2"], params["norm"], params["heads"]])
    assert sizes(optimizer(o, 10).init(params)) == 2 * trained + 2  # two moments of each, and two counts
    muon = jax.tree.leaves(updates(dataclasses.replace(o, name="muon"), params)["blocks"]["0"])
    assert not any(np.any(x) for x in muon)


def test_gradient_of_frozen_paths_is_not_computed(params):
    """The compiled gradient does less work."""
    model = gpt.GPT(gpt.Config(n_layers=3, d_model=8, n_heads=2, vocab_size=8, n_positions=8))
    ids = jnp.zeros((1, 8), jnp.int32)

    def flops(o):
        loss = lambda p: model.apply({"params": optim.stop_frozen(o, p)}, ids)["last_hidden_state"].sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]

    assert flops(Optim(freeze="embed/.*|blocks/.*")) < 0.6 * flops(Optim())


def test_a_pattern_that_freezes_nothing_is_refused(params):
    with pytest.raises(
        ValueError, match=r"optim.freeze='block/.\*' matches no parameter; there are blocks/0/attention"
    ):
        optim.stop_frozen(Optim(freeze="block/.*"), params)


@pytest.mark.parametrize(("name", "value"), [("name", "Muon"), ("decay", "cos")])
def test_unknown_names_are_refused(name, value):
    """In a process of its own: here the type checker of the tests would be first."""
    code = f"from jaxnlp.training.optim import Optim; Optim({name}={value!r})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=GOLDEN.parents[1]).stderr
    assert re.search(rf"ValueError: optim.{name}='{value}'; allowed: \w+, \w+", said)


def test_muon_knows_every_matrix_or_says_so(params):
    other = {"blocks": {"0": {"cross": {"q": {"kernel": jnp.ones((8, 2, 4))}}}}}
    with pytest.raises(ValueError, match=r"blocks/0/cross/q/kernel is no array of a block's matrices"):
        optimizer(Optim(name="muon"), 10).init(other)


@pytest.mark.parametrize(("field", "value"), [("lr", 0.0), ("warmup", 1.5), ("b2", -0.1), ("end", 2.0)])
def test_bad_numbers_are_named(field, value):
    with pytest.raises(ValueError, match=rf"optim.{field}={value}; allowed"):
        Optim(**{field: value})
