"""Every path against torch (golden arrays) and against loops in float64, and which path is chosen where."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.nn import attention as module
from jaxnlp.nn import kernels
from jaxnlp.nn.attention import Mask, attention, attention_weights, choose

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "attention.npz")
TORCH = {
    "full": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=int(GOLDEN["window"])),
    "lengths": Mask(lengths=jnp.asarray(GOLDEN["lengths"])),
    "segments": Mask(causal=True, segment_ids=jnp.asarray(GOLDEN["segment_ids"])),
    "prefix": Mask(causal=True, prefix=jnp.asarray(GOLDEN["prefix"])),
}
B, H, T, S, K = 2, 3, 7, 12, 4
SEGMENTS = jnp.array([[0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1, 1, 2, 0, 0, 0]])
MASKS = {
    "full": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=3),
    "window both ways": Mask(window=2),
    "lengths": Mask(lengths=jnp.array([9, 0])),
    "window past the lengths": Mask(causal=True, window=2, lengths=jnp.array([3, 12])),
    "offset": Mask(causal=True, offset=jnp.int32(4)),
    "cache": Mask(causal=True, window=4, segment_ids=SEGMENTS, offset=jnp.int32(5)),
    "segments": Mask(segment_ids=SEGMENTS),
    "spelled out": Mask(seen=jnp.asarray(np.random.default_rng(5).random((B, T, S)) < 0.4)),
    "prefix": Mask(causal=True, window=2, prefix=jnp.array([5, 0]), lengths=jnp.array([12, 3])),
}


@pytest.fixture(params=["plain", "blocked"])
def path(request, monkeypatch):
    """Small parts and blocks, which divide nothing."""
    monkeypatch.setattr(kernels, "PART", 3)
    monkeypatch.setattr(module, "BLOCK_CPU", 5)
    return request.param


def random(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def inputs(T=T, S=S, dtype=np.float32):
    return tuple(random(B, H, n, K, seed=i, dtype=dtype) for i, n in enumerate((T, S, S, T)))


def close(actual, desired, tolerance=1e-5):
    scale = max(np.abs(np.asarray(desired, np.float64)).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(actual, np.float64), desired, rtol=0, atol=tolerance * scale)


def run(q, k, v, dout, mask, **options):
    """The output and the gradients of q, k and v."""

    def both(q, k, v, dout, mask):
        out, pull = jax.vjp(lambda *x: attention(*x, mask, **options), q, k, v)
        return out, *pull(dout)

    return jax.jit(both)(q, k, v, dout, mask)


def sees(mask: Mask, b: int, t: int, s: int) -> bool:
    if mask.seen is not None and not mask.seen[b, t, s]:
        return False
    t += 0 if mask.offset is None else int(mask.offset)
    seen = (not mask.causal or s <= t) and (mask.window is None or s > t - mask.window)
    seen = seen or (mask.prefix is not None and s < mask.prefix[b])
    seen = seen and (mask.lengths is None or s < mask.lengths[b])
    if mask.segment_ids is not None:
        seen = seen and mask.segment_ids[b, s] != 0 and mask.segment_ids[b, s] == mask.segment_ids[b, t]
    return bool(seen)


def by_loops(q, k, v, mask):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, h, t in np.ndindex(q.shape[:3]):
        keys = [s for s in range(k.shape[2]) if sees(mask, b, t, s)]
        if keys:
            weights = np.exp([q[b, h, t] @ k[b, h, s] / np.sqrt(q.shape[-1]) for s in keys])
            out[b, h, t] = weights @ v[b, h, keys] / weights.sum()
    return out


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_path_gives_what_loops_give_and_nothing_where_nothing_is_seen(path, mask):
    q, k, v, dout = inputs()
    out, dq, dk, dv = run(q, k, v, dout, mask, implementation=path)
    close(out, by_loops(q, k, v, mask))
    seen = np.array([[[sees(mask, b, t, s) for s in range(S)] for t in range(T)] for b in range(B)])
    for gradient, alive in ((dq, seen.any(2)), (dk, seen.any(1)), (dv, seen.any(1))):
        rows = np.broadcast_to(alive[:, None], gradient.shape[:3])
        assert np.isfinite(gradient).all() and not gradient[~rows].any()
    assert dv[rows].any(-1).all()


def check_torch(path, case):
    q, k, v, dout = (jnp.asarray(GOLDEN[name]) for name in ("q", "k", "v", "dout"))
    for name, x in zip(("out", "dq", "dk", "dv"), run(q, k, v, dout, TORCH[case], implementation=path)):
        close(x, GOLDEN[f"{case}/{name}"])


@pytest.mark.parametrize("case", TORCH)
@pytest.mark.parametrize("name", ["plain", "blocked"])
def test_a_path_gives_torchs_output_and_gradients(name, case, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_CPU", 48)
    check_torch(name, case)


@pytest.mark.parametrize("case", sorted(TORCH.keys() - {"prefix"}))
def test_the_kernel_for_tpu_gives_torchs_output_and_gradients(case):
    """In pallas' interpreter, whose own code promotes ranks and types."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        check_torch("pallas", case)


