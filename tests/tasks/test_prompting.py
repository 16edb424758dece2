"""Prompts letter by letter, their shots, and choices scored as transformers scores them on whole texts."""

import dataclasses
import pathlib
import runpy
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnlp
from jaxnlp import metrics
from jaxnlp.data.tokenizers import ByteBPE, Characters, build
from jaxnlp.models import gpt, heads, transformer
from jaxnlp.tasks import prompting
from jaxnlp.tasks.generation import generate
from jaxnlp.tasks.lambada import LastWord
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.prompting import EXAMPLES, Prompting
from jaxnlp.training import loop
from jaxnlp.training.experiment import Data, Experiment, from_json, to_json

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "evaluation.npz")
ALPHABET = runpy.run_path(str(FOLDER / "evaluation.py"))["ALPHABET"]
CHARACTERS = build(Characters(), [ALPHABET])  # id 2 is the first
REVIEWS = [
    {"sentence": "Good.", "label": 1},
    {"sentence": "Bad.", "label": 0},
    {"sentence": "Not seen.", "label": -1},
    {"sentence": "Fine.", "label": 1},
]
REVIEW = Prompting(prompt="Review: {sentence}\nSentiment:", choices=("negative", "positive"), shots=2, pool=REVIEWS)
ROOM = 10_000


@pytest.fixture(scope="module")
def golden():
    """transformers' GPT-2 with random weights."""
    oracle, arrays = runpy.run_path(str(FOLDER / "gpt2.py")), np.load(FOLDER / "gpt2.npz")
    state = {name.removeprefix("params/"): arrays[name] for name in arrays if name.startswith("params/")}
    config = gpt.Config(n_layers=2, d_model=32, n_heads=4, vocab_size=61, n_positions=24)
    return gpt.GPT(config), jax.tree.map(jnp.asarray, oracle["params_of"](state)), CHARACTERS


@pytest.fixture(scope="module")
def wild():
    """A model whose texts wander, with byte-level ids."""
    tokenizer = build(ByteBPE(vocab_size=257), [])
    model = gpt.GPT(gpt.Config(n_layers=2, d_model=16, n_heads=2, vocab_size=257, n_positions=160))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return model, jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else 10 * leaf, params), tokenizer


def text(task, example, n_positions=ROOM) -> str:
    return task.prompted(example, task.pool, build(ByteBPE(vocab_size=257), []), n_positions).text


# ------------------------------------------------------------------------------------------------------------ prompts


def test_zero_shot_prompts_of_the_examples():
    assert text(EXAMPLES["ko_en"], {"ko": "고마워", "en": "thanks"}) == "Translate Korean to English: 고마워 =>"
    assert text(EXAMPLES["summary"], {"text": "Long.\nText.", "summary": "x"}) == "Long.\nText.\nTL;DR:"
    squad = {"title": "Ada", "context": "Ada wrote.", "question": "Who?", "answers": {"text": ["Ada", "she"]}}
    assert text(EXAMPLES["squad"], squad) == "Title: Ada\n\nBackground: Ada wrote.\n\nQ: Who?\n\nA:"
    assert EXAMPLES["squad"].references(squad) == ["Ada", "she"]


def test_shots_stand_before_the_question():
    """Two examples of the pool that have a label and are not the question, in either order."""
    shots = {"Review: Good.\nSentiment: positive\n\n", "Review: Bad.\nSentiment: negative\n\n"}
    a, b = sorted(shots)
    assert text(REVIEW, {"sentence": "Fine."}) in (
        f"{a}{b}Review: Fine.\nSentiment:",
        f"{b}{a}Review: Fine.\nSentiment:",
    )


def test_a_description_comes_first_and_the_joint_is_the_answers():
    pool = [{"ko": "안녕", "en": "hello"}]
    changes = {"prompt": "{ko} =>", "description": "Translate Korean to English:\n", "shots": 1, "pool": pool}
    task = dataclasses.replace(EXAMPLES["ko_en"], **changes)
    assert text(task, {"ko": "고마워"}) == "Translate Korean to English:\n안녕 => hello\n고마워 =>"
    assert text(dataclasses.replace(task, joint=""), {"ko": "고마워"}).endswith("안녕 =>hello\n고마워 =>")


def test_the_draw_is_a_function_of_seed_and_question():
    pool = [{"q": f"q{i}", "label": 0} for i in range(50)]
    task = Prompting(prompt="{q}", choices=("a",), joint="", separator="|", shots=4, pool=pool)
    drawn = lambda q, **changes: dataclasses.replace(task, **changes).drawn(q, pool)  # noqa: E731
    order = np.random.default_rng([3, zlib.crc32(b"new")]).permutation(50)
    assert drawn("new", seed=3) == [f"q{i}a" for i in order[:4]]
    assert drawn("new", seed=3, shots=9)[:4] == drawn("new", seed=3)  # the first of a larger draw
    assert len({tuple(drawn(q, seed=s)) for q in ("new", "other") for s in (0, 1)}) == 4
    assert all("q7a" not in drawn("q7", shots=49, seed=seed) for seed in range(3))


