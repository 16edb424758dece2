"""Why attention exists: numbers from Korean to English with and without it, by the length of the number; one picture.

    python experiments/studies/attention_gap.py [--workdir runs/attention_gap] [--steps N] [--out FILE.png]

Trains seq2seq_numbers five times: an LSTM without attention, the same for five times as many steps, one with attention,
a GRU with, and that once more on its own tokens instead of the true ones. The test part's numbers are in no other part;
a translation counts if every letter is right. Numbers of one and two digits, of which few are unseen, count together.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import runpy

import jaxnlp
from jaxnlp.data.sources import TFDS, open_source

EXPERIMENT = pathlib.Path(__file__).parents[1] / "seq2seq_numbers.py"
FORMS = {  # arguments, and how many times the steps
    "LSTM": ({"cell": "lstm", "attention": "none"}, 1),
    "LSTM, five times as long": ({"cell": "lstm", "attention": "none"}, 5),
    "LSTM, attention": ({"cell": "lstm"}, 1),
    "GRU, attention": ({"cell": "gru"}, 1),
    "GRU, attention, own tokens": ({"cell": "gru", "teacher_forcing": False}, 1),
}
COLOURS = ("#e0a888", "#b0552f", "#9bb8d9", "#1f5fa8", "#7a828c")


def exact(run, examples) -> tuple[float, dict[int, float]]:
    """The part of the numbers that are right, of all and by the number's digits."""
    found = run.predict([example["ko"] for example in examples])
    right = collections.defaultdict(list)
    for example, best in zip(examples, found, strict=True):
        right[max(len(example["number"]), 2)].append(best["translation"] == example["en"])
    every = [one for of_length in right.values() for one in of_length]
    return sum(every) / len(every), {digits: sum(right[digits]) / len(right[digits]) for digits in sorted(right)}


def picture(results: dict[str, dict[int, float]], out: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, by_digits), colour in zip(results.items(), COLOURS, strict=True):
        axes.plot(list(by_digits), [100 * x for x in by_digits.values()], marker="o", color=colour, label=name)
    axes.set_ylim(0, 104)
    axes.set_xticks(sorted({digits for by_digits in results.values() for digits in by_digits}))
    axes.set_xlabel("digits of the number (2: or 1)")
    axes.set_title("unseen numbers translated without an error, %", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/attention_gap"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    source = open_source(TFDS("number_words", "test"))
    examples = [source[i] for i in range(len(source))]
    results, lines = {}, []
    for name, (arguments, times) in FORMS.items():
        experiment = runpy.run_path(str(EXPERIMENT))["experiment"](**arguments)
        experiment = dataclasses.replace(experiment, steps=times * (args.steps or experiment.steps))
        folder = args.workdir / name.replace(", ", "_").replace(" ", "_").lower()
        run = jaxnlp.train(experiment, folder)
        measured = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        seconds = sum(line["seconds"] for line in measured)  # of training and of evaluation
        overall, results[name] = exact(run, examples)
        by_digits = "".join(f"{value:8.1%}" for value in results[name].values())
        lines.append(f"{name:28}{overall:8.1%}{by_digits}{seconds:9.0f}")
    digits = "".join(f"{f'{n} digits':>8}" for n in next(iter(results.values())))
    print("\n".join([f"{'exact':28}{'all':>8}{digits}{'seconds':>9}", *lines]))
    if args.out is not None:
        picture(results, args.out)


if __name__ == "__main__":
    main()
