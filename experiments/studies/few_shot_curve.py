"""Accuracy against the examples in the prompt, for three sizes of GPT trained alike (Brown et al., 2020, figure 1.2).

    python experiments/studies/few_shot_curve.py [--data-dir DIR] [--workdir runs/few_shot_curve] [--steps N]
        [--sizes small,medium,large] [--episodes N] [--out FILE.png]

What a person does is another in every text, so only the prompt can tell: "May Anna sings⏎June Bob reads⏎July Anna". The
models are trained on texts of this form, each with habits of its own, mixed with Python's documentation; those that are
asked about are new. So it is learned in training to learn from a prompt, on purpose, where GPT-3 came to it by itself.
With k examples drawn at random a person may not be among them: `recall` is what a reader has who misses nothing.

Each size is trained, or goes on where it was stopped; prints a row for each, and draws the picture.
"""

import argparse
import calendar
import dataclasses
import itertools
import pathlib

import jax
import numpy as np
from scipy.stats import hypergeom

import jaxnlp
from jaxnlp.data.sources import TFDS, open_source
from jaxnlp.data.tokenizers import ByteBPE
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.prompting import Prompting
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim

MONTHS = list(calendar.month_name)[1:]
NAMES = [
    *("Anna", "Bob", "Carl", "Dora", "Emil", "Frida", "Gina", "Hugo"),
    *("Iris", "Jack", "Kate", "Liam", "Mina", "Nora", "Omar", "Paul"),
]
HABITS = ("sings", "reads", "paints", "swims")
PEOPLE = (1, 2, 4, 8)  # in a text of the training; of as many as the last are the questions
SHOTS = (0, 1, 4, 16, 64)
TOKENS = 264  # of a text: 65 lines of four tokens, and its end
SIZES = {"small": (2, 32), "medium": (2, 64), "large": (4, 128)}  # layers, width
KEYS = ("accuracy_low", "accuracy_high", "accuracy")
COLOURS = {"small": "#e0a888", "medium": "#b0552f", "large": "#1f5fa8"}


def lines(rng: np.random.Generator, n_people: int) -> list[dict]:
    """All months of some people, each with one habit: {"month": "May", "name": "Anna", "label": 0}; shuffled."""
    people = rng.choice(len(NAMES), n_people, replace=False)
    habit = dict(zip(people.tolist(), rng.integers(0, len(HABITS), n_people).tolist(), strict=True))
    pairs = list(itertools.product(MONTHS, habit))
    return [{"month": pairs[i][0], "name": NAMES[pairs[i][1]], "label": habit[pairs[i][1]]}
            for i in rng.permutation(len(pairs))]  # fmt: skip


def episode(rng: np.random.Generator) -> str:
    """A text of the training: 65 lines, drawn from all that there may be of its people."""
    found = lines(rng, int(rng.choice(PEOPLE)))
    drawn = [found[i] for i in rng.integers(0, len(found), SHOTS[-1] + 1)]
    return "".join(f"{one['month']} {one['name']} {HABITS[one['label']]}\n" for one in drawn)


def texts(split: str, n_episodes: int, data_dir: str | None) -> list[dict]:
    """Episodes, and as many pages of Python's documentation, cut to about as many tokens."""
    rng, docs = np.random.default_rng([0, split == "train"]), open_source(TFDS("python_docs", split), data_dir)
    pages = [docs[i]["text"][: 3 * TOKENS] for i in rng.integers(0, len(docs), n_episodes)]
    return [{"text": text} for pair in zip((episode(rng) for _ in pages), pages, strict=True) for text in pair]


def experiment(size: str, data_dir: str | None = None) -> Experiment:
    layers, width = SIZES[size]
    return Experiment(
        model=gpt.Config(
            vocab_size=1024,
            n_positions=TOKENS,
            n_layers=layers,
            d_model=width,
            n_heads=width // 16,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        task=LanguageModeling(length=TOKENS, apart=True, prompts=("May Anna sings\nJune Anna",)),
        data=Data(train=texts("train", 5000, data_dir), validation=texts("validation", 20, data_dir)),
        tokenizer=ByteBPE(1024),
        optim=Optim(name="muon", lr=1e-2, warmup=0.05),
        steps=3000,
        batch_size=8,
    )


def questions(k: int, n_episodes: int) -> list[dict]:
    """8 of each episode that training has not seen, each with k other lines of its own, drawn as `Prompting` draws."""
    found = []
    for i in range(n_episodes):
        pool = lines(np.random.default_rng([1, i]), PEOPLE[-1])
        task = Prompting(prompt="{month} {name}", choices=HABITS, shots=k, pool=pool)
        shown = ["".join(shot + "\n" for shot in task.drawn(task.question(one), pool)) for one in pool[:8]]
        found += [{**one, "shown": text} for one, text in zip(pool, shown, strict=False)]
    return found


def curve(run: jaxnlp.Run, n_episodes: int) -> dict[int, dict[str, float]]:
    """Accuracy and its interval for each number of shots."""
    task = Prompting(prompt="{shown}{month} {name}", choices=HABITS)
    return {k: jaxnlp.evaluate(run, task=task, source=questions(k, n_episodes)) for k in SHOTS}


def recall(k: int) -> float:
    """Accuracy of who knows the habit of everybody among the shots, and guesses of the others."""
    others = len(MONTHS) * PEOPLE[-1] - 1
    unseen = hypergeom(others, len(MONTHS) - 1, k).pmf(0)
    return float(1 - unseen + unseen / len(HABITS))


def picture(results: dict[str, dict[int, dict[str, float]]], out: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(SHOTS))
    axes.plot(places, [recall(k) for k in SHOTS], color="#7a828c", linestyle="--", label="recall")
    for name, found in results.items():
        low, high, accuracy = ([one[key] for one in found.values()] for key in KEYS)
        axes.fill_between(places, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
        axes.plot(places, accuracy, marker="o", color=COLOURS[name], label=name)
    axes.axhline(1 / len(HABITS), color="#c8ccd0", linewidth=0.8)
    axes.set_xticks(places, list(map(str, SHOTS)))
    axes.set_xlabel("examples in the prompt")
    axes.set_title("Accuracy, with its 95 % interval", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/few_shot_curve"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    results = {}
    print(f"{'examples':10}{'parameters':>12}" + "".join(f"{k:>8}" for k in SHOTS))
    print(f"{'recall':10}{'':>12}" + "".join(f"{recall(k):8.3f}" for k in SHOTS), flush=True)
    for name in args.sizes.split(","):
        made = experiment(name, args.data_dir)
        if args.steps is not None:
            made = dataclasses.replace(made, steps=args.steps)
        run = jaxnlp.train(made, args.workdir / name, data_dir=args.data_dir)
        results[name] = curve(run, args.episodes)
        n_parameters = sum(x.size for x in jax.tree.leaves(run.params))
        row = "".join(f"{found['accuracy']:8.3f}" for found in results[name].values())
        print(f"{name:10}{n_parameters:12,}{row}", flush=True)
    if args.out is not None:
        picture(results, args.out)


if __name__ == "__main__":
    main()
