"""What pretraining and the auxiliary loss are worth: table 5 of Radford et al., 2018, small, on four tasks.

    python experiments/studies/gpt1_table5.py --data-dir DIR [--workdir runs/gpt1_table5] [--pretrained DIR]
        [--dataset NAME --split SPLIT] [--names sick_entailment,comve] [--steps N]

Trains gpt1_pretrain (with the set NAME beside Python's documentation, where given), if there is no checkpoint, and
gpt1_finetune from it and from scratch, with the language model's loss beside the task's and without, each fine-tuning N
steps at most; or goes on where it was stopped. Prints accuracy, and of relatedness Pearson's correlation, in percent:
of the test parts, and of SST-2's validation part, as its test part has no labels.
"""

import argparse
import dataclasses
import pathlib
import runpy

import jaxnlp

FOLDER = pathlib.Path(__file__).parents[1]
TASKS = {  # the part that is measured, and by what
    "sst2": ("validation", "accuracy"),
    "sick_entailment": ("test", "accuracy"),
    "sick_relatedness": ("test", "pearson"),
    "comve": ("test", "accuracy"),
}
ROWS = {  # as the paper names them
    "with auxiliary LM": {"auxiliary": 0.5},
    "without auxiliary LM": {},
    "without pretraining": {"scratch": True, "auxiliary": 0.5},
    "without either": {"scratch": True},
}


def made(file: str, steps: int | None, **arguments):
    experiment = runpy.run_path(str(FOLDER / f"{file}.py"))["experiment"](**arguments)
    return experiment if steps is None else dataclasses.replace(experiment, steps=min(steps, experiment.steps))


def percent(name: str, folder: pathlib.Path, data_dir: str) -> float:
    """What a run has reached."""
    split, metric = TASKS[name]
    run = jaxnlp.load(folder)
    source = dataclasses.replace(run.experiment.data.validation, split=split)
    return 100 * jaxnlp.evaluate(run, source=source, data_dir=data_dir)[metric]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/gpt1_table5"))
    parser.add_argument("--pretrained")
    parser.add_argument("--dataset")
    parser.add_argument("--split", default="train")
    parser.add_argument("--names", default=",".join(TASKS))
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    if args.pretrained and args.dataset:
        parser.error("--dataset is for a new pretraining; allowed: without --pretrained")
    names = args.names.split(",")
    base = args.pretrained
    if base is None:
        base = str(args.workdir / "pretrain")
        jaxnlp.train(made("gpt1_pretrain", None, dataset=args.dataset, split=args.split), base, data_dir=args.data_dir)
    lines = [f"{'':22}{'average':>9}" + "".join(f"{name:>18}" for name in names)]
    for row, options in ROWS.items():
        found = []
        for name in names:
            folder = args.workdir / row.replace(" ", "_") / name
            experiment = made("gpt1_finetune", args.steps, name=name, pretrained=base, **options)
            jaxnlp.train(experiment, folder, data_dir=args.data_dir)
            found.append(percent(name, folder, args.data_dir))
        lines.append(f"{row:22}{sum(found) / len(found):9.1f}" + "".join(f"{value:18.1f}" for value in found))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
