"""BERT and its heads against transformers' (stored arrays), and what must hold of any of them."""

import dataclasses
import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxnlp.losses import blocked_cross_entropy, cross_entropy
from jaxnlp.models import bert, gpt, heads
from jaxnlp.models.checked import checked
from jaxnlp.models.heads import pool
from jaxnlp.nn.blocks import stack_layers, unstack_layers

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "bert.py"))
CONFIG = bert.Config(
    vocab_size=ORACLE["V"],
    n_positions=ORACLE["T"],
    n_layers=ORACLE["L"],
    d_model=ORACLE["D"],
    n_heads=ORACLE["H"],
    d_ff=ORACLE["F"],
    dropout=0.0,
    attention_dropout=0.0,
)
PRETRAINING = (heads.MaskedLM(), heads.NextSentence())
BODY = ("input_ids", "attention_mask", "token_type_ids")


def batch(of="batch"):
    return {name: jnp.asarray(x, jnp.float32 if name == "weights" else jnp.int32) for name, x in ORACLE[of]().items()}


def inputs(of="batch"):
    return {name: batch(of)[name] for name in BODY}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))


def tree(golden, at, head=""):
    stored = {k.removeprefix(f"{at}/"): v for k, v in golden.items() if k.startswith(f"{at}/")}
    return jax.tree.map(jnp.asarray, ORACLE["params_of"](stored, head))


@pytest.fixture(scope="module")
def params(golden):
    return tree(golden, "pretraining/params")


def assert_close(found, expected, tolerance=1e-5):
    error = np.max(np.abs(np.asarray(found) - np.asarray(expected)))
    assert error <= tolerance * max(np.max(np.abs(expected)), 1e-2), error


def loss_of(config, params):
    """The mean over the masked words, whose products alone are taken, and the next sentence's."""
    b = batch()
    given = {**inputs(), "masked_positions": b["masked_positions"]}
    out = config.build(PRETRAINING).apply({"params": params}, **given, logits=False)
    hidden, table, bias, vocab_size = out["unembedding"]
    assert hidden.shape[:2] == b["labels"].shape
    words, weight = blocked_cross_entropy(hidden, table, b["labels"], b["weights"], bias=bias, vocab_size=vocab_size)
    following, rows = cross_entropy(out["seq_relationship_logits"], b["next_sentence_label"])
    return words / weight + following / rows


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (True, "full")])
def test_pretraining_equals_transformers(scan, remat, params, golden):
    config = dataclasses.replace(CONFIG, scan=scan, remat=remat)
    own = stack_layers(params) if scan else params
    out = config.build(PRETRAINING).apply({"params": own}, **inputs())
    real = np.asarray(inputs()["attention_mask"]) == 1
    for name in ("last_hidden_state", "prediction_logits"):
        assert_close(out[name][real], golden[f"pretraining/{name}"][real])
    for name in ("pooler_output", "seq_relationship_logits"):
        assert_close(out[name], golden[f"pretraining/{name}"])
    loss, gradient = jax.jit(jax.value_and_grad(functools.partial(loss_of, config)))(own)
    assert_close(loss, golden["pretraining/loss"])
    found = flatten_dict(unstack_layers(gradient) if scan else gradient, sep="/")
    expected = flatten_dict(tree(golden, "pretraining/gradient"), sep="/")
    assert found.keys() == expected.keys()
    for path in expected:
        assert_close(found[path], expected[path])


@pytest.mark.parametrize(
    ("name", "head", "pooler"),
    [
        ("SequenceClassification", heads.Classification(ORACLE["LABELS"]), "tanh"),
        ("TokenClassification", heads.Tagging(ORACLE["LABELS"]), None),
        ("QuestionAnswering", heads.Span(), None),
        ("MultipleChoice", heads.Choice(), "tanh"),
    ],
)
def test_heads_equal_transformers(name, head, pooler, golden):
    model = dataclasses.replace(CONFIG, pooler=pooler).build((head,))
    given = inputs("choices" if name == "MultipleChoice" else "batch")
    out = model.apply({"params": tree(golden, f"{name}/params", head.name)}, **given)
    for key in ("logits", "start_logits", "end_logits"):
        if f"{name}/{key}" in golden:
            of_tokens = out[key].shape[:2] == given["input_ids"].shape[:2] and name != "MultipleChoice"
            real = np.asarray(given["attention_mask"]) == 1 if of_tokens else ...
            assert_close(out[key][real], golden[f"{name}/{key}"][real])


