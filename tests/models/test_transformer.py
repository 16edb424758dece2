"""The Transformer against transformers' Marian and torch.nn.Transformer (stored arrays), and what must hold of any."""

import dataclasses
import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxnlp import decoding
from jaxnlp.losses import blocked_cross_entropy
from jaxnlp.models import transformer
from jaxnlp.models.heads import Classification, pool
from jaxnlp.nn.blocks import stack_layers, unstack_layers
from jaxnlp.nn.cache import widened
from jaxnlp.nn.embeddings import padded, sinusoids

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "transformer.py"))
BASE = transformer.Config(
    vocab_size=ORACLE["V"], d_model=ORACLE["D"], n_heads=ORACLE["H"], d_ff=ORACLE["F"], dropout=0.0
)
CONFIGS = {
    "marian": dataclasses.replace(BASE, n_encoder_layers=3, n_decoder_layers=2, activation="silu", output_bias=True),
    "torch": dataclasses.replace(
        BASE, n_encoder_layers=2, n_decoder_layers=3, norm_first=True, target_vocab_size=ORACLE["W"], epsilon=1e-6
    ),
}
FORMS = [
    pytest.param("marian", False, "none", marks=pytest.mark.slow),
    ("marian", True, "full"),
    ("torch", False, "dots"),
    ("torch", True, "none"),
]


def batch(name):
    return {k: jnp.asarray(v, jnp.float32 if k == "weights" else jnp.int32) for k, v in ORACLE["batch"](name).items()}


def inputs(name):
    return {key: batch(name)[key] for key in ("input_ids", "attention_mask", "decoder_input_ids")}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))


def tree(golden, name, kind):
    """The stored arrays under our names, vocabularies padded with rows that must not matter."""
    stored = {k.removeprefix(f"{name}/{kind}/"): v for k, v in golden.items() if k.startswith(f"{name}/{kind}/")}
    found = ORACLE["params_of"](name, stored)
    if "final_logits_bias" in stored:
        found["output_bias"] = stored["final_logits_bias"]
    filling = 7.0 if kind == "params" else 0.0

    def filled(path, x):
        if path[-1].key in ("tokens", "output_bias"):
            x = np.concatenate([x, np.full((padded(len(x)) - len(x), *x.shape[1:]), filling, np.float32)])
        return jnp.asarray(x)

    return jax.tree_util.tree_map_with_path(filled, found)


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def params(golden, name):
    return tree(golden, name, "params")


def assert_close(found, expected, tolerance=1e-5):
    error = np.max(np.abs(np.asarray(found) - np.asarray(expected)))
    assert error <= tolerance * max(np.max(np.abs(expected)), 1e-2), error


def loss_of(config, name, params):
    b = batch(name)
    out = config.build().apply({"params": params}, **inputs(name), logits=False)
    hidden, table, bias, vocab_size = out["unembedding"]
    total, weight = blocked_cross_entropy(hidden, table, b["labels"], b["weights"], bias=bias, vocab_size=vocab_size)
    return total / weight


@pytest.mark.parametrize(("name", "scan", "remat"), FORMS)
def test_equals_the_peer(name, scan, remat, golden):
    config = dataclasses.replace(CONFIGS[name], scan=scan, remat=remat)
    params = tree(golden, name, "params")
    own = stack_layers(params) if scan else params
    out = config.build().apply({"params": own}, **inputs(name))
    assert_close(out["logits"], golden[f"{name}/logits"])
    real = inputs(name)["attention_mask"] == 1
    assert_close(out["encoder_last_hidden_state"][real], golden[f"{name}/states"][np.asarray(real)])
    loss, gradient = jax.jit(jax.value_and_grad(functools.partial(loss_of, config, name)))(own)
    assert_close(loss, golden[f"{name}/loss"])
    gradient = flatten_dict(unstack_layers(gradient) if scan else gradient, sep="/")
    gradient.pop("output_bias", None)  # a constant of Marian's
    expected = flatten_dict(tree(golden, name, "gradient"), sep="/")
    assert set(gradient) == set(expected)
    for path in expected:
        assert_close(gradient[path], expected[path])


def test_padding_on_the_left_gives_what_padding_on_the_right_gives(name, params):
    model, given = CONFIGS[name].build(), inputs(name)
    lengths = given["attention_mask"].sum(1)
    left = {key: jnp.stack([jnp.roll(x, -n) for x, n in zip(given[key], lengths, strict=True)]) for key in given}
    left["decoder_input_ids"] = given["decoder_input_ids"]
    expected, found = (model.apply({"params": params}, **x) for x in (given, left))
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-5)
    for row, n in enumerate(lengths):
        states = found["encoder_last_hidden_state"][row, -n:]
        np.testing.assert_allclose(states, expected["encoder_last_hidden_state"][row, :n], atol=1e-5)