def test_choices_may_lie_in_the_example():
    task = Prompting(prompt="{q}", choices="options")
    assert task.options({"q": "?", "options": ["a", "b c"]}) == ("a", "b c")
    assert task.references({"q": "?", "options": ["a", "b c"], "label": 1}) == ["b c"]
    assert task.references({"q": "?", "options": ["a", "b c"], "label": -1}) == []


def test_of_shots_that_do_not_fit_the_first_go():
    """ "a: xx|b: xx|c:" has 14 tokens, and the answer " xx" three."""
    pool = [{"q": "a", "label": 0}, {"q": "b", "label": 0}]
    task = Prompting(prompt="{q}:", choices=("xx",), separator="|", shots=2, pool=pool)
    tokenizer = build(ByteBPE(vocab_size=257), [])
    whole = task.prompted({"q": "c"}, pool, tokenizer, 17)
    assert whole.shots == 2 and sorted(whole.text.split("|")) == ["a: xx", "b: xx", "c:"]
    assert task.prompted({"q": "c"}, pool, tokenizer, 16) == (whole.text[6:], 1)
    assert task.prompted({"q": "c"}, pool, tokenizer, 5) == ("c:", 0)
    with pytest.raises(ValueError, match="'c:' has 2 tokens without any shot; allowed: at most 1 of the model's 4"):
        task.prompted({"q": "c"}, pool, tokenizer, 4)
    with pytest.raises(ValueError, match="answer to 'c:' has up to 3 tokens; allowed: fewer than the model's 2 posit"):
        task.prompted({"q": "c"}, pool, tokenizer, 2)


# ------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("normalize", ["none", "token", "byte", "unconditional"])
def test_choices_score_as_transformers_whole_texts_do(golden, normalize):
    task = Prompting(prompt="{q}", choices="options", normalize=normalize, answer_context="A:")
    items = [{"q": q, "options": o} for q, o in zip(GOLDEN["prompts"].tolist(), GOLDEN["choices"].tolist())]
    found = task.predict(*golden, items)
    lengths = np.vectorize(len)(GOLDEN["choices"])  # tokens are characters; the joint is one more token, and no byte
    expected = {
        "none": GOLDEN["log_prob"],
        "token": GOLDEN["log_prob"] / (lengths + 1),
        "byte": GOLDEN["log_prob"] / lengths,
        "unconditional": GOLDEN["log_prob"] - GOLDEN["alone"],
    }[normalize]
    atol = 1e-5 * np.abs(GOLDEN["log_prob"]).max()
    np.testing.assert_allclose([one["scores"] for one in found], expected, rtol=0, atol=atol)
    assert [one["choice"] for one in found] == expected.argmax(1).tolist()
    assert [one["text"] for one in found] == [o["options"][i] for o, i in zip(items, expected.argmax(1))]
    assert len({tuple(e.argmax(1)) for e in (expected, GOLDEN["log_prob"])}) == 1 + (normalize != "none")


def test_accuracy_and_its_interval(golden):
    """Five of six with the label of the best choice, and an unlabelled one that does not count."""
    best = GOLDEN["log_prob"].argmax(1)
    labels = [int(best[0] + 1) % 3, *best[1:].tolist()]
    rows = zip(GOLDEN["prompts"].tolist(), GOLDEN["choices"].tolist(), labels)
    examples = [{"q": q, "options": options, "label": label} for q, options, label in rows]
    task = Prompting(prompt="{q}", choices="options", normalize="none")
    found = task.score(*golden, [*examples, {**examples[0], "label": -1}])
    p, n, z = 5 / 6, 6, 1.959963984540054
    centre, half = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    assert found == pytest.approx({"accuracy": p, "accuracy_low": low, "accuracy_high": high, "shots": 0.0}, rel=1e-9)
    twice = [example | {"options": [example["options"][0]] * 3, "label": 2} for example in examples]
    assert task.score(*golden, twice)["accuracy"] == 0.0  # equal texts are choices of their own: the first is taken
    assert metrics.interval(0, 10)[0] == 0.0 and metrics.interval(10, 10)[1] == 1.0


