"""GPT-2 against transformers (stored arrays), and what must hold of any decoder."""

import dataclasses
import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxnlp.losses import blocked_cross_entropy
from jaxnlp.models import gpt, heads
from jaxnlp.nn.attention import attention, choose
from jaxnlp.nn.blocks import stack_layers, unstack_layers
from jaxnlp.tasks.task import sown

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ORACLE = runpy.run_path(str(GOLDEN / "gpt2.py"))
BATCHES = {k: {n: jnp.asarray(x, jnp.int32) for n, x in b.items()} for k, b in ORACLE["inputs"]().items()}
CONFIG = gpt.Config(
    n_layers=2, d_model=32, n_heads=4, vocab_size=61, n_positions=24, dropout=0.0, attention_dropout=0.0
)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "gpt2.npz"))


@pytest.fixture(scope="module")
def params(golden):
    arrays = {k.removeprefix("params/"): v for k, v in golden.items() if k.startswith("params/")}
    return jax.tree.map(jnp.asarray, ORACLE["params_of"](arrays))


# Every batch in the plain form, and every other form on one batch.
FORMS = [(False, "none", name) for name in BATCHES] + [
    (False, "full", "right"),
    (True, "none", "right"),
    (True, "dots", "right"),
    (True, "full", "left"),
]


def loss_of(config, params, batch):
    """The mean over real next tokens, as the oracle counts it."""
    out = gpt.GPT(config).apply({"params": params}, **batch, logits=False)["unembedding"]
    real = batch.get("attention_mask", jnp.ones_like(batch["input_ids"])) != 0
    counted = (real[:, 1:] & real[:, :-1]).astype(jnp.float32)
    total, weight = blocked_cross_entropy(
        out.hidden[:, :-1], out.table, batch["input_ids"][:, 1:], counted, vocab_size=out.vocab_size
    )
    return total / weight


def assert_close(found, expected, tolerance=1e-5):
    """max|a - b| <= tolerance * max|b|, or the same absolutely where the gradient is zero by mathematics."""
    error = np.max(np.abs(np.asarray(found) - expected))
    assert error <= tolerance * max(np.max(np.abs(expected)), 1e-2), error


@pytest.mark.parametrize(("scan", "remat", "name"), FORMS)
def test_equals_transformers(scan, remat, name, params, golden):
    config, batch = dataclasses.replace(CONFIG, scan=scan, remat=remat), BATCHES[name]
    own = stack_layers(params) if config.scan else params
    logits = gpt.GPT(config).apply({"params": own}, **batch)["logits"]
    real = np.asarray(batch.get("attention_mask", np.ones_like(batch["input_ids"]))) != 0
    assert logits.shape == (*real.shape, 61)
    assert_close(logits[real], golden[f"{name}/logits"][real])

    loss, gradient = jax.jit(jax.value_and_grad(functools.partial(loss_of, config)))(own, batch)
    assert_close(loss, golden[f"{name}/loss"])
    gradient = unstack_layers(gradient) if config.scan else gradient
    expected = ORACLE["params_of"](
        {k.removeprefix(f"{name}/gradient/"): v for k, v in golden.items() if k.startswith(f"{name}/gradient/")}
    )
    jax.tree.map(assert_close, gradient, expected)


def test_a_prefix_is_seen_both_ways(params):
    ids, prefix = jnp.asarray(BATCHES["plain"]["input_ids"])[:, :8], jnp.array([3, 5, 0])

    def hidden(ids, **given):
        return gpt.GPT(CONFIG).apply({"params": params}, ids, **given)["last_hidden_state"]

    found = hidden(ids, prefix_lengths=prefix)
    np.testing.assert_allclose(found[2], hidden(ids)[2], atol=1e-6)
    for at, changed in ((2, [[0, 1, 2], [0, 1, 2, 3, 4]]), (4, [[], [0, 1, 2, 3, 4]]), (5, [[], []])):
        other = hidden(ids.at[:, at].add(1), prefix_lengths=prefix)
        for row in range(2):
            moved = np.abs(other[row] - found[row]).max(-1) > 1e-4
            assert np.flatnonzero(moved).tolist() == sorted({*changed[row], *range(at, 8)})


