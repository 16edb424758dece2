"""What studies compute of their own."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnlp
from jaxnlp.data.tokenizers import Characters, build
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "studies"


@pytest.fixture(scope="module")
def scaling():
    return runpy.run_path(str(FOLDER / "scaling_laws.py"))


@pytest.fixture(scope="module")
def few_shot():
    return runpy.run_path(str(FOLDER / "few_shot_curve.py"))


def test_who_knows_nothing_has_the_vocabulary_as_perplexity_of_a_token(monkeypatch, tmp_path):
    """And of a word as often over as it has tokens, an end of line being a word."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    zero_shot = runpy.run_path(str(FOLDER / "zero_shot.py"))
    text = "the theme of theft\nthe ore\n" * 20
    monkeypatch.setitem(zero_shot["wikitext"].__globals__, "open_source", lambda source, data_dir: [{"text": text}])
    tokenizer = build(Characters(), [text])
    model = gpt.Config(vocab_size=tokenizer.vocab_size, n_positions=16, n_layers=1, d_model=8, n_heads=2).build()
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    run = jaxnlp.Run(model, params, tokenizer, LanguageModeling())
    found = zero_shot["wikitext"](run, "test", None, "DIR")
    assert found["perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-4)
    n = len(text)  # with the end, without the first
    assert found["word_perplexity"] == pytest.approx(tokenizer.vocab_size ** (n * n / (n - 1) / (20 * 8)), rel=1e-4)


@pytest.mark.parametrize(
    "law",
    [(1.69, 406.4, 0.34, 410.7, 0.28), (2.2, 60.0, 0.45, 9000.0, 0.7)],
    ids=["Hoffmann et al., 2022, eq. 10", "of a small set"],
)
def test_the_fit_recovers_the_law_that_made_the_losses(scaling, law):
    law = scaling["Law"](*law)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(4e4, 1e7, 6), np.geomspace(3e5, 5e7, 3)))
    found = scaling["fit"](N, D, law(N, D))
    np.testing.assert_allclose(found, law, rtol=1e-6)
    spoilt = law(N, D)
    spoilt[4] *= 1.3  # Huber's loss hardly minds one run that went wrong
    np.testing.assert_allclose(np.delete(scaling["fit"](N, D, spoilt)(N, D) / law(N, D), 4), 1, rtol=1e-3)


def test_the_best_size_is_the_least_loss_of_the_budget(scaling):
    law, C = scaling["Law"](1.69, 406.4, 0.34, 410.7, 0.28), 1e18
    N, D = law.best(C)
    assert pytest.approx(6 * N * D) == C
    others = np.geomspace(N / 100, N * 100, 2001)
    assert law(N, D) <= law(others, C / 6 / others).min() * (1 + 1e-9)


def test_a_run_is_the_quickstarts_at_another_width(scaling):
    experiment = scaling["experiment"](48, 300)
    assert (experiment.model.d_model, experiment.model.n_layers, experiment.model.n_heads) == (48, 3, 3)
    assert (experiment.steps, experiment.batch_size, experiment.task.length) == (300, 16, 128)
    experiment.validate()


def test_habits_hold_within_a_text_and_change_between_texts(few_shot):
    rng = np.random.default_rng(0)
    habits = []
    for _ in range(20):
        words = [line.split(" ") for line in few_shot["episode"](rng).splitlines()]
        assert len(words) == 65
        of = {name: {habit for _, other, habit in words if other == name} for _, name, _ in words}
        assert all(len(found) == 1 for found in of.values()) and len(of) in (1, 2, 4, 8)
        habits.append(of)
    assert len(set().union(*(of.get("Anna", set()) for of in habits))) > 1
    lines = few_shot["lines"](rng, 8)
    assert len({(one["month"], one["name"]) for one in lines}) == len(lines) == 96


@pytest.mark.parametrize("k", [0, 1, 4, 64])
def test_recall_is_what_drawing_gives(few_shot, k):
    """Against simulation: of 95 other lines 11 tell, and who was not told guesses among four."""
    rng = np.random.default_rng(0)
    seen = np.mean([(rng.permutation(95)[:k] < 11).any() for _ in range(4000)])
    assert few_shot["recall"](k) == pytest.approx(seen + (1 - seen) / 4, abs=0.02)