def test_an_answer_is_what_greedy_decoding_gives_up_to_the_stop(wild):
    task = Prompting(prompt="{q}", label="a", max_new_tokens=12, stop=("\n", "!"), pool=[{"q": "x", "a": "y"}], shots=1)
    items = ["hello", "A", "the quick brown fox"]
    found = task.predict(*wild, items)
    prompts = [f"x y\n\n{q}" for q in items]
    options = {"max_new_tokens": 12, "temperature": 0, "stop": ("\n", "!")}
    alone = [generate(*wild, [prompt], **options)[0].strip() for prompt in prompts]
    assert found == [{"answer": answer, "shots": 1} for answer in alone]


@pytest.mark.parametrize(
    "measure, label, expected",
    [
        ("squad", "answers/text", {"exact_match": 50.0, "f1": 75.0}),
        ("bleu", "answers/text", {"exact_match": 0.5}),
        ("rouge", "answers/text", {"exact_match": 0.5, "rouge_1": 75.0}),
    ],
)
def test_what_is_generated_is_measured(wild, monkeypatch, measure, label, expected):
    """ "the cat" is one of its references but for the article; "big dog" shares one of two words."""
    answers = {"one": " The cat\n" if measure == "squad" else " cat\n", "two": " big dog"}
    monkeypatch.setattr(prompting, "generate", lambda m, p, t, prompts, **options: [answers[q] for q in prompts])
    task = Prompting(prompt="{q}", label=label, measure=measure)
    examples = [{"q": "one", "answers": {"text": ["cat", "x"]}}, {"q": "two", "answers": {"text": ["big cat"]}}]
    found = task.score(*wild, examples)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    if measure == "squad":
        assert (found["exact_match_low"], found["exact_match_high"]) == pytest.approx(
            [100 * x for x in metrics.interval(1, 2)]
        )


# ----------------------------------------------------------------------------------------------------------- of a run


