"""Sequence to sequence against PyTorch (stored arrays), and what must hold of any encoder and decoder."""

import dataclasses
import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxnlp.losses import blocked_cross_entropy
from jaxnlp.models import seq2seq
from jaxnlp.nn.embeddings import padded

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "seq2seq.py"))
BATCH = {k: jnp.asarray(v, jnp.float32 if k == "weights" else jnp.int32) for k, v in ORACLE["batch"]().items()}
INPUTS = {name: BATCH[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
BASE = seq2seq.Config(
    vocab_size=ORACLE["V"], target_vocab_size=ORACLE["W"], d_embed=ORACLE["E"], d_model=ORACLE["D"], bidirectional=False
)
CONFIGS = {}
for _name, _options in ORACLE["MODELS"].items():
    _shared = {"target_vocab_size": None} if _options.get("share_embeddings") else {}
    CONFIGS[_name] = dataclasses.replace(BASE, **_shared, **_options)
FORMS = {
    **CONFIGS,
    "dot": dataclasses.replace(BASE, cell="rnn", attention="dot"),
    "general": dataclasses.replace(BASE, attention="general", bidirectional=True, residual=True, n_layers=2, tied=True),
}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))


def tree(golden, name, kind):
    """The stored arrays under their paths, vocabularies padded with rows that must not matter."""
    found = {}
    for key, x in golden.items():
        if key.startswith(f"{name}/{kind}/"):
            path = key.removeprefix(f"{name}/{kind}/")
            if path.endswith(("tokens", "output_bias")):
                filling = 7.0 if kind == "params" else 0.0
                x = np.concatenate([x, np.full((padded(len(x)) - len(x), *x.shape[1:]), filling)])
            found[path] = jnp.asarray(x, jnp.float32)
    return unflatten_dict(found, sep="/")


def init(config):
    params = jax.jit(config.build().init)(jax.random.key(0), BATCH["input_ids"])["params"]
    # Zero where they begin, biases and v would hide what they do.
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    """A model, its parameters, and what it gives for BATCH."""
    model = FORMS[request.param].build()
    params = init(FORMS[request.param])
    return model, params, apply(model, params, INPUTS, mutable=("intermediates",))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("mutable", "method"))
def apply(model, params, inputs, **options):
    return model.apply({"params": params}, **inputs, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_pytorch(name, golden):
    model, params = CONFIGS[name].build(), tree(golden, name, "params")

    def loss(params):
        out = model.apply({"params": params}, **INPUTS, logits=False)["unembedding"]
        total, weight = blocked_cross_entropy(
            out.hidden, out.table, BATCH["labels"], BATCH["weights"], bias=out.bias, vocab_size=out.vocab_size
        )
        return total / weight

    logits = apply(model, params, INPUTS)["logits"]
    np.testing.assert_allclose(logits, golden[f"{name}/logits"], atol=1e-5 * np.abs(golden[f"{name}/logits"]).max())
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, golden[f"{name}/loss"], rtol=1e-5)
    expected = flatten_dict(tree(golden, name, "gradient"), sep="/")
    found = flatten_dict(gradient, sep="/")
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, rtol=0, atol=1e-5 * max(np.abs(x).max(), 0.1), err_msg=path)


def test_parameters_have_the_names_and_shapes_of_the_oracle(golden):
    for name, config in CONFIGS.items():
        found = jax.tree.map(jnp.shape, jax.eval_shape(lambda config=config: init(config)))
        assert flatten_dict(found, sep="/") == {
            path: x.shape for path, x in flatten_dict(tree(golden, name, "params"), sep="/").items()
        }


def test_a_step_at_a_time_is_teacher_forcing(form):
    """The decoder of greedy and beam search is that of training."""
    model, params, (out, _) = form
    source = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    memory, cache = apply(model, params, source, method="encode")
    decode = jax.jit(lambda ids, cache: model.apply({"params": params}, ids, memory, cache, method="decode"))
    for t in range(ORACLE["T"]):
        new = decode(BATCH["decoder_input_ids"][:, t : t + 1], cache)
        np.testing.assert_allclose(new["logits"][:, 0], out["logits"][:, t], atol=1e-5)
        cache = new["cache"]