def test_parameter_names_and_shapes():
    params = jax.eval_shape(gpt.GPT(CONFIG).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    flat = {jax.tree_util.keystr(k, simple=True, separator="/"): x.shape for k, x in jax.tree.leaves_with_path(params)}
    block = {
        "attention/out/bias": (32,),
        "attention/out/kernel": (32, 4, 8),
        "attention/qkv/bias": (4, 3, 8),
        "attention/qkv/kernel": (4, 3, 8, 32),
        "mlp/in/bias": (128,),
        "mlp/in/kernel": (128, 32),
        "mlp/out/bias": (32,),
        "mlp/out/kernel": (32, 128),
        "norm_1/bias": (32,),
        "norm_1/scale": (32,),
        "norm_2/bias": (32,),
        "norm_2/scale": (32,),
    }
    assert flat == {
        **{f"blocks/{i}/{name}": shape for i in range(2) for name, shape in block.items()},
        "embed/positions": (24, 32),
        "embed/tokens": (128, 32),
        "norm/bias": (32,),
        "norm/scale": (32,),
    }


@pytest.mark.parametrize(("scan", "norm_first"), [(False, True), (True, True), (True, False)])
def test_initial_values_are_gpt2s(scan, norm_first):
    """N(0, 0.02²), but 0.02 / sqrt(2 L) into the residual stream (Radford et al., 2019, 2.3); biases 0, scales 1.

    GPT has no such exception (2018, section 4.1), and no norm at the end.
    """
    sizes = {"n_layers": 8, "d_model": 256, "n_heads": 4, "vocab_size": 512, "n_positions": 512}
    config = gpt.Config(**sizes, scan=scan, norm_first=norm_first)
    params = jax.jit(gpt.GPT(config).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    block = unstack_layers(params)["blocks"]["5"] if scan else params["blocks"]["5"]
    for leaf, std in [
        (params["embed"]["tokens"], 0.02),
        (params["embed"]["positions"], 0.02),
        (block["attention"]["qkv"]["kernel"], 0.02),
        (block["mlp"]["in"]["kernel"], 0.02),
        (block["attention"]["out"]["kernel"], 0.02 / 4 if norm_first else 0.02),
        (block["mlp"]["out"]["kernel"], 0.02 / 4 if norm_first else 0.02),
    ]:
        np.testing.assert_allclose(np.std(leaf), std, rtol=0.02)
        assert abs(np.mean(leaf)) < std / 50
    assert not np.any(block["attention"]["qkv"]["bias"])
    assert np.all(block["norm_1"]["scale"] == 1)
    assert ("norm" in params) == norm_first


def test_number_of_parameters_is_the_papers():
    """The exact counts of the published checkpoints, their 50,257 rows padded to 50,304."""
    for name, published in {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
    }.items():
        config = dataclasses.replace(gpt.VARIANTS[name], scan=True)
        shapes = jax.eval_shape(gpt.GPT(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
        count = sum(x.size for x in jax.tree.leaves(shapes))
        assert count - (50304 - 50257) * config.d_model == published


def test_no_token_sees_a_later_one(params):
    """d logits_t / d x_s = 0 for s > t, and not 0 for s <= t."""
    model = gpt.GPT(CONFIG)

    def at(tokens, t):
        table = params["embed"] | {"tokens": tokens}
        out = model.apply({"params": params | {"embed": table}}, jnp.arange(10)[None])
        return jnp.square(out["last_hidden_state"][0, t]).sum()

    gradient = jax.vmap(jax.grad(at), in_axes=(None, 0))(jnp.asarray(params["embed"]["tokens"]), jnp.arange(10))
    touched = np.abs(gradient[:, :10]).max(-1) > 0  # [t, s]: token s of the input is row s of the table
    np.testing.assert_array_equal(touched, np.tri(10, dtype=bool))


def test_a_band_is_what_its_layers_see(params):
    """Of one layer, d logits_t / d x_s is not 0 for t - w < s <= t alone; of two that differ, each has its own."""

    def touched(windows, n_layers):
        config = dataclasses.replace(CONFIG, windows=windows, n_layers=n_layers)
        own = params | {"blocks": {str(i): params["blocks"][str(i)] for i in range(n_layers)}}

        def at(tokens, t):
            table = params["embed"] | {"tokens": tokens}
            out = gpt.GPT(config).apply({"params": own | {"embed": table}}, jnp.arange(10)[None])
            return jnp.square(out["last_hidden_state"][0, t]).sum()

        gradient = jax.vmap(jax.grad(at), in_axes=(None, 0))(jnp.asarray(params["embed"]["tokens"]), jnp.arange(10))
        return np.abs(gradient[:, :10]).max(-1) > 0

    band = lambda width: np.tri(10, dtype=bool) & ~np.tri(10, k=-width, dtype=bool)  # noqa: E731
    np.testing.assert_array_equal(touched((3,), 1), band(3))
    np.testing.assert_array_equal(touched((3, 2), 2), band(4))  # 2 of the first layer's, which see 2 before
    np.testing.assert_array_equal(touched((None, 2), 2), np.tri(10, dtype=bool))


BANDED = dataclasses.replace(CONFIG, n_layers=4, windows=(None, 3))


@pytest.fixture(scope="module")
def banded(params):
    """Four layers' parameters: the golden ones, and these times 0.9."""
    blocks = params["blocks"]
    more = {str(int(i) + 2): jax.tree.map(lambda x: 0.9 * x, block) for i, block in blocks.items()}
    return params | {"blocks": blocks | more}


def measured(config, params):
    """The loss, its gradient, and what each layer sees: its input and attention weights."""
    batch = BATCHES["left"]

    @jax.jit
    def measure(params):
        _, seen = gpt.GPT(config).apply({"params": params}, **batch, mutable=["intermediates"])
        layers = {name: list(sown(seen["intermediates"], name)) for name in ("attentions", "hidden_states")}
        return *jax.value_and_grad(functools.partial(loss_of, config))(params, batch), layers

    return measure(params)


@pytest.fixture(scope="module")
def unrolled(banded):
    return measured(BANDED, banded)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_bands_equal_unrolled_ones(remat, banded, unrolled):
    config = dataclasses.replace(BANDED, scan=True, remat=remat)
    loss, gradient, layers = measured(config, stack_layers(banded))
    assert_close(loss, unrolled[0])
    jax.tree.map(assert_close, unstack_layers(gradient), unrolled[1])
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), layers, unrolled[2])
    assert [np.count_nonzero(layer[0, 0, 10]) for layer in layers["attentions"]] == [11, 3, 11, 3]


def test_scanned_bands_drop_out(banded):
    config = dataclasses.replace(BANDED, scan=True, dropout=0.3)
    apply = jax.jit(functools.partial(gpt.GPT(config).apply, deterministic=False))
    run = lambda key: apply({"params": stack_layers(banded)}, **BATCHES["plain"], rngs={"dropout": key})  # noqa: E731
    first, again, other = (run(jax.random.key(i))["last_hidden_state"] for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_flops_are_without_what_a_window_hides():
    dense = dataclasses.replace(BANDED, windows=(None,))
    seen = np.mean([min(t, 256) for t in np.arange(2048) + 0.5])  # of 2,048 tokens, each half of itself
    per_token = 12 * 4 * 8
    assert dense.attention_flops(2048) == per_token * 4 * 1024
    banded = dataclasses.replace(BANDED, windows=(None, 256)).attention_flops(2048)
    np.testing.assert_allclose(banded, per_token * (2 * 1024 + 2 * seen))
    assert dataclasses.replace(BANDED, windows=(256,)).attention_flops(100) == dense.attention_flops(100)
    assert dense.flops(2048) - dataclasses.replace(BANDED, windows=(None, 256)).flops(2048) == pytest.approx(
        dense.attention_flops(2048) - banded
    )


@pytest.mark.parametrize("windows", [(None,), (3,)])
def test_packed_documents_equal_documents_apart(windows, params):
    rng, config = np.random.default_rng(1), dataclasses.replace(CONFIG, windows=windows)
    first, second = rng.integers(0, 61, (1, 7)), rng.integers(0, 61, (1, 9))
    apply = lambda **batch: gpt.GPT(config).apply(  # noqa: E731
        {"params": params}, **{k: jnp.asarray(x, jnp.int32) for k, x in batch.items()}
    )["logits"]
    packed = apply(
        input_ids=np.concatenate([first, second, [[0] * 3]], 1),
        segment_ids=[[1] * 7 + [2] * 9 + [0] * 3],
        position_ids=[[*range(7), *range(9), 0, 0, 0]],
    )
    np.testing.assert_allclose(packed[:, :7], apply(input_ids=first), atol=1e-5)
    np.testing.assert_allclose(packed[:, 7:16], apply(input_ids=second), atol=1e-5)


def test_content_of_padding_changes_nothing(params):
    batch = BATCHES["left"]
    other = batch | {"input_ids": jnp.where(batch["attention_mask"] == 0, 7, batch["input_ids"])}
    a, b = (gpt.GPT(CONFIG).apply({"params": params}, **x)["logits"] for x in (batch, other))
    real = np.asarray(batch["attention_mask"]) != 0
    np.testing.assert_array_equal(a[real], b[real])


@pytest.mark.parametrize(("config", "scan"), [(CONFIG, False), (CONFIG, True), (BANDED, False), (BANDED, True)])
def test_cached_equals_uncached(config, scan, params, banded):
    """Prefill of 6, then one by one, with left padding: the logits of the whole sequence at once."""
    own = params if config is CONFIG else banded
    model, own = gpt.GPT(dataclasses.replace(config, scan=scan)), stack_layers(own) if scan else own
    batch = BATCHES["left"]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = model.apply({"params": own}, **batch)["logits"]
    cache = model.init_cache(3, 24)
    step = jax.jit(lambda ids, mask, cache: model.apply({"params": own}, ids, mask, cache=cache))
    found = []
    for start, stop in [(0, 6), *((t, t + 1) for t in range(6, 20))]:
        out = step(ids[:, start:stop], mask[:, start:stop], cache)
        cache = out["cache"]
        found.append(out["logits"])
    real = np.asarray(mask) != 0
    np.testing.assert_allclose(np.concatenate(found, 1)[real], expected[real], atol=2e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_branches_of_a_text_share_a_cache(window, params):
    """Each sees its own last tokens, between which the other's stand in the cache."""
    ids = np.random.default_rng(2).integers(0, 61, (2, 10))
    ids[1, :6] = ids[0, :6]
    model = gpt.GPT(dataclasses.replace(CONFIG, windows=(window,)))
    apply = jax.jit(lambda ids, **cache: model.apply({"params": params}, ids, **cache))
    cache = apply(jnp.asarray(ids[:1, :6]), cache=model.init_cache(1, 14))["cache"]
    cache |= {"segment_ids": jnp.repeat(cache["segment_ids"], 2, axis=0)}
    found = []
    for t in range(6, 10):
        out = apply(jnp.asarray(ids[:, t : t + 1]), cache=cache)
        cache = out["cache"]
        found.append(out["logits"])
    expected = apply(jnp.asarray(ids))["logits"][:, 6:]
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=2e-5)


def test_dropout_is_where_gpt2_has_it(params, monkeypatch):
    """On the embeddings, on what each of two sublayers adds, and on the attention weights; nowhere else."""
    seen = []

    def attend(q, k, v, mask, *, dropout_rate, **options):
        seen.append(("attention", dropout_rate, q.shape))
        return attention(q, k, v, mask, dropout_rate=dropout_rate, **options)

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            seen.append(("/".join(context.module.path[:-1]), context.module.rate, args[0].shape))
        return call(*args, **kwargs)

    monkeypatch.setattr("jaxnlp.nn.blocks.attention", attend)
    config = dataclasses.replace(CONFIG, dropout=0.3, attention_dropout=0.2)
    ids = jnp.zeros((2, 5), jnp.int32)
    with nn.intercept_methods(note):
        apply = functools.partial(gpt.GPT(config).apply, {"params": params}, ids)
        rows = apply(deterministic=False, rngs={"dropout": jax.random.key(0)})["logits"]
    stream = [("attention", 0.2, (2, 4, 5, 8)), *[("blocks/{}", 0.3, (2, 5, 32))] * 2]
    expected = [("embed", 0.3, (2, 5, 32))] + [(name.format(i), *rest) for i in range(2) for name, *rest in stream]
    assert seen == expected
    assert not np.allclose(rows[0], rows[1]), "two rows of a batch share a mask"
    assert not np.allclose(rows, apply(deterministic=False, rngs={"dropout": jax.random.key(1)})["logits"])
    np.testing.assert_array_equal(apply()["logits"][0], apply()["logits"][1])


def test_gpt3s_sizes_are_the_papers():
    """Table 2.1: the parameters by the formula of its columns, and as many as the paper says."""
    table = {  # layers, width, heads, head width, and how many the paper counts
        "small": (12, 768, 12, 64, 125e6),
        "medium": (24, 1024, 16, 64, 350e6),
        "large": (24, 1536, 16, 96, 760e6),
        "xl": (24, 2048, 24, 128, 1.3e9),
        "2.7b": (32, 2560, 32, 80, 2.7e9),
        "6.7b": (32, 4096, 32, 128, 6.7e9),
        "13b": (40, 5140, 40, 128, 13.0e9),
        "175b": (96, 12288, 96, 128, 175.0e9),
    }
    assert {name for name in gpt.VARIANTS if name.startswith("gpt3")} == {f"gpt3-{size}" for size in table}
    for size, (L, D, H, K, published) in table.items():
        config = dataclasses.replace(gpt.VARIANTS[f"gpt3-{size}"], scan=True)
        shapes = jax.eval_shape(gpt.GPT(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
        count = sum(x.size for x in jax.tree.leaves(shapes))
        block = 3 * (D + 1) * H * K + (H * K + 1) * D + (D + 1) * 4 * D + (4 * D + 1) * D + 4 * D
        assert count == (50304 + 2048) * D + L * block + 2 * D
        # 1.3B would have the 16 heads that fit its width; the table prints 24.
        assert abs(count / published - 1) < (0.17 if size == "xl" else 0.03), (size, count)
        assert (config.n_positions, config.windows) == (2048, (None, 256))


@pytest.mark.parametrize(
    ("platform", "extra", "path"),
    [
        ("gpu", {}, "cudnn"),
        ("tpu", {}, "pallas"),
        ("tpu", {"segment_ids": jnp.ones((1, 128), jnp.int32)}, "pallas"),
        ("tpu", {"attention_mask": jnp.ones((1, 128), jnp.int32)}, "pallas"),
        ("gpu", {"segment_ids": jnp.ones((1, 128), jnp.int32)}, "plain"),
        ("cpu", {}, "plain"),
    ],
)
def test_which_kernel_its_own_masks_get(platform, extra, path, monkeypatch):
    taken = set()

    def attend(q, k, v, mask, *, dropout_rate, **_):
        taken.add(choose(platform, q.shape, k.shape, q.dtype, mask, dropout_rate))
        return q

    monkeypatch.setattr("jaxnlp.nn.blocks.attention", attend)
    model = gpt.GPT(gpt.Config(vocab_size=8, n_positions=128, n_layers=1, d_model=128, n_heads=2, dtype="bfloat16"))
    jax.eval_shape(functools.partial(model.init, jax.random.key(0)), jnp.zeros((1, 128), jnp.int32), **extra)
    assert taken == {path}


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_classification_reads_real_tokens(pooling, params):
    model = gpt.GPT(CONFIG, (heads.Classification(5, pooling),))
    own = {**params, "heads": {"classification": {"kernel": jnp.linspace(-1, 1, 160).reshape(32, 5)}}}
    batch = BATCHES["left"]
    out = model.apply({"params": own}, **batch)
    hidden, real = np.asarray(out["last_hidden_state"]), np.asarray(batch["attention_mask"]) != 0
    for row in range(3):
        tokens = hidden[row][real[row]]
        pooled = {"first": tokens[0], "last": tokens[-1], "mean": tokens.mean(0)}[pooling]
        np.testing.assert_allclose(out["logits"][row], pooled @ own["heads"]["classification"]["kernel"], atol=1e-4)


def test_a_language_model_speaks_beside_other_heads(params):
    """The same words as without them, under a name of their own, and no parameters more."""
    batch = BATCHES["left"]
    words = gpt.GPT(CONFIG).apply({"params": params}, **batch)["logits"]
    alone = heads.Classification(5)
    own = params | {"heads": {"classification": {"kernel": jnp.linspace(-1, 1, 160).reshape(32, 5)}}}
    expected = gpt.GPT(CONFIG, (alone,)).apply({"params": own}, **batch)["logits"]
    both = gpt.GPT(CONFIG, (heads.LanguageModel(), alone))
    found = both.apply({"params": own}, **batch)
    np.testing.assert_array_equal(found["prediction_logits"], words)
    np.testing.assert_array_equal(found["logits"], expected)
    found = both.apply({"params": own}, **batch, logits=False)
    assert "prediction_logits" not in found and found["unembedding"].vocab_size == CONFIG.vocab_size
    np.testing.assert_array_equal(found["unembedding"].logits(), words)
    shapes = jax.eval_shape(both.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    assert jax.tree.structure(shapes) == jax.tree.structure(own)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gpt.Config(n_layers=2, d_model=128, n_heads=7),
            r"n_heads=7 does not divide model.d_model=128; allowed: 1, 2, 4, 8",
        ),
        (lambda: gpt.Config(n_layers=0), r"model.n_layers=0; allowed: 1 and more"),
        (lambda: gpt.Config(dropout=1.0), r"model.dropout=1.0; allowed"),
        (lambda: gpt.Config(windows=(None, 0)), r"model.windows=\(None, 0\); allowed: one and more of None and of 1"),
        (lambda: gpt.Config(windows=()), r"model.windows=\(\); allowed: one and more of None and of 1"),
        (
            lambda: gpt.Config(n_layers=3, windows=(None, 2), scan=True),
            r"model.windows=\(None, 2\) are 2, .*allowed: model.n_layers=3 a multiple of it, or no scan",
        ),
        (
            lambda: gpt.GPT(CONFIG).init(jax.random.key(0), jnp.zeros((1, 25), jnp.int32)),
            r"length 25; .*n_positions=24",
        ),
        (lambda: gpt.GPT(CONFIG).init_cache(1, 25), r"25 slots; .*n_positions=24"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