def test_a_loaded_run_is_prompted(tmp_path, monkeypatch):
    """Through predict and evaluate, with a pool from a prepared set in the folder that evaluate is given."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment = Experiment(
        model=gpt.Config(n_layers=1, d_model=16, n_heads=2, vocab_size=64, n_positions=128),
        task=LanguageModeling(length=16, prompts=()),
        data=Data(train=[{"text": f"Review: {x['sentence']}\nSentiment: positive negative"} for x in REVIEWS] * 3),
        tokenizer=Characters(),
        steps=2,
        batch_size=2,
    )
    jaxnlp.train(experiment, tmp_path / "run")
    run = jaxnlp.load(tmp_path / "run")
    opened, real = [], loop.open_source

    def opening(source, data_dir=None):
        opened.append((source, data_dir))
        return real(REVIEWS if source == "POOL" else source)

    monkeypatch.setattr(loop, "open_source", opening)
    task = dataclasses.replace(REVIEW, shots=1)
    found = jaxnlp.evaluate(run, task=dataclasses.replace(task, pool="POOL"), source=REVIEWS, data_dir="DIR")
    assert opened == [("POOL", "DIR"), (REVIEWS, "DIR")]
    assert found == task.score(run.model, run.params, run.tokenizer, REVIEWS)
    assert found["shots"] == 1.0
    predicted = run.predict(["Good."], task=task)
    assert predicted == run.predict([{"sentence": "Good."}], task=task)
    assert predicted[0]["text"] == task.choices[predicted[0]["choice"]]
    mute = dataclasses.replace(run, model=run.config.build((heads.Classification(2),)))
    for ask in (lambda: mute.predict(["Good."], task=task), lambda: jaxnlp.evaluate(mute, task=task, source=REVIEWS)):
        with pytest.raises(ValueError, match="heads .*Classification.* no language model's output to score with"):
            ask()


def test_a_task_is_plain_values(tmp_path):
    data = Data(train=REVIEWS)
    experiment = Experiment(model=gpt.Config(), task=dataclasses.replace(REVIEW, pool=None, shots=0), data=data,
                            tokenizer=Characters(), steps=1, batch_size=1)  # fmt: skip
    assert from_json(to_json(experiment)).task == experiment.task


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shots": -1}, "task.shots=-1; allowed: 0 and more"),
        ({"pool": None}, "task.shots=2 without a pool to draw from; allowed: 0, or a pool"),
        ({"choices": ()}, r"task.choices=\(\); allowed: None, a feature that holds a list, or one and more"),
        (
            {"prompt": "{sentence"},
            "task.prompt='{sentence': expected '}' before end of string; allowed: what str.format",
        ),
        ({"prompt": "{}:"}, "task.prompt='{}:': a feature without a name; allowed: what str.format reads"),
        ({"prompt": "{0}:"}, "task.prompt='.0.:': a feature without a name; allowed: what str.format reads"),
        ({"max_new_tokens": 0}, "task.max_new_tokens=0; allowed: 1 and more"),
        ({"choices": ("a", "b", "a")}, "task.choices=.'a', 'b', 'a'.; allowed: each once"),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(REVIEW, **changes)


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("normalize", "em", "none, token, byte, unconditional"),
        ("measure", "em", "squad, bleu, rouge"),
        ("shots", 1.5, "a whole number"),
    ],
)
def test_an_unknown_kind_is_refused(name, value, allowed):
    """Where no types are checked, as they are in tests."""
    task = dataclasses.replace(REVIEW)
    object.__setattr__(task, name, value)
    with pytest.raises((TypeError, ValueError), match=f"task.{name}={value!r}; allowed: {allowed}"):
        task.__post_init__()


@pytest.mark.parametrize(
    "changes, example, message",
    [
        ({"prompt": "{headline}:"}, REVIEWS[0], "{headline}:' asks for 'headline', which .* has not; allowed: label"),
        ({"prompt": "{sentence[text]}"}, REVIEWS[0], "task.prompt='.sentence.text..' of the example .*Good.*string"),
        ({"prompt": "{sentence.foo}"}, REVIEWS[0], "'.sentence.foo.' of the example .*'str' object has no attribute"),
        ({}, {"sentence": None}, "of the example .*: found None for a text; allowed: a str, or a number"),
        ({}, {"sentence": b"x"}, "of the example .*: found b'x' for a text; allowed: a str, or a number"),
        ({"prompt": "{sentence:d}"}, REVIEWS[0], "'.sentence:d.' of the example .*: Unknown format code 'd'"),
        ({"choices": "o", "shots": 0}, {"sentence": "x", "o": "ab"}, "o='ab' in the data; allowed: a list of texts"),
        ({"choices": "o", "shots": 0}, {"sentence": "x", "o": 5}, "o=5 in the data; allowed: a list of texts"),
        ({"choices": "o", "shots": 0}, {"sentence": "x", "o": [1]}, r"o=\[1\] in the data; allowed: a list of texts"),
        ({"shots": 5}, REVIEWS[0], "task.shots=5 from a pool of 4; allowed: at most 4"),
        ({"shots": 3}, REVIEWS[0], "only 2 have an answer and are not the question .*Good.*; allowed: at most 2"),
        ({"choices": ("a", " ")}, REVIEWS[0], "choice 1 of .*Good.* is empty; allowed: a text"),
        ({"choices": "options", "shots": 0}, {"sentence": "x", "options": []}, "has no choices; allowed: one and more"),
        ({"choices": "options", "shots": 0}, REVIEWS[0], "task.choices='options' is no feature of the data"),
    ],
)  # fmt: skip
def test_an_example_that_does_not_fit_is_named(wild, changes, example, message):
    task = dataclasses.replace(REVIEW, **changes)
    with pytest.raises(ValueError, match=message):
        task.predict(*wild, [example])


def test_a_label_that_is_none_is_named():
    for task in (REVIEW, dataclasses.replace(REVIEW, label="label/text", choices=None)):
        with pytest.raises(ValueError, match="task.label='label' is None in the example .*; allowed: a value"):
            task.references({"sentence": "x", "label": None})


@pytest.mark.parametrize("label", [1, b"x", ["x", 1]])
def test_an_answer_that_is_no_text_is_named(label):
    task = dataclasses.replace(REVIEW, choices=None)
    with pytest.raises(ValueError, match=r"label=.* in the data; allowed: an answer's text, or a list of such"):
        task.references({"sentence": "x", "label": label})
    assert task.references({"sentence": "x", "label": np.array(["a", "b"])}) == ["a", "b"]


@pytest.mark.parametrize("label", [2, -2, 0.5, "good", b"good"])
def test_a_label_that_is_no_choice_is_named(label):
    with pytest.raises(ValueError, match=rf"label={label!r} in the data; allowed: -1 … 1, a choice's number"):
        REVIEW.references({"sentence": "x", "label": label})


def test_nothing_to_score_and_nothing_to_train(wild):
    with pytest.raises(ValueError, match="1 examples, none with an answer; allowed: one and more"):
        REVIEW.score(*wild, [REVIEWS[2]])
    experiment = Experiment(model=wild[0].config, task=REVIEW, data=Data(train=REVIEWS), tokenizer=Characters(),
                            steps=1, batch_size=1)  # fmt: skip
    with pytest.raises(ValueError, match="task Prompting is only evaluated"):
        experiment.validate()


@pytest.mark.parametrize("task", [REVIEW, LastWord()])
def test_a_translator_is_not_prompted(task):
    model = transformer.VARIANTS["base"].build(())
    with pytest.raises(ValueError, match="the model .* is no language model; allowed with it: Translation"):
        task.predict(model, {}, CHARACTERS, ["a b"])