def test_what_padding_holds_and_what_comes_later_change_nothing(name, params):
    model, given = CONFIGS[name].build(), inputs(name)
    other = {**given, "input_ids": jnp.where(given["attention_mask"] == 1, given["input_ids"], 7)}
    other["decoder_input_ids"] = given["decoder_input_ids"].at[:, 4:].set(3)
    expected, found = (model.apply({"params": params}, **x)["logits"] for x in (given, other))
    np.testing.assert_array_equal(found[:, :4], expected[:, :4])
    assert np.abs(found[:, 4:] - expected[:, 4:]).max() > 1e-3


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_token_at_a_time_gives_what_all_at_once_give(scan, name, params):
    config = dataclasses.replace(CONFIGS[name], scan=scan)
    model, own, given = config.build(), stack_layers(params) if scan else params, inputs(name)
    ids = given.pop("decoder_input_ids")
    expected = model.apply({"params": own}, **given, decoder_input_ids=ids)["logits"]
    memory, cache = model.apply({"params": own}, **given, method="encode", length=ids.shape[1])
    found = []
    for part in (ids[:, :2], *jnp.split(ids[:, 2:], 4, axis=1)):
        out = model.apply({"params": own}, part, memory, cache, method="decode")
        found.append(out["logits"])
        cache = out["cache"]
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), expected, atol=1e-5)


def test_beams_of_a_source_share_its_memory(name, params):
    model, given = CONFIGS[name].build(), inputs(name)
    ids = given.pop("decoder_input_ids")
    memory, _ = model.apply({"params": params}, **given, method="encode", length=1)
    rows = jnp.concatenate([ids, ids[:, ::-1]], axis=1).reshape(-1, ids.shape[1])  # two texts of each source
    found = model.apply({"params": params}, rows, memory, None, method="decode")["logits"]
    repeated = decoding.repeat(given, 2)
    expected = model.apply({"params": params}, **repeated, decoder_input_ids=rows)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_branches_of_a_text_share_a_cache(scan, name, params):
    """Two branches of each source, which both go on from the second at last: what whole texts give."""
    config = dataclasses.replace(CONFIGS[name], scan=scan)
    model, own, given = config.build(), stack_layers(params) if scan else params, inputs(name)
    ids = given.pop("decoder_input_ids")
    memory, cache = model.apply({"params": own}, **given, method="encode", length=2)
    cache = model.apply({"params": own}, ids[:, :2], memory, cache, method="decode")["cache"]
    cache = widened(cache, 2 + 2 * 3)
    cache = {**cache, "segment_ids": jnp.repeat(cache["segment_ids"], 2, axis=0)}
    rows, texts = 2 * len(ids), jnp.repeat(ids[:, :2], 2, axis=0)
    for tokens in jax.random.randint(jax.random.key(0), (3, rows, 1), 0, 61):
        out = model.apply({"params": own}, tokens, memory, cache, method="decode")
        texts = jnp.concatenate([texts, tokens], axis=1)
        expected = model.apply({"params": own}, texts, memory, None, method="decode")["logits"][:, -1:]
        np.testing.assert_allclose(out["logits"], expected, atol=1e-5)
        second = jnp.arange(rows) // 2 * 2 + 1
        texts, cache = texts[second], {**out["cache"], "segment_ids": out["cache"]["segment_ids"][second]}
    with pytest.raises(ValueError, match="2 tokens more for a cache with 8 slots, of which 8 are written"):
        model.apply({"params": own}, tokens, memory, cache, method="decode")


def test_a_source_without_a_token_gives_finite_values(name, params):
    model, given = CONFIGS[name].build(), inputs(name)
    given["attention_mask"] = given["attention_mask"].at[2].set(0)
    out = model.apply({"params": params}, **given)["logits"]
    assert np.isfinite(out).all()
    other = {**given, "input_ids": given["input_ids"].at[2].set(5)}
    np.testing.assert_array_equal(model.apply({"params": params}, **other)["logits"], out)


def test_attention_weights_on_request(name, params):
    model, given = CONFIGS[name].build(), inputs(name)
    _, seen = model.apply({"params": params}, **given, mutable=["intermediates"])
    blocks = seen["intermediates"]["decoder"]["blocks"]
    assert len(blocks) == CONFIGS[name].n_decoder_layers
    (weights,) = blocks["0"]["cross_attention"]["cross_attentions"]
    assert weights.shape == (3, 4, 6, 9)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not weights[1, :, :, 5:].any() and weights[1, :, :, :5].all()