def test_padding_changes_nothing_on_either_side(form):
    model, params, (out, _) = form
    other = jnp.where(BATCH["attention_mask"] == 0, 9, BATCH["input_ids"])
    np.testing.assert_allclose(apply(model, params, INPUTS | {"input_ids": other})["logits"], out["logits"], atol=1e-6)
    left = {name: jnp.pad(BATCH[name], ((0, 0), (2, 0))) for name in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(apply(model, params, INPUTS | left)["logits"], out["logits"], atol=1e-5)


def test_attention_weights_are_of_real_tokens_alone(form):
    model, _, (_, seen) = form
    if model.config.attention == "none":
        return
    (weights,) = seen["intermediates"]["decoder"]["cross_attentions"]
    assert weights.shape == (*BATCH["decoder_input_ids"].shape, BATCH["input_ids"].shape[1])
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert (np.asarray(weights)[np.broadcast_to(BATCH["attention_mask"][:, None] == 0, weights.shape)] == 0).all()


def test_no_token_sees_a_later_one(form):
    model, params, (out, _) = form
    later = BATCH["decoder_input_ids"].at[:, 2:].set(1)
    found = apply(model, params, INPUTS | {"decoder_input_ids": later})["logits"]
    np.testing.assert_allclose(found[:, :2], out["logits"][:, :2], atol=1e-6)
    assert np.abs(found[:, 2:] - out["logits"][:, 2:]).max() > 1e-3


def test_a_reversed_source_is_the_source_read_backwards():
    config = dataclasses.replace(BASE, attention="none")
    params = init(config)
    turned = jnp.array([row[:n][::-1].tolist() + row[n:].tolist() for row, n in zip(
        np.asarray(BATCH["input_ids"]), ORACLE["LENGTHS"], strict=True)])  # fmt: skip
    by_hand = apply(config.build(), params, INPUTS | {"input_ids": turned})["logits"]
    model = dataclasses.replace(config, reverse_source=True).build()
    np.testing.assert_allclose(apply(model, params, INPUTS)["logits"], by_hand, atol=1e-6)


def test_dropout_is_drawn_for_each_step():
    """Two layers whose recurrence is zero, and equal tokens: what the second reads differs by its masks alone."""
    model = dataclasses.replace(CONFIGS["luong"], dropout=0.5, input_feeding=True).build()
    params = init(CONFIGS["luong"])
    step = params["decoder"]["step"]
    for name in ("layer_0", "layer_1"):  # h = o tanh(i g): no memory of the steps before
        step[name]["recurrent"]["kernel"] *= 0
        step[name]["input"]["bias"] = step[name]["input"]["bias"].at[1].set(-1e4)
    width = CONFIGS["luong"].d_embed
    step["layer_0"]["input"]["kernel"] = step["layer_0"]["input"]["kernel"].at[:, :, width:].set(0)  # nor of o
    same = {**INPUTS, "decoder_input_ids": jnp.ones_like(BATCH["decoder_input_ids"])}
    # Dropout on the embeddings is drawn for all steps at once: a table of zeros leaves the bias, alike at each.
    params["source"]["tokens"] *= 0

    @jax.jit
    def weights(key):
        rngs = {"dropout": jax.random.key(key)}
        _, seen = model.apply({"params": params}, **same, deterministic=False, rngs=rngs, mutable=["intermediates"])
        return seen["intermediates"]["decoder"]["cross_attentions"][0]

    one = np.asarray(weights(0))
    assert (np.abs(one[:2, 1:] - one[:2, :1]).max(-1) > 1e-6).sum() > 3  # of 6, as two masks of six units may be alike
    assert not np.array_equal(one, weights(1))
    np.testing.assert_array_equal(one, weights(0))


def test_a_source_without_a_token_gives_no_weight_to_padding():
    config = CONFIGS["bahdanau"]
    given = {**INPUTS, "attention_mask": BATCH["attention_mask"].at[1].set(0)}
    out, seen = config.build().apply({"params": init(config)}, **given, mutable=["intermediates"])
    (weights,) = seen["intermediates"]["decoder"]["cross_attentions"]
    assert not weights[1].any() and np.isfinite(out["logits"]).all()
    np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["bahdanau", pytest.param("luong", marks=pytest.mark.slow)])
def test_bfloat16_steps_equal_teacher_forcing(name):
    config = dataclasses.replace(CONFIGS[name], dtype="bfloat16")
    model, params = config.build(), init(config)
    source = {key: INPUTS[key] for key in ("input_ids", "attention_mask")}
    expected = model.apply({"params": params}, **INPUTS)["logits"]
    plain = CONFIGS[name].build().apply({"params": params}, **INPUTS)["logits"]
    assert 1e-5 < np.abs(expected - plain).max() < 0.2
    memory, cache = model.apply({"params": params}, **source, method="encode")
    for t in range(INPUTS["decoder_input_ids"].shape[1]):
        ids = INPUTS["decoder_input_ids"][:, t : t + 1]
        out = model.apply({"params": params}, ids, memory, cache, method="decode")
        np.testing.assert_allclose(out["logits"][:, 0], expected[:, t], atol=0.05)
        assert [x.dtype for x in jax.tree.leaves(out["cache"])] == [x.dtype for x in jax.tree.leaves(cache)]
        cache = out["cache"]


def test_a_missing_target_is_an_error():
    with pytest.raises(ValueError, match="decoder_input_ids did not come"):
        CONFIGS["bahdanau"].build().apply({"params": init(CONFIGS["bahdanau"])}, INPUTS["input_ids"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention": "dot"}, r"model.attention='dot' with model.bidirectional=True.*allowed: attention='general'"),
        ({"input_feeding": True}, r"model.input_feeding with model.attention='additive'; allowed with: dot, general"),
        ({"share_embeddings": True, "target_vocab_size": 5}, r"model.share_embeddings with model.target_vocab_size=5"),
        ({"dropout": 1.0}, r"model.dropout=1.0; allowed: 0 <= dropout < 1"),
        ({"n_layers": 0}, r"model.n_layers=0; allowed: 1 and more"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        seq2seq.Config(**changed)


@pytest.mark.parametrize(
    ("name", "allowed"), [("cell", "rnn, lstm, gru"), ("attention", "none, additive, dot, general")]
)
def test_an_unknown_form_is_refused(name, allowed):
    config = seq2seq.Config()
    object.__setattr__(config, name, "gnu")  # past the tests' own check of types
    with pytest.raises(ValueError, match=f"model.{name}='gnu'; allowed: {allowed}"):
        config.__post_init__()


@pytest.mark.parametrize("name", FORMS)
def test_flops_are_those_of_the_products(name):
    """6 for each weight of a product and token, here counted on the parameters: tables and biases multiply nothing."""
    config = FORMS[name]
    params = flatten_dict(jax.eval_shape(lambda: init(config)), sep="/")
    per_pair = 6.0 * config.output_width * config.output_vocab_size
    for path, x in params.items():
        if path.endswith("kernel") and "bridge" not in path:  # once a sequence
            per_pair += 6.0 * x.size
    if config.attention != "none":  # scores and contexts of ten states
        per_pair += 6.0 * 10 * (config.d_model + config.source_width)
    assert config.flops(10) == pytest.approx(per_pair / 2)
