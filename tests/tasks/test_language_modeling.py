"""Perplexity with a stride against transformers' sliding window, and bits a byte of one tokenizer as of another."""

import functools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data import cache
from jaxnlp.data.tokenizers import ByteBPE, Characters, WordPiece, build
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training import loop
from jaxnlp.training.experiment import Data, Experiment

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "evaluation.npz")
ALPHABET = runpy.run_path(str(FOLDER / "evaluation.py"))["ALPHABET"]
CHARACTERS = build(Characters(), [ALPHABET])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def params():
    """Those of transformers' GPT-2 with random weights."""
    oracle, arrays = runpy.run_path(str(FOLDER / "gpt2.py")), np.load(FOLDER / "gpt2.npz")
    state = {name.removeprefix("params/"): arrays[name] for name in arrays if name.startswith("params/")}
    return jax.tree.map(jnp.asarray, oracle["params_of"](state))


@pytest.mark.parametrize("window", GOLDEN["windows"].tolist(), ids=lambda w: f"{w[0]:.0f} tokens, stride {w[1]:.0f}")
def test_perplexity_with_a_stride_is_transformers_sliding_window(params, window):
    """Its window holds the last label too, so it is one token longer than what the model reads."""
    max_length, stride, nats, count = window
    source = [{"text": str(GOLDEN["stream"])}]
    experiment = Experiment(
        model=gpt.Config(n_layers=2, d_model=32, n_heads=4, vocab_size=61, n_positions=24),
        task=LanguageModeling(length=int(max_length) - 1, stride=int(stride)),
        data=Data(train=source),
        steps=1,
        batch_size=3,
    )
    found = loop.evaluate(experiment, params, CHARACTERS, source)
    assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    n_bytes = len(str(GOLDEN["stream"])) - 1  # nothing precedes the first character
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)


@pytest.mark.parametrize("stride", [None, 3, 1])
def test_bits_are_of_the_same_bytes_whatever_the_tokenizer(tmp_path, stride):
    """All of the texts' bytes, but for the first token's, which nothing precedes."""
    source = [{"text": text} for text in ("the theme of theft", "", "Größe 기차 the ")]
    task = LanguageModeling(length=8, stride=stride)
    totals = []
    for spec in (Characters(), ByteBPE(257), ByteBPE(270), WordPiece(40)):
        tokenizer = build(spec, [example["text"] for example in source])
        encoded = cache.build(
            source, functools.partial(task.encode, tokenizer=tokenizer), key={"own": repr(spec)}, cache_dir=tmp_path
        )
        made = task.batches(encoded, tokenizer, batch_size=2, seed=None)
        counted = sum(float(made(step)["bytes"].sum()) for step in range(made.steps_per_epoch))
        first = tokenizer.spell(tokenizer.encode(source[0]["text"])[0]).removeprefix("Ġ")
        totals.append(counted + len(first))
    assert totals == [sum(len(example["text"].encode()) for example in source)] * 4


def test_a_stride_is_of_evaluation_alone(tmp_path):
    """Training batches are those without one."""
    tokenizer, source = CHARACTERS, [{"text": str(GOLDEN["stream"])}]
    task = LanguageModeling(length=8, stride=2)
    encoded = cache.build(source, functools.partial(task.encode, tokenizer=tokenizer), key={}, cache_dir=tmp_path)
    a, b = (
        LanguageModeling(length=8, stride=stride).batches(encoded, tokenizer, batch_size=2, seed=0)(1)
        for stride in (2, None)
    )
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("stride", "allowed"), [(1.5, "a whole number"), (0, "1 and more")])
def test_a_stride_that_cannot_be_meant_is_refused(stride, allowed):
    """Where no types are checked, as they are in tests."""
    task = LanguageModeling()
    object.__setattr__(task, "stride", stride)
    with pytest.raises((TypeError, ValueError), match=f"task.stride={stride}; allowed: {allowed}"):
        task.__post_init__()
