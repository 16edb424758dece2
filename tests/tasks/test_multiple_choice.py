"""One of several choices: rows, the softmax over an example's own choices, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data import cache
from jaxnlp.data.batches import collate
from jaxnlp.data.tokenizers import Characters, WordPiece, build
from jaxnlp.models import bert, gpt
from jaxnlp.tasks.inputs import outputs, read, template
from jaxnlp.tasks.multiple_choice import MultipleChoice
from jaxnlp.tasks.task import Samples, Table
from jaxnlp.training.step import measure

TASK = MultipleChoice(n_choices=4, length=16, buckets=(8, 16))
CONFIG = bert.Config(vocab_size=64, n_positions=16, n_layers=1, d_model=8, n_heads=2)
EXAMPLES = [
    {"context": "a b", "choices": ["c", "d e f a", "b"], "label": 1},
    {"context": "c", "choices": ["c d", "a b"], "label": 0},
    {"context": "a a a a a a", "choices": ["b b b b", "c", "d", "e"], "label": 3},
    {"context": "b", "choices": ["a"], "label": 0},
]


@pytest.fixture(scope="module")
def pieces():
    return build(WordPiece(vocab_size=64), ["a b c d e f"] * 2)


@pytest.fixture(scope="module")
def params():
    """So large that the logits differ."""
    return initial(CONFIG)


def initial(config):
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(lambda: jax.tree.map(lambda x: 30 * x, config.build(TASK.heads).init(jax.random.key(0), ids)))()[
        "params"
    ]


def batch_of(task, examples, tokenizer, folder, batch_size):
    encode = functools.partial(task.encode, tokenizer=tokenizer)
    rows = cache.build(examples, encode, key=task.key, cache_dir=folder, progress=False)
    return task.batches(rows, tokenizer, batch_size=batch_size, seed=None)


def logits_of(model, params, tokenizer, example):
    """Each choice alone."""
    form, found = template(tokenizer), []
    for choice in example["choices"]:
        record = form.join(tokenizer.encode(example["context"]), tokenizer.encode(choice))
        found.append(outputs(model, params, read(collate([record], tokenizer.pad_id, 16))))
    return np.array([one["logits"][0] for one in found], np.float64)


def test_rows(pieces):
    record = TASK.encode(EXAMPLES[:1], pieces)[0]
    assert {name: value.shape for name, value in record.items()} == {
        "input_ids": (4, 9), "token_type_ids": (4, 9), "attention_mask": (4, 9), "label": (),
    }  # fmt: skip
    rows = [[pieces.token(i) for i in row] for row in record["input_ids"].tolist()]
    assert rows[0] == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert rows[1] == ["[CLS]", "a", "b", "[SEP]", "d", "e", "f", "a", "[SEP]"]
    assert rows[3] == ["[PAD]"] * 9
    assert record["token_type_ids"].tolist() == [[0] * 4 + [1] * n + [0] * (5 - n) for n in (2, 5, 2)] + [[0] * 9]
    assert record["attention_mask"].sum(1).tolist() == [6, 9, 6, 0]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_the_loss_is_of_a_softmax_over_the_choices_that_there_are(kind, pieces, tmp_path):
    """By the formula, of every choice read alone: absent choices and padding change nothing, and give no NaN."""
    config = CONFIG if kind == "bert" else gpt.Config(vocab_size=64, n_positions=16, n_layers=1, d_model=8, n_heads=2)
    tokenizer = pieces if kind == "bert" else build(Characters(), ["a b c d e f"])
    model, params = config.build(TASK.heads), initial(config)
    examples = EXAMPLES if kind == "bert" else [{**e, "context": e["context"][:5]} for e in EXAMPLES]
    losses, right = [], []
    for example in examples:
        logits = logits_of(model, params, tokenizer, example)
        losses.append(np.log(np.exp(logits).sum()) - logits[example["label"]])
        right.append(logits.argmax() == example["label"])
    step = jax.jit(lambda params, batch: measure(model, TASK, params, batch, None))
    made = batch_of(TASK, examples, tokenizer, tmp_path, batch_size=3)
    total = [jax.tree.map(float, step(params, made(i))) for i in range(made.steps_per_epoch)]
    np.testing.assert_allclose(sum(sums["loss"][0] for sums in total), sum(losses), rtol=1e-5)
    assert sum(sums["loss"][1] for sums in total) == 4
    assert sum(sums["accuracy"][0] for sums in total) == sum(right)
    gradient = jax.jit(jax.grad(lambda params, batch: measure(model, TASK, params, batch, None)["loss"][0]))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient(params, made(1))))


def test_batches_are_as_long_as_their_longest_choice(pieces, tmp_path):
    made = batch_of(TASK, EXAMPLES, pieces, tmp_path, batch_size=2)
    assert [made(i)["input_ids"].shape for i in range(2)] == [(2, 4, 16), (2, 4, 16)]
    short = batch_of(TASK, [EXAMPLES[1], EXAMPLES[3]], pieces, tmp_path, batch_size=2)(0)
    assert short["input_ids"].shape == (2, 4, 8) and short["attention_mask"].sum((1, 2)).tolist() == [12, 5]
    assert {name: (x.shape, x.dtype) for name, x in made(0).items() if name != "token_type_ids"} == {
        name: (x.shape, x.dtype) for name, x in TASK.shapes(2).items()
    }
    part = made(0, slice(1, 2))
    assert all(np.array_equal(part[name], made(0)[name][1:]) for name in part)


def test_padding_changes_nothing(pieces, params, tmp_path):
    model = CONFIG.build(TASK.heads)
    step = jax.jit(lambda batch: measure(model, TASK, params, batch, None)["loss"])
    short, long = (
        batch_of(dataclasses.replace(TASK, buckets=buckets), EXAMPLES[1::2], pieces, tmp_path, batch_size=2)(0)
        for buckets in ((8, 16), (16,))
    )
    other = {**long, "input_ids": np.where(long["attention_mask"] == 1, long["input_ids"], 7)}
    assert short["input_ids"].shape == (2, 4, 8) and long["input_ids"].shape == (2, 4, 16)
    np.testing.assert_allclose(step(long), step(short), rtol=1e-5)
    np.testing.assert_array_equal(step(other), step(long))


def test_any_number_of_choices_is_predicted_as_each_example_alone(pieces, params):
    model = CONFIG.build(TASK.heads)
    items = [*EXAMPLES, {"context": "f", "choices": list("abcdef")}, ("", ["", "a"])]
    found = TASK.predict(model, params, pieces, items)
    for item, one in zip(items[:5], found, strict=False):
        (alone,) = TASK.predict(model, params, pieces, [(item["context"], item["choices"])])
        np.testing.assert_allclose(alone["scores"], one["scores"], rtol=1e-5)
        logits = logits_of(model, params, pieces, item)
        np.testing.assert_allclose(one["scores"], jax.nn.softmax(np.float32(logits)), rtol=1e-4, atol=1e-6)
        assert one["choice"] == logits.argmax() and one["score"] == max(one["scores"])
        assert one["text"] == item["choices"][one["choice"]]
    assert len(found[5]["scores"]) == 2 and TASK.predict(model, params, pieces, []) == []


def test_a_question_begins_every_choice_and_choices_may_be_features(pieces, params):
    """As SWAG has them, the second sentence's beginning and four endings."""
    endings = ("ending0", "ending1")
    swag = dataclasses.replace(TASK, context="sent1", question="sent2", choices=endings)
    example = {"sent1": "a b", "sent2": "c d", "ending0": "e", "ending1": "f", "label": 1}
    plain = {"context": "a b", "choices": ["c d e", "c d f"], "label": 1}
    ours, theirs = swag.encode([example], pieces)[0], TASK.encode([plain], pieces)[0]
    assert all(np.array_equal(ours[name], theirs[name][:2] if theirs[name].ndim else theirs[name]) for name in ours)
    assert swag.texts(example) == TASK.texts(plain) == ("a b", "c d e", "c d f")
    model = CONFIG.build(TASK.heads)
    by_name, in_order = swag.predict(model, params, pieces, [example, ("a b", "c d", ["e", "f"])])
    assert by_name == in_order and by_name["text"] in ("e", "f")


