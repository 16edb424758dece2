"""GPT-1's inputs, its two losses, and a vocabulary that grows at fine-tuning (Radford et al., 2018)."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnlp
from jaxnlp.data import cache
from jaxnlp.data.tokenizers import Characters, Pair, WordPiece, build
from jaxnlp.models import bert, gpt
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.inputs import MARKS, template
from jaxnlp.tasks.labelled import with_next
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.multiple_choice import MultipleChoice
from jaxnlp.tasks.regression import Regression
from jaxnlp.training import loop
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.lora import LoRA
from jaxnlp.training.optim import Optim
from jaxnlp.training.pretrained import merge
from jaxnlp.training.step import measure

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIG = gpt.Config(vocab_size=9, n_positions=16, n_layers=1, d_model=8, n_heads=2)
ALIKE = Regression(text="a", pair="b", symmetric=True, length=16)
CHOICE = MultipleChoice(n_choices=3, length=16)


@pytest.fixture(scope="module")
def letters():
    """0 end, 1 unknown, 2 to 5 a to d, 6 start, 7 delimiter, 8 extract."""
    return build(Characters(), ["abcd"]).extended(MARKS)


def initial(config, task):
    """So large that the logits differ."""
    ids = jnp.zeros((1, 1), jnp.int32)
    made = jax.jit(lambda: config.build(task.heads).init(jax.random.key(0), ids))()["params"]
    return jax.tree.map(lambda x: 20 * x, made)


def batch_of(task, examples, tokenizer, folder, batch_size):
    rows = cache.build(examples, lambda e: task.encode(e, tokenizer), key=task.key, cache_dir=folder, progress=False)
    return task.batches(rows, tokenizer, batch_size=batch_size, seed=None)(0)


# Inputs ---------------------------------------------------------------------------------------------------------------


def test_the_inputs_of_figure_1(letters):
    (text,) = Classification(labels=("x",)).encode([{"text": "ab", "label": 0}], letters)
    assert text["input_ids"].tolist() == [6, 2, 3, 8]
    entailment = Classification(labels=("x",), text="premise", pair="hypothesis")
    (pair,) = entailment.encode([{"premise": "ab", "hypothesis": "c", "label": 0}], letters)
    assert pair["input_ids"].tolist() == [6, 2, 3, 7, 4, 8] and "token_type_ids" not in pair
    (both,) = ALIKE.encode([{"a": "ab", "b": "c", "score": 3.5}], letters)
    assert both["input_ids"].tolist() == [[6, 2, 3, 7, 4, 8], [6, 4, 7, 2, 3, 8]] and both["label"] == 3.5
    (choices,) = CHOICE.encode([{"context": "ab", "choices": ["c", "dd"], "label": 1}], letters)
    assert choices["input_ids"].tolist() == [[6, 2, 3, 7, 4, 8, 0], [6, 2, 3, 7, 5, 5, 8], [0] * 7]
    assert choices["attention_mask"].sum(1).tolist() == [6, 7, 0]


def test_long_texts_keep_the_three_tokens(letters):
    form = template(letters)
    assert form.fit([2] * 9, length=5)["input_ids"].tolist() == [6, 2, 2, 2, 8]
    assert form.fit([2] * 9, [3] * 9, length=7)["input_ids"].tolist() == [6, 2, 2, 7, 3, 3, 8]


def test_a_marks_name_in_a_text_is_text(letters):
    tokenizer = build(Characters(), ["_start_"]).extended(MARKS)
    assert tokenizer.vocab_size == 10
    assert template(tokenizer).join(tokenizer.encode("_start_"))["input_ids"].tolist() == [
        7,
        *(2, 5, 6, 3, 4, 6, 2),
        9,
    ]
    assert tokenizer.decode([7, 3, 8, 4, 9]) == "ar" and tokenizer.byte_lengths[7:].tolist() == [0, 0, 0]


def test_the_tokens_after_each_and_which_of_them_count(letters, tmp_path):
    task = dataclasses.replace(ALIKE, auxiliary=0.5, buckets=(8, 16))
    batch = batch_of(task, [{"a": "ab", "b": "c", "score": 1.0}], letters, tmp_path, batch_size=2)
    assert batch["next_ids"][0, 1].tolist() == [4, 7, 2, 3, 8, 0, 0, 0]
    assert batch["next_weights"][0].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]] * 2
    assert not batch["next_weights"][1].any() and batch["weights"].tolist() == [1, 0]
    task = dataclasses.replace(task, length=8)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in task.shapes(2).items()
    }


# Losses ---------------------------------------------------------------------------------------------------------------


def test_both_losses_and_their_gradients_are_those_of_transformers(monkeypatch):
    """A choice and its language model; a row of weight 0 beside changes neither."""
    monkeypatch.syspath_prepend(GOLDEN)
    import double_heads as oracle

    golden = dict(np.load(GOLDEN / "double_heads.npz"))
    part = lambda name: {k.removeprefix(name): x for k, x in golden.items() if k.startswith(name)}  # noqa: E731
    sizes = {"vocab_size": 61, "n_positions": 24, "n_layers": 2, "n_heads": 4, "d_model": 32}
    task = MultipleChoice(n_choices=2, length=12, auxiliary=oracle.LAMBDA)
    model = gpt.Config(**sizes, dropout=0.0, attention_dropout=0.0).build(task.heads)
    given = {name: np.concatenate([x, x[:1]]) for name, x in oracle.batch().items()}
    batch = jax.tree.map(jnp.asarray, with_next(given | {"weights": np.float32([1, 1, 1, 0])}))

    def total(params):
        sums = measure(model, task, params, batch, None)
        return sum(sums[name][0] / sums[name][1] for name in task.losses), sums

    params = jax.tree.map(jnp.asarray, oracle.tree_of(part("params/")))
    gradient, sums = jax.jit(jax.grad(total, has_aux=True))(params)
    found = task.metrics({name: float(a / b) for name, (a, b) in sums.items()})
    assert set(found) == {"loss", "lm_loss", "accuracy"}
    for name in ("loss", "lm_loss"):
        np.testing.assert_allclose(found[name], golden[name], rtol=1e-5)

    def close(path, a, b):  # the keys' bias has gradient zero, and so has that of a softmax over choices
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-2), err_msg=str(path))

    jax.tree_util.tree_map_with_path(close, gradient, oracle.tree_of(part("gradient/")))


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_states_of_both_orders_are_added_before_the_head(kind, letters, tmp_path):
    """And the language model's loss is of both orders: by hand from the states, in float64."""
    given = {"text": "a", "pair": "b", "symmetric": True, "length": 16, "auxiliary": 0.5}
    task = Regression(**given, label="y") if kind == "number" else Classification(**given, label="y", labels=("n", "m"))
    examples = [{"a": "ab", "b": "c", "y": 1}, {"a": "d", "b": "daad", "y": 0}, {"a": "a", "b": "a", "y": 1}]
    model, params = CONFIG.build(task.heads), initial(CONFIG, task)
    batch = batch_of(task, examples, letters, tmp_path, batch_size=4)
    sums = jax.jit(lambda batch: measure(model, task, params, batch, None))(batch)
    form, words = template(letters), []
    rows = [
        form.join(*(letters.encode(e[side]) for side in order))["input_ids"] for e in examples for order in ("ab", "ba")
    ]
    ids = jnp.asarray([[*row, *[0] * (16 - len(row))] for row in rows])
    hidden = np.float64(jax.jit(model.apply)({"params": params}, ids)["last_hidden_state"])
    for h, row in zip(hidden, rows, strict=True):
        x = h[: len(row) - 1] @ np.float64(params["embed"]["tokens"])[:9].T
        words += list(np.log(np.exp(x).sum(-1)) - x[np.arange(len(x)), row[1:]])
    states = [hidden[i, len(rows[i]) - 1] + hidden[i + 1, len(rows[i]) - 1] for i in (0, 2, 4)]
    x = np.stack(states) @ np.float64(params["heads"]["classification"]["kernel"])
    y = np.array([example["y"] for example in examples])
    losses = (x[:, 0] - y) ** 2 if kind == "number" else np.log(np.exp(x).sum(-1)) - x[np.arange(3), y]
    np.testing.assert_allclose(sums["loss"], (losses.sum(), 3), rtol=1e-5)
    np.testing.assert_allclose(sums["auxiliary"], (0.5 * sum(words), len(words)), rtol=1e-5)
    found = task.predict(model, params, letters, [("ab", "c"), ("d", "daad")])
    if kind == "number":
        np.testing.assert_allclose([one["score"] for one in found], x[:2, 0], rtol=1e-5)
    else:
        np.testing.assert_allclose(
            [one["scores"]["m"] for one in found], 1 / (1 + np.exp(x[:2, 0] - x[:2, 1])), rtol=1e-5
        )