def test_one_head_alone_gives_logits(params):
    words = CONFIG.build(PRETRAINING[:1]).apply({"params": params}, **inputs())
    both = CONFIG.build(PRETRAINING).apply({"params": params}, **inputs())
    np.testing.assert_array_equal(words["logits"], both["prediction_logits"])
    assert "prediction_logits" not in words
    following = CONFIG.build(PRETRAINING[1:]).apply({"params": params}, **inputs())
    np.testing.assert_array_equal(following["logits"], both["seq_relationship_logits"])


def test_masked_positions_are_some_of_all(params):
    model, places = CONFIG.build(PRETRAINING[:1]), batch()["masked_positions"]
    everywhere = model.apply({"params": params}, **inputs())["logits"]
    some = model.apply({"params": params}, **inputs(), masked_positions=places)["logits"]
    np.testing.assert_allclose(some, jnp.take_along_axis(everywhere, places[..., None], 1), atol=1e-5)


def test_padding_and_packed_texts_change_nothing(params):
    model, given = CONFIG.build(), inputs()
    apply = lambda **given: model.apply({"params": params}, **given)["last_hidden_state"]  # noqa: E731
    expected, mask = apply(**given), given["attention_mask"]
    other = given | {"input_ids": jnp.where(mask == 1, given["input_ids"], 7)}
    np.testing.assert_allclose(apply(**other)[mask == 1], expected[mask == 1], atol=1e-6)
    ids, kinds = (given[name][1:3].reshape(1, -1)[:, :14] for name in ("input_ids", "token_type_ids"))
    line = jnp.concatenate([ids[:, :7], ids[:, 10:14]], 1)  # 7 tokens of one text, 4 of another
    types = jnp.concatenate([kinds[:, :7], kinds[:, 10:14]], 1)
    places = jnp.array([[*range(7), *range(4)]])
    packed = dataclasses.replace(CONFIG, n_positions=11).build()
    longer = params | {
        "embed": params["embed"] | {"positions": jnp.pad(params["embed"]["positions"], ((0, 1), (0, 0)))}
    }
    segments = jnp.array([[1] * 7 + [2] * 4])
    found = packed.apply({"params": longer}, line, token_type_ids=types, position_ids=places, segment_ids=segments)[
        "last_hidden_state"
    ][0]
    np.testing.assert_allclose(found[:7], expected[1, :7], atol=1e-5)
    np.testing.assert_allclose(found[7:], expected[2, :4], atol=1e-5)


def test_one_kind_of_segments_is_not_told_apart():
    """As of RoBERTa's models whose tokenizer is BERT's: rows beyond the table would be NaN."""
    model = dataclasses.replace(CONFIG, n_segments=1).build()
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    given = inputs()
    expected = model.apply({"params": params}, **given | {"token_type_ids": None})["pooler_output"]
    assert bool(given["token_type_ids"].any()) and bool(jnp.isfinite(expected).all())
    np.testing.assert_array_equal(model.apply({"params": params}, **given)["pooler_output"], expected)


def test_the_mean_of_many_half_precise_states_is_their_mean():
    """bfloat16 cannot count beyond 256."""
    hidden = jnp.full((1, 400, 2), 3, jnp.bfloat16)
    for n in (257, 300, 399):
        np.testing.assert_array_equal(pool(hidden, (jnp.arange(400) < n)[None].astype(jnp.int32), "mean"), 3)


