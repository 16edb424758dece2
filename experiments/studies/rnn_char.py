"""Characters of Shakespeare: Elman network, LSTM, GRU and GPT at about the same parameters and steps; one table.

python experiments/studies/rnn_char.py --data-dir DIR [--workdir runs/rnn_char] [--steps N]
"""

import argparse
import dataclasses
import pathlib
import runpy

import jax

import jaxnlp

EXPERIMENTS = pathlib.Path(__file__).parents[1]
FORMS = {
    **{cell: ("rnn_char_shakespeare", {"cell": cell}) for cell in ("rnn", "lstm", "gru")},
    "gpt": ("gpt_char_shakespeare", {}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/rnn_char"))
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    lines = [f"{'':6}{'parameters':>12}{'loss':>10}{'bits a byte':>13}{'tokens/s':>10}"]
    for name, (file, arguments) in FORMS.items():
        experiment = runpy.run_path(str(EXPERIMENTS / f"{file}.py"))["experiment"](**arguments)
        if args.steps is not None:
            experiment = dataclasses.replace(experiment, steps=args.steps)
        run = jaxnlp.train(experiment, args.workdir / name, data_dir=args.data_dir)
        found = jaxnlp.evaluate(run, data_dir=args.data_dir)
        size = sum(x.size for x in jax.tree.leaves(run.params))
        speeds = sorted(
            line["tokens_per_second"] for line in run_metrics(args.workdir / name) if line["split"] == "train"
        )
        lines.append(
            f"{name:6}{size:12,}{found['loss']:10.4f}{found['bits_per_byte']:13.4f}{speeds[len(speeds) // 2]:10,.0f}"
        )
    print("\n".join(lines))


def run_metrics(folder: pathlib.Path) -> list[dict]:
    import json

    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