def test_what_is_shown(pieces, params):
    model = CONFIG.build(TASK.heads)
    best = [one["choice"] for one in TASK.predict(model, params, pieces, EXAMPLES[:2])]
    shown = TASK.show(model, params, pieces, [{**EXAMPLES[0], "label": best[0]}, {**EXAMPLES[1], "label": 1 - best[1]}])
    assert shown[0] == Table("Scores", ("metric", "value"), (("accuracy", 0.5),))
    wrong = EXAMPLES[1]["choices"]
    right = EXAMPLES[0]["choices"][best[0]]
    texts = (("a b", f"{right}\n({right})"), ("c", f"{wrong[best[1]]}\n({wrong[1 - best[1]]})"))
    assert shown[1] == Samples("Choices (and the right ones)", texts)
    assert TASK.show(model, params, pieces, [{**EXAMPLES[0], "label": -1}]) == ()


def test_unlabelled_examples_are_left_out(pieces):
    assert len(TASK.encode([{**EXAMPLES[0], "label": -1}, EXAMPLES[1]], pieces)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "context 'a b': label=3; allowed: -1 … 2, as it has 3 choices"),
        ({"label": -2}, "context 'a b': label=-2; allowed: -1 … 2"),
        ({"label": "1"}, "context 'a b': label='1'; allowed: -1 … 2"),
        ({"label": 0.5}, "context 'a b': label=0.5; allowed: -1 … 2"),
        ({"label": None}, "context 'a b': label=None; allowed: -1 … 2"),
        ({"choices": "yes"}, "task.choices='choices' is 'yes' in an example; allowed: a list"),
        ({"choices": b"yes"}, "task.choices='choices' is b'yes' in an example; allowed: a list"),
        ({"choices": ["c", None, "d"]}, "found None among the choices; allowed: texts"),
        ({"choices": [], "label": -1}, "context 'a b': no choices; allowed: 1 and more"),
        ({"choices": list("abcde")}, "context 'a b': 5 choices; allowed: at most task.n_choices=4"),
    ],
)
def test_examples_that_cannot_be_learned(pieces, change, message):
    with pytest.raises(ValueError, match=message):
        TASK.encode([EXAMPLES[1], EXAMPLES[0] | change], pieces)


def test_a_text_is_no_list_of_choices(pieces):
    with pytest.raises(ValueError, match="task.choices='choices' is 'yes' in an example; allowed: a list"):
        TASK.predict(CONFIG.build(TASK.heads), {}, pieces, [{"context": "a", "choices": "yes"}])


@pytest.mark.parametrize("item", ["a", ("a",), ("a", "b"), ("a", "b", ["c"]), ("a", b"b"), ("a", 5), None, 5])
def test_items_that_are_no_choice(pieces, item):
    with pytest.raises(ValueError, match="to predict; allowed: context and a list of choices, or by name"):
        TASK.predict(CONFIG.build(TASK.heads), {}, pieces, [item])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_choices": 0}, "task.n_choices=0; allowed: 1 and more"),
        ({"length": 4}, "task.length=4; allowed: 5 and more"),
        ({"choices": ()}, r"task.choices=\(\); allowed: a feature that holds a list, or one and more"),
    ],
)
def test_fields_that_cannot_be_meant(fields, message):
    with pytest.raises(ValueError, match=message):
        MultipleChoice(**fields)