def test_number_of_parameters_is_the_papers():
    """The published checkpoints', to the last one; without what fills the vocabulary's table up."""
    for name, expected in (
        ("base", 109_482_240),
        ("large", 335_141_888),
        ("base-cased", 108_310_272),
        ("tiny", 4_385_920),
        ("mini", 11_170_560),
        ("small", 28_763_648),
        ("medium", 41_373_184),
        ("base-multilingual-cased", 177_853_440),
        ("roberta-base", 124_645_632 - 2 * 768),
        ("distilbert-base", 66_362_880),
    ):
        config = dataclasses.replace(bert.VARIANTS[name], scan=True)
        params = jax.eval_shape(config.build().init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
        filling = params["embed"]["tokens"].shape[0] - config.vocab_size
        n = sum(x.size for x in jax.tree.leaves(params)) - filling * config.d_model
        assert n == expected, name


def test_initial_values_are_those_of_google_research_bert():
    """N(0, 0.02²) cut off at two deviations, which leaves 0.88 of them; biases 0, scales 1."""
    config = dataclasses.replace(bert.VARIANTS["tiny"], vocab_size=2048)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(config.build(PRETRAINING).init)(jax.random.key(0), ids)["params"]
    for path, x in flatten_dict(params, sep="/").items():
        if path.endswith("bias"):
            assert not x.any(), path
        elif path.endswith("scale"):
            assert np.all(x == 1), path
        else:
            assert np.max(np.abs(x)) <= 0.04, path
            if x.size > 10_000:
                np.testing.assert_allclose(np.std(x), 0.02 * 0.8796, rtol=0.03, err_msg=path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"masked_positions": [[1, 4]]}, r"masked_positions holds \[\[1, 4\]\]; allowed: 0 … 3, a place in its row"),
        ({"masked_positions": [[-1, 2]]}, r"masked_positions holds \[\[-1, 2\]\]; allowed: 0 … 3"),
        ({"position_ids": [[3], [4]]}, r"position_ids has shape \(2, 1\); allowed: \(1, 4\), as input_ids, or one row"),
    ],
)
def test_places_outside_their_row_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        checked(CONFIG.build(PRETRAINING), {"input_ids": [[1, 2, 3, 4]], **inputs}, ())


def test_choices_have_positions_of_their_own(params):
    """As transformers' multiple choice takes them: two choices are the two rows that they are."""
    ids, places = jnp.array([[[1, 2, 3], [1, 4, 5]]]), jnp.array([[[0, 1, 2], [2, 1, 0]]])
    apply = functools.partial(CONFIG.build().apply, {"params": {k: x for k, x in params.items() if k != "heads"}})
    together, apart = apply(ids, position_ids=places), apply(ids[0], position_ids=places[0])
    np.testing.assert_array_equal(together["last_hidden_state"], apart["last_hidden_state"])


def test_a_head_has_a_dropout_of_its_own():
    """Of all but one in 2 ** 20 of what it reads, here; without one it is the body's."""
    head, rate = (heads.Classification(2),), 1 - 2.0**-20
    for own, dropped in ((rate, True), (0.0, False), (None, False)):
        config = dataclasses.replace(CONFIG, dropout=0.0, attention_dropout=0.0, head_dropout=own)
        params = init(config, head)["params"]
        found = config.build(head).apply(
            {"params": params}, jnp.array([[1, 2]]), deterministic=False, rngs={"dropout": jax.random.key(0)}
        )
        assert (not found["logits"].any()) == dropped


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bert.Config(head_dropout=1.0), r"model.head_dropout=1.0; allowed: 0 <= head_dropout < 1"),
        (lambda: bert.Config(n_heads=7), r"n_heads=7 does not divide model.d_model=768; allowed: 1, 2"),
        (lambda: bert.Config(n_segments=-1), r"model.n_segments=-1; allowed: 0 and more"),
        (lambda: bert.Config(dropout=1.0), r"model.dropout=1.0; allowed: 0 <= dropout < 1"),
        (lambda: init(CONFIG, T=11), r"input_ids has length 11; allowed: at most model.n_positions=10"),
        (
            lambda: init(dataclasses.replace(CONFIG, pooler=None), heads=PRETRAINING),
            r"model.pooler=None; allowed for the next sentence: tanh",
        ),
        (
            lambda: init(gpt.Config(vocab_size=8, n_positions=8, n_layers=1, d_model=8, n_heads=2), PRETRAINING[:1]),
            r"a masked language model on a body that guesses no words; allowed: BERT",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def init(config, heads=(), T=4, **given):
    return config.build(heads).init(jax.random.key(0), jnp.zeros((1, T), jnp.int32), **given)
