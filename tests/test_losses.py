"""The losses against torch's (golden arrays), and the blocked one's memory."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxnlp.losses import blocked_cross_entropy, cross_entropy

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
HIDDEN, TABLE, BIAS, LABELS, WEIGHTS = (
    jnp.asarray(GOLDEN[name]) for name in ("hidden", "table", "bias", "labels", "weights")
)
CASES = {  # as the generator has them: smoothing, z-loss, whether there is a bias
    "plain": ({}, False),
    "smooth": ({"label_smoothing": 0.1}, False),
    "z": ({"z_loss": 1e-2}, False),
    "all": ({"label_smoothing": 0.2, "z_loss": 1e-2}, True),
}


def plain(hidden, table, labels, weights, bias, vocab_size=None, block_tokens=None, **options):
    logits = jnp.einsum("btd,vd->btv", hidden, table)[..., :vocab_size]
    logits = logits if bias is None else logits + bias[None, None, :vocab_size]
    return cross_entropy(logits, labels, weights, **options)


def blocked(hidden, table, labels, weights, bias, **options):
    return blocked_cross_entropy(hidden, table, labels, weights, bias=bias, **options)


def run(loss, hidden, table, bias, labels=LABELS, weights=WEIGHTS, **options):
    """(sum, weight) and the gradients of the mean."""

    def mean(hidden, table, bias):
        total, weight = loss(hidden, table, labels, weights, bias, **options)
        return total / weight, (total, weight)

    return jax.jit(jax.grad(mean, (0, 1) if bias is None else (0, 1, 2), has_aux=True))(hidden, table, bias)


def close(actual, desired, tolerance=1e-5):
    desired = np.asarray(desired, np.float64)
    np.testing.assert_allclose(np.asarray(actual, np.float64), desired, rtol=0, atol=tolerance * abs(desired).max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss, block", [(plain, None), (blocked, None), (blocked, 6), (blocked, 1)])
def test_a_loss_gives_torchs_sum_and_gradients(loss, block, case):
    """In one block; in blocks of two of the seven times, so that the last is filled up; and in seven blocks."""
    options, use_bias = CASES[case]
    gradients, (total, weight) = run(loss, HIDDEN, TABLE, BIAS if use_bias else None, block_tokens=block, **options)
    close(total, GOLDEN[f"{case}/loss"])
    close(weight, WEIGHTS.sum())
    for gradient, name in zip(gradients, ("hidden", "table", "bias")):
        close(gradient * weight, GOLDEN[f"{case}/{name}"])


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("options", [case[0] for case in CASES.values()], ids=CASES)
def test_what_pads_the_table_changes_nothing(block, options):
    padded, longer = jnp.concatenate([TABLE, jnp.full((5, 5), 9.0)]), jnp.concatenate([BIAS, jnp.full(5, 9.0)])
    expected = run(blocked, HIDDEN, TABLE, BIAS, block_tokens=block, **options)
    (dhidden, dtable, dbias), sums = run(blocked, HIDDEN, padded, longer, vocab_size=11, block_tokens=block, **options)
    assert not dtable[11:].any() and not dbias[11:].any()
    for x, y in zip((dhidden, dtable[:11], dbias[:11], *sums), jax.tree.leaves(expected)):
        close(x, y)


@pytest.mark.parametrize("loss", [plain, blocked])
@pytest.mark.parametrize("label", [-100, 11, 12, 2**31 - 1])
def test_a_label_that_is_no_word_counts_nothing_at_weight_zero(loss, label):
    padded = jnp.concatenate([TABLE, jnp.ones((2, 5))])
    labels = jnp.where(WEIGHTS == 0, label, LABELS)
    assert (WEIGHTS == 0).any()
    got = run(loss, HIDDEN, padded, None, labels, vocab_size=11, label_smoothing=0.1)
    for x, y in zip(
        jax.tree.leaves(got), jax.tree.leaves(run(loss, HIDDEN, padded, None, vocab_size=11, label_smoothing=0.1))
    ):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("loss", [plain, blocked])
def test_without_weights_each_token_counts_one(loss):
    for x, y in zip(
        jax.tree.leaves(run(loss, HIDDEN, TABLE, None, weights=None)),
        jax.tree.leaves(run(loss, HIDDEN, TABLE, None, weights=jnp.ones_like(WEIGHTS))),
    ):
        np.testing.assert_array_equal(x, y)


def test_the_weights_have_the_tokens_losses_as_gradients():
    grad = lambda loss: jax.grad(lambda w: loss(HIDDEN, TABLE, LABELS, w, BIAS)[0])(WEIGHTS)  # noqa: E731
    close(grad(blocked), grad(plain))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 2**-8), (jnp.float32, 2**-9)])
def test_bfloat16_is_accumulated_in_float32(dtype, tolerance):
    """Against float64 from the same rounded inputs; a float32 table is rounded for products, its gradient is not."""
    rng = np.random.default_rng(0)
    hidden, table = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((4, 64, 16), (11, 16)))
    labels, weights = jnp.asarray(rng.integers(0, 11, (4, 64))), jnp.ones((4, 64))
    (dhidden, dtable), (total, _) = run(blocked, hidden, table.astype(dtype), None, labels, weights, block_tokens=8)
    x, h = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T, np.asarray(hidden, np.float64)
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    dx = (p - np.eye(11)[labels]) / 256
    assert (total.dtype, dtable.dtype, dhidden.dtype) == (jnp.float32, dtype, jnp.bfloat16)
    close(total, -np.log(np.take_along_axis(p, np.asarray(labels)[..., None], -1)).sum())
    close(dtable, np.einsum("btv,btd->vd", dx, h), tolerance)
    close(dhidden, dx @ np.asarray(table, np.float64), 2**-7)


@pytest.mark.parametrize("axes", [("data",), ("data", "sequence")], ids="-".join)
def test_a_batch_cut_over_devices_gives_the_same(axes):
    mesh = jax.make_mesh((2,) * len(axes), axes, axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
    rules = [("batch", "data"), ("tokens", axes), ("queries", "sequence" if len(axes) > 1 else None)]
    cut = lambda x: jnp.concatenate([x, x[:1]])[:, : x.shape[1] // 2 * 2]  # noqa: E731
    hidden, labels, weights = (cut(x) for x in (HIDDEN, LABELS, WEIGHTS))
    alone = run(blocked, hidden, TABLE, BIAS, labels, weights, block_tokens=8)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        rows = jax.NamedSharding(mesh, jax.P("data"))
        hidden, labels, weights = (jax.device_put(x, rows) for x in (hidden, labels, weights))
        together = run(blocked, hidden, TABLE, BIAS, labels, weights, block_tokens=8)
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
        close(x, y)


@pytest.mark.parametrize("backward", [False, True])
def test_the_logits_of_all_tokens_are_never_in_memory(backward):
    B, T, D, V, block = 4, 256, 8, 4096, 64

    def temporary(loss, **options):
        def total(hidden, table, labels, weights):
            return loss(hidden, table, labels, weights, None, **options)[0]

        run = jax.grad(total, (0, 1)) if backward else total
        floats = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, T, D), (V, D), (B, T))]
        args = floats[0], floats[1], jax.ShapeDtypeStruct((B, T), jnp.int32), floats[2]
        return jax.jit(run).lower(*args).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * B * T * V
    assert temporary(plain) >= logits
    assert temporary(blocked, block_tokens=block) < logits / 4