@pytest.mark.parametrize(
    ("field", "scan"),
    [
        ("dropout", False),
        ("attention_dropout", True),
        pytest.param("dropout", True, marks=pytest.mark.slow),
        pytest.param("attention_dropout", False, marks=pytest.mark.slow),
    ],
)
def test_dropout_depends_on_the_key_alone(field, scan, golden):
    """The same with rematerialisation, another with another key, and none where it is 0 or evaluation."""
    params = tree(golden, "marian", "params")
    params = stack_layers(params) if scan else params
    config = dataclasses.replace(CONFIGS["marian"], scan=scan, **{field: 0.5})

    def logits(config, **given):
        return config.build().apply({"params": params}, **inputs("marian"), **given)["logits"]

    drop = lambda key: {"deterministic": False, "rngs": {"dropout": jax.random.key(key)}}  # noqa: E731
    found = logits(config, **drop(0))
    np.testing.assert_allclose(logits(dataclasses.replace(config, remat="full"), **drop(0)), found, atol=1e-4)
    assert np.abs(logits(config, **drop(1)) - found).max() > 1e-2
    plain = logits(CONFIGS["marian"] if not scan else dataclasses.replace(CONFIGS["marian"], scan=True))
    np.testing.assert_allclose(logits(config), plain, atol=1e-5)
    assert np.abs(found - plain).max() > 1e-2


@pytest.mark.slow
def test_bfloat16_steps_equal_teacher_forcing(golden):
    params, given = tree(golden, "marian", "params"), inputs("marian")
    model = dataclasses.replace(CONFIGS["marian"], dtype="bfloat16").build()
    ids = given.pop("decoder_input_ids")
    expected = model.apply({"params": params}, **given, decoder_input_ids=ids)["logits"]
    largest = np.abs(golden["marian/logits"]).max()
    assert 1e-4 * largest < np.abs(expected - golden["marian/logits"]).max() < 0.1 * largest
    memory, cache = model.apply({"params": params}, **given, method="encode", length=6)
    assert {x.dtype for x in jax.tree.leaves(cache["layers"])} == {jnp.dtype("bfloat16")}
    for t in range(6):
        out = model.apply({"params": params}, ids[:, t : t + 1], memory, cache, method="decode")
        np.testing.assert_allclose(out["logits"][:, 0], expected[:, t], atol=0.05 * largest)
        cache = out["cache"]
    with pytest.raises(ValueError, match="1 tokens more for a cache with 6 slots, of which 6 are written"):
        model.apply({"params": params}, ids[:, :1], memory, cache, method="decode")


def test_a_missing_target_is_an_error(name, params):
    with pytest.raises(ValueError, match="decoder_input_ids did not come"):
        CONFIGS[name].build().apply({"params": params}, inputs(name)["input_ids"])


# Halves ---------------------------------------------------------------------------------------------------------------


def test_the_encoder_alone_is_the_transformers(golden):
    params, given = tree(golden, "marian", "params"), inputs("marian")
    config = dataclasses.replace(CONFIGS["marian"], n_decoder_layers=0)
    own = {name: params[name] for name in ("embed", "encoder")}
    del given["decoder_input_ids"]
    states = config.build().apply({"params": own}, **given)["last_hidden_state"]
    real = np.asarray(given["attention_mask"]) == 1
    assert_close(states[real], golden["marian/states"][real])
    mean = pool(states, given["attention_mask"], "mean")[1]
    assert_close(mean, golden["marian/states"][1, :5].mean(0))
    model = config.build((Classification(3, pooling="first"),))
    logits = model.apply(model.init(jax.random.key(0), **given), **given)["logits"]
    assert logits.shape == (3, 3)


