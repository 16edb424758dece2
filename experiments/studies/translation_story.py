"""The story in one table: Multi30k from English to German by an LSTM, attention, a Transformer and decoders alone.

    pip install sacremoses
    python experiments/studies/translation_story.py --data-dir DIR [--workdir runs/translation_story] [--steps N]
        [--models lstm,lstm-attention,transformer,causal,prefix] [--seeds 0 1 2] [--out FILE.png] [--table FILE.md]

Trains translation_story with each model and seed, or goes on where it was stopped, and translates test_2016. Prints
parameters, BLEU of detokenised text (sacreBLEU) and of lower-cased tokens (bleu.py), chrF, and the tokens a second and
seconds of training, of each seed and, of several, their means and standard deviations, and writes them to FILE.md;
draws BLEU by the source's length, the mean over the seeds.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import runpy
import statistics
from collections.abc import Sequence

import jax
from bleu import tokenised

import jaxnlp
from jaxnlp.data.sources import TFDS, open_source
from jaxnlp.tasks.translation import scores

EXPERIMENT = pathlib.Path(__file__).parents[1] / "translation_story.py"
COLOURS = {
    "lstm": "#e0a888",
    "lstm-attention": "#b0552f",
    "transformer": "#1f5fa8",
    "causal": "#7a828c",
    "prefix": "#2e2e2e",
}
COLUMNS = ("model", "seed", "parameters", "BLEU", "tokens", "chrF", "tokens/s", "seconds")
ROW = "{:16} | {:>4} | {:>10} | {:>6} | {:>6} | {:>6} | {:>8} | {:>7}"
LENGTHS = ((1, 8), (9, 11), (12, 14), (15, 18), (19, 40))  # words of the source


def by_length(pairs: list[tuple[str, str]], found: list[str]) -> list[float]:
    """BLEU of the pairs whose source has so many words."""
    parts = []
    for low, high in LENGTHS:
        chosen = [i for i, (source, _) in enumerate(pairs) if low <= len(source.split()) <= high]
        parts.append(scores([found[i] for i in chosen], [pairs[i][1] for i in chosen])[0]["bleu"])
    return parts


def trained(folder: pathlib.Path) -> tuple[float, float]:
    """Tokens a second, in the median, and seconds of training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] == "train"]
    speeds = sorted(line["tokens_per_second"] for line in lines)
    return speeds[len(speeds) // 2], sum(line["seconds"] for line in lines)


def picture(results: dict[str, list[float]], out: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, values in results.items():
        axes.plot(range(len(LENGTHS)), values, marker="o", color=COLOURS[name], label=name)
    axes.set_xticks(range(len(LENGTHS)), [f"{low} to {high}" for low, high in LENGTHS])
    axes.set_xlabel("words of the source")
    axes.set_title("Multi30k test2016, BLEU", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def told(lines: list[str], name: str, seed: int | str, parameters: str, figures: Sequence[float]) -> None:
    """Prints a row and adds it to the lines."""
    lines.append(
        ROW.format(name, seed, parameters, *map("{:.2f}".format, figures[:3]), *map("{:,.0f}".format, figures[3:]))
    )
    print(lines[-1], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/translation_story"))
    parser.add_argument("--models", default=",".join(COLOURS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path)
    args = parser.parse_args()
    source = open_source(TFDS("multi30k", "test_2016"), args.data_dir)
    pairs = [(example["en"], example["de"]) for example in (source[i] for i in range(len(source)))]
    texts, references = zip(*pairs, strict=True)
    results, signatures, lines = {}, [], [ROW.format(*COLUMNS), re.sub("[^|]", "-", ROW.format(*COLUMNS))]
    print(lines[0])
    for name in args.models.split(","):
        rows, parts = [], []
        for seed in args.seeds:
            experiment = runpy.run_path(str(EXPERIMENT))["experiment"](architecture=name)
            experiment = dataclasses.replace(experiment, seed=seed, steps=args.steps or experiment.steps)
            folder = args.workdir / f"{name}-{seed}"
            jaxnlp.train(experiment, folder, data_dir=args.data_dir)
            run = jaxnlp.load(folder)
            found = [best["translation"] for best in run.predict(texts)]
            measured, table = scores(found, references)
            signatures = [f"{metric}: {signature}" for metric, _, signature in table.rows if signature]
            size, (tokens, _) = sum(x.size for x in jax.tree.leaves(run.params)), tokenised(found, references, "de")
            rows.append((measured["bleu"], tokens, measured["chrf"], *trained(folder)))
            parts.append(by_length(pairs, found))
            told(lines, name, seed, f"{size:,}", rows[-1])
        if len(rows) > 1:
            for what, of in (("mean", statistics.mean), ("±", statistics.stdev)):
                told(lines, name, what, "", [of(column) for column in zip(*rows, strict=True)])
        results[name] = [statistics.mean(column) for column in zip(*parts, strict=True)]
    print("\n".join(signatures))
    if args.table is not None:
        args.table.write_text("\n".join([*lines, "", *signatures, ""]))
    if args.out is not None:
        picture(results, args.out)


if __name__ == "__main__":
    main()