def test_the_kernel_for_tpu_takes_a_band_of_packed_texts():
    """Padding at the end, and texts that begin within the band; against the plain path."""
    q, k, v, dout = (random(2, 2, 128, 8, seed=i) for i in range(4))
    ends = np.array([[50, 60, 100], [5, 128, 128]])
    segments = 1 + (np.arange(128)[None, :, None] >= ends[:, None, :2]).sum(-1)
    mask = Mask(causal=True, window=20, segment_ids=jnp.where(np.arange(128) < ends[:, 2:], segments, 0))
    expected = run(q, k, v, dout, mask, implementation="plain")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = run(q, k, v, dout, mask, implementation="pallas")
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_a_band_is_all_that_blocks_compute():
    """Of 32 rows of tiles each takes the 3 that a band of two tiles' width touches, not all before it."""
    taken = []
    original = kernels._blocked
    q = jnp.zeros((1, 1, 4096, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_blocked", lambda *a: taken.append(a[-2]) or original(*a))
        for mask in (Mask(causal=True), Mask(causal=True, window=256)):
            jax.eval_shape(lambda q, mask=mask: kernels.blocked(q, q, q, mask, block=128), q)
    dense, banded = map(len, taken)
    assert (dense, banded) == (32 * 33 // 2, 3 * 32 - 3)


@pytest.mark.parametrize("case", ["causal", "segments"])
def test_the_kernel_for_tpu_is_cut_by_the_rules_for_batch_heads_and_queries(case):
    """256 positions in two parts, each of which sees all keys; against the plain path without a mesh."""
    from flax import linen as nn

    q, k, v = (jax.random.normal(key, (2, 4, 256, 8)) for key in jax.random.split(jax.random.key(0), 3))
    segments = jnp.arange(256)[None] // jnp.array([[100], [60]]) + 1
    mask = Mask(causal=True) if case == "causal" else Mask(causal=False, segment_ids=segments)
    mesh = jax.make_mesh((2, 2, 2), ("data", "sequence", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    rules = nn.logical_axis_rules([("batch", "data"), ("heads", "tensor"), ("queries", "sequence")])

    def loss(*x, path):
        return (attention(*x, mask, implementation=path) ** 2).sum()

    expected = jax.grad(lambda *x: loss(*x, path="plain"), argnums=(0, 1, 2))(q, k, v)
    read = jax.jit(lambda *x: attention(*x, mask, implementation="pallas"))
    slope = jax.jit(jax.grad(lambda *x: loss(*x, path="pallas"), argnums=(0, 1, 2)))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.set_mesh(mesh), rules:
        out, found = read(q, k, v), slope(q, k, v)
    assert out.sharding.spec == jax.sharding.PartitionSpec("data", "tensor", "sequence")
    for a, b in zip(found, expected):
        close(a, b, 1e-4)


@pytest.mark.parametrize("case", ["full", "causal", "window", "lengths"])
def test_cudnn_is_asked_for_what_torch_gives(case, monkeypatch):
    """jax's reference of the call to cuDNN stands in for it; bfloat16 is all that cuDNN takes."""
    call = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *x, **o: call(*x, **o | {"implementation": "xla"}))
    q, k, v = (jnp.tile(jnp.asarray(GOLDEN[name], jnp.bfloat16), (1, 1, 1, 2)) for name in "qkv")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        out = attention(q / 2, k, v, TORCH[case], scale=0.5, implementation="cudnn")
    close(out[..., :4], GOLDEN[f"{case}/out"], 0.03)


@pytest.mark.parametrize("window", [None, 3])
def test_no_query_depends_on_what_comes_after_it(path, window):
    q, k, _, _ = inputs(S, S)
    mask = Mask(causal=True, window=window)
    read = lambda v: attention(q[:1, :1], k[:1, :1], v, mask, implementation=path)[0, 0].sum(-1)  # noqa: E731
    slopes = jax.jit(jax.jacrev(read))(jnp.ones((1, 1, S, K)))[:, 0, 0].any(-1)
    query, key = np.arange(S)[:, None], np.arange(S)
    np.testing.assert_array_equal(slopes, (key <= query) & (key > query - (window or S)))


@pytest.mark.parametrize("mask", [Mask(lengths=jnp.array([5, 8])), Mask(segment_ids=SEGMENTS)], ids=["lengths", "ids"])
def test_the_content_of_padding_cannot_change_what_is_real(path, mask):
    q, k, v, _ = inputs(S, S)
    real = mask.segment_ids != 0 if mask.lengths is None else jnp.arange(S)[None] < mask.lengths[:, None]
    noise = jnp.where(real[:, None, :, None], 0.0, 1e4)
    read = jax.jit(lambda noise: attention(q, k + noise, v - noise, mask, implementation=path))
    out, other = read(jnp.zeros_like(noise)), read(noise)
    np.testing.assert_array_equal(out, other)


def test_dropout_drops_its_share_and_grows_the_rest(path):
    """With zero logits and v = 1 at one key, the output is that key's weight: 0, or 1 / S / (1 - rate)."""
    rate, n = 0.3, 40
    q, k = jnp.zeros((4, 2, n, n)), jnp.zeros((4, 2, n, n))
    v = jnp.broadcast_to(jnp.eye(n), (4, 2, n, n))
    drop = jax.jit(lambda seed: attention(q, k, v, dropout_rate=rate, dropout_rng=seed, implementation=path))
    weights = drop(jax.random.key(0))
    kept = np.isclose(weights, 1 / n / (1 - rate), rtol=1e-5)
    assert (kept | (weights == 0)).all()
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    flat = kept.reshape(-1, n)
    assert len(np.unique(flat, axis=0)) == len(flat)  # no two rows share a mask
    np.testing.assert_array_equal(weights, drop(jax.random.key(0)))
    assert (weights != drop(jax.random.key(1))).any()


@pytest.mark.parametrize("mask", [MASKS["causal"], MASKS["cache"]], ids=["causal", "cache"])
def test_dropout_is_the_same_forward_and_backward(path, mask):
    """Along any direction the loss changes as its gradients say, under the drops of the forward pass."""
    *x, dout = inputs()
    options = {"dropout_rate": 0.4, "dropout_rng": jax.random.key(3), "implementation": path}
    _, *gradients = run(*x, dout, mask, **options)
    loss = jax.jit(lambda *x: (attention(*x, mask, **options) * dout).sum())
    for i, gradient in enumerate(gradients):
        step = 1e-2 * random(*gradient.shape, seed=9)
        up, down = (loss(*x[:i], x[i] + sign * step, *x[i + 1 :]) for sign in (1, -1))
        np.testing.assert_allclose((up - down) / 2, (gradient * step).sum(), rtol=1e-2, atol=1e-4)


def test_a_path_takes_bfloat16(path):
    q, k, v, _ = inputs(dtype=jnp.bfloat16)
    out, *_ = run(q, k, v, q, MASKS["causal"], implementation=path)
    assert out.dtype == jnp.bfloat16
    close(out, by_loops(q, k, v, MASKS["causal"]), 0.02)


def test_weights_are_those_that_the_values_are_read_with():
    q, k, v, _ = inputs()
    for mask in MASKS.values():
        close(jnp.einsum("bhts,bhsk->bhtk", attention_weights(q, k, mask), v), attention(q, k, v, mask))


def test_blocks_keep_the_memory_linear():
    def temporary(implementation, n):
        x = jax.ShapeDtypeStruct((1, 1, n, 8), jnp.float32)
        loss = lambda *x: attention(*x, Mask(causal=True), implementation=implementation).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary("blocked", 8192) < 2.2 * temporary("blocked", 4096)
    assert temporary("blocked", 4096) < temporary("plain", 4096) / 10


BF16, F32 = jnp.bfloat16, jnp.float32
LENGTHS, IDS = jnp.array([3]), jnp.ones((1, 512), jnp.int32)
CHOICES = [  # platform, T, S, K, dtype, mask, dropout rate -> path
    ("gpu", 512, 512, 64, BF16, Mask(causal=True), 0.0, "cudnn"),
    ("gpu", 512, 512, 128, jnp.float16, Mask(causal=True, window=9), 0.0, "cudnn"),
    ("gpu", 100, 200, 64, BF16, Mask(lengths=LENGTHS), 0.0, "cudnn"),
    ("gpu", 256, 256, 64, F32, Mask(causal=True), 0.0, "plain"),
    ("gpu", 256, 256, 136, BF16, Mask(causal=True), 0.0, "plain"),
    ("gpu", 256, 256, 60, BF16, Mask(causal=True), 0.0, "plain"),
    ("gpu", 256, 256, 64, BF16, Mask(causal=True), 0.1, "plain"),
    ("gpu", 256, 256, 64, BF16, Mask(window=9), 0.0, "plain"),
    ("gpu", 256, 256, 64, BF16, Mask(causal=True, window=9, lengths=LENGTHS), 0.0, "plain"),
    ("gpu", 256, 256, 64, BF16, Mask(causal=True, segment_ids=IDS), 0.0, "plain"),
    ("gpu", 100, 200, 64, BF16, Mask(causal=True), 0.0, "plain"),
    ("gpu", 1, 512, 64, BF16, Mask(causal=True, offset=7), 0.0, "plain"),
    ("gpu", 2048, 2048, 64, BF16, Mask(causal=True, prefix=LENGTHS), 0.0, "blocked"),
    ("tpu", 512, 512, 64, F32, Mask(causal=True), 0.0, "pallas"),
    ("tpu", 512, 512, 64, BF16, Mask(window=9), 0.0, "pallas"),
    ("tpu", 128, 256, 64, BF16, Mask(lengths=LENGTHS), 0.0, "pallas"),
    ("tpu", 512, 512, 64, BF16, Mask(causal=True, window=9, segment_ids=IDS), 0.0, "pallas"),
    ("tpu", 512, 512, 64, BF16, Mask(causal=True, window=9, lengths=LENGTHS), 0.0, "plain"),
    ("tpu", 512, 512, 64, BF16, Mask(window=9, segment_ids=IDS), 0.0, "plain"),
    ("tpu", 512, 512, 64, BF16, Mask(causal=True, segment_ids=IDS), 0.0, "pallas"),
    ("tpu", 250, 250, 64, BF16, Mask(causal=True), 0.0, "plain"),
    ("tpu", 256, 256, 64, BF16, Mask(causal=True), 0.1, "plain"),
    ("tpu", 256, 256, 64, BF16, Mask(causal=True, lengths=LENGTHS, segment_ids=IDS), 0.0, "plain"),
    ("tpu", 2048, 2048, 64, BF16, Mask(causal=True, prefix=LENGTHS), 0.0, "blocked"),
    ("tpu", 1, 4096, 64, BF16, Mask(causal=True, offset=7), 0.0, "plain"),
    ("cpu", 512, 512, 64, F32, Mask(causal=True), 0.0, "plain"),
    ("cpu", 512, 1024, 64, F32, Mask(), 0.1, "blocked"),
    ("cpu", 1, 2**17, 64, F32, Mask(causal=True, offset=7), 0.0, "plain"),
]


@pytest.mark.parametrize("platform, T, S, K, dtype, mask, rate, path", CHOICES)
def test_which_path_is_chosen(platform, T, S, K, dtype, mask, rate, path):
    assert choose(platform, (1, 2, T, K), (1, 2, S, K), dtype, mask, rate) == path


def test_what_a_path_cannot_take_is_refused():
    q, k, v, _ = inputs(128, 128)
    rng = jax.random.key(0)
    with pytest.raises(ValueError, match=r"'cudnn' cannot .*; allowed: pallas, blocked, plain"):
        attention(q, k, v, Mask(causal=True), implementation="cudnn")
    with pytest.raises(ValueError, match=r"'pallas' cannot .*; allowed: blocked, plain"):
        attention(q, k, v, dropout_rate=0.1, dropout_rng=rng, implementation="pallas")
    with pytest.raises(ValueError, match=r"'flash' cannot"):
        attention(q, k, v, implementation="flash")
    with pytest.raises(ValueError, match=r"dropout_rate=0.1 came without a dropout_rng"):
        attention(q, k, v, dropout_rate=0.1)


def test_a_mask_stays_known_on_its_way_through_jit():
    """Else cached decoding's offset would cost every compiled model its kernel."""
    mask = Mask(causal=True, window=3)
    assert jax.jit(lambda mask: dataclasses.replace(mask))(mask) == mask
    assert mask.banded and not dataclasses.replace(mask, offset=0).banded
