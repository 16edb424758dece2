"""Tasks: what they make of examples, what they count, and what they refuse."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnlp
from jaxnlp.data.tokenizers import Characters, build
from jaxnlp.models import gpt, transformer
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.span_qa import SpanQA
from jaxnlp.tasks.translation import Translation
from jaxnlp.training import loop
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim
from jaxnlp.training.step import measure

CONFIG = gpt.Config(vocab_size=20, n_positions=16, n_layers=1, d_model=8, n_heads=2)


@pytest.fixture(scope="module")
def tokenizer():
    return build(Characters(), ["abc"])  # 0 end, 1 unknown, 2 a, 3 b, 4 c


@pytest.fixture(scope="module")
def params():
    return CONFIG.build().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def ids(records):
    return [record["input_ids"].tolist() for record in records]


def test_documents_end_with_the_end_token_and_empty_ones_are_left_out(tokenizer):
    records = LanguageModeling().encode([{"text": "ab"}, {"text": ""}, {"text": "c"}], tokenizer)
    assert ids(records) == [[2, 3, 0], [4, 0]]


def test_smoothing_and_z_loss_are_the_training_loss_alone(params):
    """Evaluation is the plain mean of -log p, and bits per byte follow from it."""
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(0, 20, (2, 8)),
        "labels": rng.integers(0, 20, (2, 8)),
        "weights": np.float32(rng.random((2, 8)) < 0.7),
        "bytes": np.array([9.0, 4.0], np.float32),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    model, plain = CONFIG.build(), LanguageModeling(length=8)
    odd = dataclasses.replace(plain, label_smoothing=0.1, z_loss=0.1)
    log_p = jax.nn.log_softmax(model.apply({"params": params}, batch["input_ids"])["logits"])
    picked = jnp.take_along_axis(log_p, batch["labels"][..., None], -1)[..., 0]
    nats, count = -(picked * batch["weights"]).sum(), batch["weights"].sum()
    for task in (plain, odd):
        sums = measure(model, task, params, batch, None)
        np.testing.assert_allclose(sums["loss"], (nats, count), rtol=1e-5)
        np.testing.assert_allclose(sums["bits_per_byte"], (nats / math.log(2), 13.0), rtol=1e-5)
    trained = measure(model, odd, params, batch, jax.random.key(0))["loss"][0]
    assert trained > measure(model, plain, params, batch, jax.random.key(0))["loss"][0]


def test_without_bytes_there_are_no_bits_per_byte(params):
    zeros = jnp.zeros((1, 4), jnp.int32)
    batch = {"input_ids": zeros, "labels": zeros, "weights": jnp.ones((1, 4))}
    assert set(measure(CONFIG.build(), LanguageModeling(length=4), params, batch, None)) == {"loss"}


@pytest.mark.parametrize(
    "task", [LanguageModeling(), Translation(source="text", target="text"), SpanQA(question="text")]
)
def test_a_text_that_is_none_is_named(tokenizer, task):
    with pytest.raises(ValueError, match="='text' is None in the example {'text': None, 'context': 'a'}; allowed: a v"):
        task.encode([{"text": None, "context": "a"}], tokenizer)


def test_labels_by_name_by_index_and_none(tokenizer):
    """Cut to the length with the end token; -1 marks an example without a class, which is left out."""
    task = Classification(labels=("no", "yes"), length=3)
    examples = [{"text": "abc", "label": "yes"}, {"text": "c", "label": 0}, {"text": "b", "label": -1}]
    records = task.encode(examples, tokenizer)
    assert ids(records) == [[2, 3, 0], [4, 0]]
    assert [int(record["label"]) for record in records] == [1, 0]


@pytest.mark.parametrize("label", ["maybe", 2, -2])
def test_an_unknown_label_is_named(tokenizer, label):
    with pytest.raises(ValueError, match=rf"label={label!r} in the data; allowed: -1 … 1, or no, yes"):
        Classification(labels=("no", "yes")).encode([{"text": "a", "label": label}], tokenizer)


@pytest.mark.parametrize("task", [LanguageModeling(text="body"), Classification(labels=("no",), text="body")])
def test_a_missing_feature_is_named(tokenizer, task):
    with pytest.raises(ValueError, match=r"task.text='body' is no feature of the data; allowed: label, text"):
        task.encode([{"text": "a", "label": 0}], tokenizer)


def test_predictions_do_not_depend_on_their_neighbours(tokenizer):
    """Longest together, in batches, padded: each text's scores are those that it gets alone."""
    task = Classification(labels=("x", "y", "z"), length=12)
    model = CONFIG.build(task.heads)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    texts = ["a", "abcabcabcabcabc", "bc", "", "cab"]
    together = task.predict(model, params, tokenizer, texts)
    for text, found in zip(texts, together, strict=True):
        (alone,) = task.predict(model, params, tokenizer, [text])
        np.testing.assert_allclose(list(found["scores"].values()), list(alone["scores"].values()), atol=1e-6)
        assert found["label"] == max(found["scores"], key=found["scores"].get)
        assert math.isclose(sum(found["scores"].values()), 1, rel_tol=1e-5)


CLASSES = Classification(labels=("a", "b"), length=8)


@pytest.mark.parametrize(
    ("half", "task", "found"),
    [
        ("encoder", CLASSES, {"label": "b"}),
        ("decoder", dataclasses.replace(CLASSES, auxiliary=0.5), {"label": "b"}),
        ("decoder", Translation(source="text", target="text", form="prefix", length=16), {"translation": "ba"}),
    ],
)
def test_a_half_of_a_transformer_learns_and_predicts(half, task, found, tmp_path, monkeypatch):
    """Which letter comes first, and to write the text that it reads; the losses are far below those of a guess."""
    monkeypatch.setattr(loop, "write_report", lambda folder, shown: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {"n_encoder_layers": 0, "n_decoder_layers": 0, f"n_{half}_layers": 1, "d_model": 16, "n_heads": 2}
    experiment = Experiment(
        model=transformer.Config(vocab_size=8, dropout=0.0, d_ff=16, **sizes),
        task=task,
        data=Data(train=[{"text": text, "label": text[0]} for text in ("ab", "ba", "aab", "bba")]),
        tokenizer=Characters(),
        optim=Optim(lr=2e-2),
        steps=100,
        batch_size=4,
        save_every=1.0,
    )
    run = jaxnlp.train(experiment, tmp_path / "run")
    (one,) = run.predict(["ba"])
    assert found.items() <= one.items()
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] < 0.3 and last.get("lm_loss", 0) < 0.5 * math.log(4), "of two letters, an end and a strange one"