def test_the_decoder_alone_is_a_language_model():
    config = dataclasses.replace(BASE, n_encoder_layers=0, n_decoder_layers=2)
    model, ids = config.build(), jax.random.randint(jax.random.key(0), (2, 8), 0, 61)
    params = model.init(jax.random.key(1), ids)["params"]
    assert set(params) == {"embed", "decoder"} and "cross_attention" not in params["decoder"]["blocks"]["0"]
    expected = model.apply({"params": params}, ids)["logits"]
    later = model.apply({"params": params}, ids.at[:, 5].add(1))["logits"]
    np.testing.assert_array_equal(later[:, :5], expected[:, :5])
    cache = model.init_cache(2, 8)
    first = model.apply({"params": params}, ids[:, :5], cache=cache)
    rest = model.apply({"params": params}, ids[:, 5:], cache=first["cache"])
    found = jnp.concatenate([first["logits"], rest["logits"]], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Initial values, names, sizes -----------------------------------------------------------------------------------------


def test_parameter_names_and_shapes():
    config = transformer.Config(vocab_size=61, n_encoder_layers=1, n_decoder_layers=1, d_model=32, n_heads=4, d_ff=48)
    shapes = jax.eval_shape(config.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    flat = {path: x.shape for path, x in flatten_dict(shapes, sep="/").items()}
    own = {
        "attention/out/bias": (32,),
        "attention/out/kernel": (32, 4, 8),
        "attention/qkv/bias": (4, 3, 8),
        "attention/qkv/kernel": (4, 3, 8, 32),
        "mlp/in/bias": (48,),
        "mlp/in/kernel": (48, 32),
        "mlp/out/bias": (32,),
        "mlp/out/kernel": (32, 48),
        "norm_1/bias": (32,),
        "norm_1/scale": (32,),
        "norm_2/bias": (32,),
        "norm_2/scale": (32,),
    }
    cross = {
        "cross_attention/out/bias": (32,),
        "cross_attention/out/kernel": (32, 4, 8),
        "cross_attention/query/bias": (4, 8),
        "cross_attention/query/kernel": (4, 8, 32),
        "norm_cross/bias": (32,),
        "norm_cross/scale": (32,),
    }
    assert flat == {
        **{f"encoder/blocks/0/{name}": shape for name, shape in own.items()},
        **{f"decoder/blocks/0/{name}": shape for name, shape in (own | cross).items()},
        "memory/keys_values/bias": (1, 4, 2, 8),
        "memory/keys_values/kernel": (1, 4, 2, 8, 32),
        "embed/tokens": (128, 32),
    }


def test_initial_values_are_tensor2tensors():
    """Glorot's uniform, sqrt(6 / (in + out)) at most, of each matrix of 256 or 256 x 1024; tables N(0, 1 / D)."""
    config = transformer.Config(
        vocab_size=512, n_encoder_layers=1, n_decoder_layers=2, d_model=256, n_heads=4, d_ff=1024
    )
    params = jax.jit(config.build().init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    block, square, wide = params["decoder"]["blocks"]["0"], (6 / 512) ** 0.5, (6 / 1280) ** 0.5
    for leaf, bound in [
        (block["attention"]["qkv"]["kernel"], square),
        (block["attention"]["out"]["kernel"], square),
        (block["cross_attention"]["query"]["kernel"], square),
        (block["cross_attention"]["out"]["kernel"], square),
        (params["memory"]["keys_values"]["kernel"], square),
        (block["mlp"]["in"]["kernel"], wide),
        (block["mlp"]["out"]["kernel"], wide),
    ]:
        assert bound * 0.999 < np.abs(leaf).max() <= bound
        np.testing.assert_allclose(np.std(leaf), bound / 3**0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(params["embed"]["tokens"]), 256**-0.5, rtol=0.02)


def test_number_of_parameters_is_the_papers():
    """65 and 213 million (Vaswani et al., 2017, table 3), the table's 37,000 rows padded to 37,120."""
    for name, published in (("base", 65e6), ("big", 213e6)):
        shapes = jax.eval_shape(
            transformer.VARIANTS[name].build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
        )
        assert sum(x.size for x in jax.tree.leaves(shapes)) == pytest.approx(published, rel=0.03)


def test_sinusoids_are_the_papers():
    np.testing.assert_allclose(sinusoids(jnp.arange(50)[None], 16)[0], ORACLE["places"](50), atol=1e-6)
    with pytest.raises(ValueError, match=r"d_model=3; allowed with sinusoidal positions: an even number"):
        sinusoids(jnp.arange(2)[None], 3)


# Bad values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 30}, r"model.n_heads=4 does not divide model.d_model=30; allowed: 1, 2, 3, 5, 6, 10, 15, 30"),
        ({"d_model": 15, "n_heads": 3}, r"model.d_model=15; allowed: an even number"),
        ({"n_encoder_layers": 0, "n_decoder_layers": 0}, r"allowed: 0 and more, not both 0"),
        ({"dropout": 1.0}, r"model.dropout=1.0; allowed: 0 <= dropout < 1"),
        ({"d_ff": 0}, r"model.d_ff=0; allowed: 1 and more"),
        ({"epsilon": 0.0}, r"model.epsilon=0.0; allowed: above 0"),
        ({"activation": "tanh"}, r"model.activation='tanh'; allowed: relu, gelu, silu"),
        ({"dtype": "float16"}, r"model.dtype='float16'; allowed: float32, bfloat16"),
        ({"remat": "all"}, r"model.remat='all'; allowed: none, dots, full"),
        ({"n_decoder_layers": 0, "target_vocab_size": 5}, r"model.target_vocab_size=5 without both halves"),
    ],
)
def test_a_bad_value_is_refused(fields, message):
    config = dataclasses.replace(BASE)
    for name, value in fields.items():  # past the types, which are checked in tests alone
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


def test_heads_on_both_halves_are_refused():
    with pytest.raises(ValueError, match="on an encoder with a decoder; allowed: none"):
        BASE.build((Classification(2),))
