"""The main job end to end: pretrain, fine-tune from the checkpoint and from scratch, generate, and a summary.

    python experiments/studies/quickstart.py [--workdir runs/quickstart] [--steps N]

`make quickstart` is the same. It runs the experiments quickstart_pretrain and quickstart_classify; `--steps` shortens
both to N steps of the same shape.
"""

import argparse
import collections
import dataclasses
import json
import lzma
import pathlib
import runpy
import time

import jaxnlp
from jaxnlp.data.sources import open_source

EXPERIMENTS = pathlib.Path(__file__).parents[1]


def experiment(name: str, steps: int | None, **arguments):
    made = runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["experiment"](**arguments)
    return made if steps is None else dataclasses.replace(made, steps=steps)


def xz_bits_per_byte(train: list[str], validation: list[str]) -> float:
    """What xz needs for the validation texts after the training texts, in bits for each of their bytes."""
    size = lambda texts: len(lzma.compress("\n\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME))  # noqa: E731
    return 8 * (size(train + validation) - size(train)) / len("\n\n".join(validation).encode())


def last(workdir: pathlib.Path, metric: str) -> float:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line[metric] for line in lines if line["split"] == "validation"][-1]


def majority(source) -> float:
    """Accuracy of always naming the most frequent class."""
    counts = collections.Counter(source[i]["group"] for i in range(len(source)) if source[i]["group"] >= 0)
    return max(counts.values()) / counts.total()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/quickstart"))
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    began = time.perf_counter()
    folders = {name: args.workdir / name for name in ("pretrain", "classify", "scratch")}

    print("1/3  pretraining a GPT on Python's documentation")
    pretrain = experiment("quickstart_pretrain", args.steps)
    run = jaxnlp.train(pretrain, folders["pretrain"])
    for i, name in enumerate(("classify", "scratch"), start=2):
        print(f"{i}/3  classifying docstrings, {'from the checkpoint' if name == 'classify' else 'from scratch'}")
        classify = experiment(
            "quickstart_classify", args.steps, pretrained=str(folders["pretrain"]), scratch=name == "scratch"
        )
        jaxnlp.train(classify, folders[name])
    (sample,) = run.generate(["Return the"], max_new_tokens=60, temperature=0.7, top_p=0.95, seed=1)

    train, validation = (open_source(source) for source in (pretrain.data.train, pretrain.data.validation))
    texts = [[part[i]["text"] for i in range(len(part))] for part in (train, validation)]
    print(f"""
bits per byte of unseen modules' text   {last(folders["pretrain"], "bits_per_byte"):.3f}
    xz -9e, after the training text     {xz_bits_per_byte(*texts):.3f}
accuracy from the checkpoint            {last(folders["classify"], "accuracy"):.1%}
    from scratch, same steps            {last(folders["scratch"], "accuracy"):.1%}
    the most frequent class             {majority(validation):.1%}
seconds                                 {time.perf_counter() - began:.0f}

Return the{sample}

curves, samples and settings            {folders["pretrain"] / "report.html"}
loss curve                              {folders["pretrain"] / "loss.png"}
more text                               jaxnlp generate {folders["pretrain"]} --prompt "Raised when"
""")


if __name__ == "__main__":
    main()