def test_a_pair_is_as_alike_in_one_order_as_in_the_other(letters):
    model, params = CONFIG.build(ALIKE.heads), initial(CONFIG, ALIKE)
    pairs = [("ab", "c"), ("a" * 20, "bcd"), ("abcd" * 5, "dcba" * 5), ("a", "a")]  # some are cut
    plain = dataclasses.replace(ALIKE, symmetric=False)
    one, other, apart, back = (
        np.array([found["score"] for found in task.predict(model, params, letters, items)])
        for task in (ALIKE, plain)
        for items in (pairs, [pair[::-1] for pair in pairs])
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)
    assert (np.abs(apart - back)[:3] > 1e-3).all()


# A run that grows -----------------------------------------------------------------------------------------------------

TEXTS = [
    {"text": f"{a} and {b} make {a + b}.", "a": f"{a}", "b": f"{b}", "y": (a + b) % 3}
    for a in range(8)
    for b in range(8)
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(loop, "write_report", lambda folder, shown: None)


@pytest.fixture(scope="module", params=[20, pytest.param(128, marks=pytest.mark.slow)])
def base(tmp_path_factory, request):
    """A run whose table has rows that fill it up, and one with more words than tokens."""
    experiment = Experiment(
        model=gpt.Config(vocab_size=request.param, n_positions=32, n_layers=1, d_model=16, n_heads=2),
        task=LanguageModeling(length=16),
        data=Data(train=TEXTS),
        tokenizer=Characters(),
        optim=Optim(lr=1e-2),
        steps=2,
        batch_size=8,
    )
    return loop.train(experiment, tmp_path_factory.mktemp("base")).path


def tuned(base, task=None, **fields):
    given = {
        "task": task or Classification(text="a", pair="b", label="y", labels=("0", "1", "2"), length=16, auxiliary=0.5),
        "data": Data(train=TEXTS[:48], validation=TEXTS[48:]),
        "init": Pretrained(str(base), fresh="heads/.*", tokens=MARKS),
        "optim": Optim(lr=1e-2),
        "steps": 4,
        "batch_size": 8,
        "log_every": 0.25,
        "evaluate_every": 0.5,
        "save_every": 0.5,
    }
    return Experiment(**given | fields)


def test_only_the_rows_of_new_tokens_are_new(base, tmp_path):
    """Nothing is trained here: all is as it begins."""
    old = jaxnlp.load(base)
    run = jaxnlp.train(tuned(base, optim=Optim(freeze=".*"), steps=1), tmp_path)
    n = old.tokenizer.vocab_size
    assert run.tokenizer.vocab_size == n + 3 == 23
    assert [run.tokenizer.token(i) for i in range(n + 3)] == [*(old.tokenizer.token(i) for i in range(n)), *MARKS]
    assert run.config.vocab_size == max(old.config.vocab_size, n + 3)
    was, now = np.array(old.params["embed"]["tokens"]), np.array(run.params["embed"]["tokens"])
    np.testing.assert_array_equal(now[:n], was[:n])
    assert not np.isclose(now[n : n + 3], was[n : n + 3]).any() and np.std(now[n : n + 3]) == pytest.approx(
        0.02, rel=0.4
    )
    for part in ("blocks", "norm"):
        jax.tree.map(np.testing.assert_array_equal, run.params[part], old.params[part])
    np.testing.assert_array_equal(run.params["embed"]["positions"], old.params["embed"]["positions"])


def test_a_run_with_more_tokens_resumes_loads_and_predicts(base, tmp_path):
    experiment = tuned(base)
    whole = loop.train(experiment, tmp_path / "whole")
    assert json.loads((whole.path / "experiment.json").read_text())["init"]["tokens"] == list(MARKS)
    shutil.copytree(whole.path, tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "4.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    again = loop.train(experiment, tmp_path / "cut")
    timing = ("seconds", "tokens_per_second")
    first, second = (
        [{k: x for k, x in line.items() if k not in timing} for line in folder.read_metrics()]
        for folder in (whole, again)
    )
    assert first == second and {"loss", "lm_loss", "accuracy"} <= set(first[-1])
    run = jaxnlp.load(whole.path)
    found = run.predict([("1", "2"), {"a": "3", "b": "4"}])
    assert [set(one["scores"]) for one in found] == [{"0", "1", "2"}] * 2
    metrics = jaxnlp.evaluate(run, source=TEXTS[48:])
    assert metrics["lm_loss"] == pytest.approx(first[-1]["lm_loss"], rel=1e-5)
    assert isinstance(run.generate(["1 and"], max_new_tokens=3)[0], str)
    further = jaxnlp.train(tuned(whole.path, steps=1), tmp_path / "further")  # has them already
    assert further.tokenizer.fingerprint == run.tokenizer.fingerprint and further.config == run.config


def test_lora_trains_the_table_that_grows(base, tmp_path):
    run = jaxnlp.train(tuned(base, lora=LoRA(rank=2), steps=2), tmp_path)
    again = jaxnlp.load(tmp_path)
    assert again.predict([("1", "2")]) == run.predict([("1", "2")]) and run.tokenizer.vocab_size == 23


def test_a_table_that_fills_up_is_not_mistaken_for_words():
    value, found = {"embed": {"tokens": jnp.zeros((6, 2))}}, {"embed": {"tokens": np.ones((6, 2), np.float32)}}
    merged = merge(value, found, Pretrained("run", tokens=("x",)), n_tokens=4)
    assert merged["embed"]["tokens"][:, 0].tolist() == [1, 1, 1, 1, 0, 0]


# What cannot be -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_with_some_of_the_marks_is_refused(letters):
    some = build(Characters(), ["abcd"]).extended(MARKS[:2])
    with pytest.raises(
        ValueError, match=r"the tokenizer has no _classify_; allowed: _start_, _delimiter_, _classify_, or"
    ):
        template(some)
    assert template(build(Characters(), ["abcd"])).join([2])["input_ids"].tolist() == [2, 0]  # none: GPT's own form
    assert template(build(WordPiece(40), ["abcd"]).extended(MARKS)).start == (
        build(WordPiece(40), ["abcd"]).vocab_size,
    )


def test_tokens_that_a_tokenizer_cannot_take(letters):
    assert letters.extended(MARKS).fingerprint == letters.fingerprint and letters.extended(()) is letters
    with pytest.raises(ValueError, match="tokens: 'a' is a word of the vocabulary; allowed: names that are none"):
        letters.extended(("a",))
    pair = build(Pair(Characters(), Characters()), ["a", "b"])
    with pytest.raises(ValueError, match="for a tokenizer that is a pair of them; allowed: tokenizer.json of one"):
        pair.extended(MARKS)
    with pytest.raises(ValueError, match="init.tokens=.* with a tokenizer; allowed: None, the checkpoint's"):
        tuned("nowhere", tokenizer=Characters()).validate()


@pytest.mark.parametrize(
    "task", [dataclasses.replace(CHOICE, auxiliary=0.5), dataclasses.replace(ALIKE, auxiliary=0.5)]
)
def test_a_body_that_sees_the_words_cannot_learn_to_say_them(task):
    model = bert.Config(vocab_size=9, n_positions=16, n_layers=1, d_model=8, n_heads=2).build(())
    with pytest.raises(ValueError, match=r"task.auxiliary=0.5 with the model BERT, no decoder; allowed: 0, or a GPT"):
        task.check(model)


def test_a_set_without_labels_gives_nothing_to_learn(letters, tmp_path):
    """As GLUE's test parts have them."""
    task = Classification(labels=("x", "y"))
    with pytest.raises(ValueError, match=r"no tokens in its 3 examples, or none that has a label \(-1: unlabelled\)"):
        batch_of(task, [{"text": "ab", "label": -1}] * 3, letters, tmp_path, 2)


@pytest.mark.parametrize("value", [-0.5, float("nan")])
def test_fields_that_cannot_be_meant(value):
    with pytest.raises(ValueError, match=r"task.auxiliary=.*; allowed: 0 and more"):
        Regression(auxiliary=value)
    with pytest.raises(ValueError, match=r"task.symmetric=True with task.pair=None; allowed: a feature that holds"):
        Regression(symmetric=True)
