"""The same fine-tunings in jaxnlp and in transformers: same checkpoint, batches, schedule and seeds, in turns.

    python experiments/studies/fine_tuning.py --peer-python PEER --pretrained DIR --data-dir DIR
        [--sets sst2,nsmc,sick_entailment,sick_relatedness,wnut17,squad,comve] [--steps N] [--rows N] [--lr X]
        [--seeds 1 2 3] [--scored N] [--dropout P]

DIR is a BERT as transformers writes it. Each experiment's own batches, learning rates and initial parameters, the head
among them, go to the peer, transformers' AutoModelFor… in PyTorch, eager, with AdamW, fused; ten steps of one side
follow ten of the other. Dropout's draws are each side's own; without it (`--dropout 0`) both compute the same. What
the peer has learned is saved as its directory, and jaxnlp scores both: the task's metrics over the first N examples of
the validation part. Printed are these of each seed and by how much the losses of the first ten steps differ at most,
the scores' mean and standard deviation over the seeds, and each side's median step.
"""

import argparse
import os
import pathlib
import runpy
import shutil
import statistics
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))
import peer  # noqa: E402

TURN = 10  # steps
SETS = {  # the experiment's file and arguments, the end of the peer's class, the metric
    "sst2": ("glue", {"name": "sst2"}, "SequenceClassification", "accuracy"),
    "nsmc": ("sentences", {"name": "nsmc"}, "SequenceClassification", "accuracy"),
    "sick_entailment": ("sentences", {"name": "sick_entailment"}, "SequenceClassification", "accuracy"),
    "sick_relatedness": ("sentences", {"name": "sick_relatedness"}, "SequenceClassification", "pearson"),
    "wnut17": ("bert_tagging", {"name": "wnut17"}, "TokenClassification", "f1"),
    "squad": ("squad", {}, "QuestionAnswering", "f1"),
    "comve": ("comve", {}, "MultipleChoice", "accuracy"),
}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def batch(found, i: int):
    start = f"{i}/"
    return {name.removeprefix(start): found[name] for name in found if name.startswith(start)}


class Ours:
    """A training whose steps are taken when asked for."""

    def __init__(self, experiment, data_dir: str, dropout: float | None):
        import dataclasses

        import jax

        from jaxnlp.training import loop, parallel, pretrained

        config, self.tokenizer = pretrained.base(experiment.init)
        if dropout is not None:
            config = dataclasses.replace(config, dropout=dropout, attention_dropout=dropout, head_dropout=None)
        self.experiment = experiment = dataclasses.replace(experiment, model=config)
        batches, _ = loop.batches_for(experiment, self.tokenizer, data_dir)
        rows = slice(None)
        self.batches = {f"{i}/{k}": x for i in range(experiment.steps) for k, x in batches(i, rows).items()}
        self.trainer = loop.trainer_for(experiment)
        of_one_row = {name: x[:1] for name, x in batch(self.batches, 0).items()}
        state = jax.jit(self.trainer.begin)(jax.random.key(experiment.seed), of_one_row)
        self.state = pretrained.given(experiment.init, state, pretrained.read(experiment.init))
        self.update = parallel.Jit().update(self.trainer.train_steps)
        first = {self.batches[f"{i}/input_ids"].shape: i for i in reversed(range(experiment.steps))}
        for i in first.values():  # each width is compiled before it counts, for what a step returns too
            state, _ = self.update(jax.tree.map(jax.numpy.copy, self.state), self._batch(i))
            self.update(state, self._batch(i))

    def _batch(self, i: int):
        return {name: x[None] for name, x in batch(self.batches, i).items()}

    def train(self, start: int) -> tuple[float, list[float]]:
        import jax

        began, losses = time.perf_counter(), []
        for i in range(start, min(start + TURN, self.experiment.steps)):
            self.state, sums = self.update(self.state, self._batch(i))
            losses.append(sums["loss"])
        losses = jax.device_get(losses)
        return time.perf_counter() - began, [float(total / weight) for total, weight in losses]

    def run(self):
        from jaxnlp.run import Run

        return Run(self.trainer.model, self.state.params, self.tokenizer, self.experiment.task, self.experiment)


class Theirs:
    """The same in PyTorch."""

    def __init__(self, path: str, initial: str, kind: str, seed: int, rates: list[float]):
        import numpy as np
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(seed)
        self.batches, self.kind, self.rates = np.load(path), kind, rates
        self.model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(initial).train()
        plain = lambda name: name.endswith("bias") or "LayerNorm" in name  # noqa: E731
        groups = [
            {"params": [p for name, p in self.model.named_parameters() if plain(name) == undecayed], "weight_decay": d}
            for undecayed, d in ((False, 0.01), (True, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-6, fused=True)

    def _loss(self, i: int):
        import torch

        one = {name: torch.from_numpy(x) for name, x in batch(self.batches, i).items()}
        out, weights = self.model(**{name: one[name].long() for name in INPUTS if name in one}), one["weights"]

        def entropy(logits, labels):
            logits = logits.reshape(-1, logits.shape[-1])
            return torch.nn.functional.cross_entropy(logits, labels.reshape(-1).long(), reduction="none")

        if self.kind == "QuestionAnswering":
            ends = (entropy(out[f"{end}_logits"], one[f"{end}_positions"]) for end in ("start", "end"))
            losses = sum(ends) / 2
        elif torch.is_floating_point(one["labels"]):
            losses = torch.square(out.logits[:, 0] - one["labels"])
        else:
            losses = entropy(out.logits, one["labels"])
        return (losses * weights.reshape(-1)).sum() / weights.sum()

    def train(self, start: int) -> tuple[float, list[float]]:
        import torch

        began, losses = time.perf_counter(), []
        for i in range(start, min(start + TURN, len(self.rates))):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rates[i]
            loss = self._loss(i)
            losses.append(loss.detach())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began, [loss.item() for loss in losses]

    def save(self, path: str) -> None:
        self.model.save_pretrained(path)


def serve() -> None:
    side = {}

    def answer(what: str, **given):
        if what == "begin":
            side["theirs"] = Theirs(**given)
            return None
        return getattr(side["theirs"], what)(**given)

    peer.serve(answer)


def compare(name: str, args: argparse.Namespace, other: peer.Peer) -> None:
    import dataclasses

    import numpy as np

    import jaxnlp
    from jaxnlp.data.sources import open_source
    from jaxnlp.training.optim import schedule

    file, arguments, kind, metric = SETS[name]
    made = runpy.run_path(str(HERE.parent / f"{file}.py"))["experiment"](pretrained=args.pretrained, **arguments)
    made = dataclasses.replace(
        made,
        steps=args.steps or made.steps,
        batch_size=args.rows or made.batch_size,
        optim=dataclasses.replace(made.optim, lr=args.lr or made.optim.lr),
    )
    held_out = open_source(made.data.validation, args.data_dir)
    held_out = [held_out[i] for i in range(min(len(held_out), args.scored or len(held_out)))]
    seconds, scores = {"jaxnlp": [], "transformers": []}, {"jaxnlp": [], "transformers": []}
    for seed in args.seeds:
        ours = Ours(dataclasses.replace(made, seed=seed), args.data_dir, args.dropout)
        rates = [float(schedule(made.optim, made.steps)(i)) for i in range(made.steps)]
        with tempfile.TemporaryDirectory() as folder:
            np.savez(path := f"{folder}/batches.npz", **ours.batches)
            jaxnlp.export(ours.run(), initial := f"{folder}/initial")
            other.ask(what="begin", path=path, initial=initial, kind=kind, seed=seed, rates=rates)
            for start in range(0, made.steps, TURN):
                turn = {"jaxnlp": ours.train(start), "transformers": other.ask(what="train", start=start)}
                for side, (took, losses) in turn.items():
                    seconds[side].append(took / len(losses))
                if start == 0:
                    pairs = zip(*(losses for _, losses in turn.values()), strict=True)
                    apart = max(abs(a / b - 1) for a, b in pairs)
            other.ask(what="save", path=f"{folder}/theirs")
            for file in pathlib.Path(args.pretrained).glob("*tok*"):
                shutil.copy(file, f"{folder}/theirs")
            for side, run in (("jaxnlp", ours.run()), ("transformers", jaxnlp.load(f"{folder}/theirs"))):
                scores[side].append(jaxnlp.evaluate(run, source=held_out, task=made.task)[metric])
        line = "   ".join(f"{side} {found[-1]:.4f}" for side, found in scores.items())
        print(f"  seed {seed}   {line}   losses {apart:.0e} apart", flush=True)
    medians = {side: statistics.median(found) for side, found in seconds.items()}
    print(f"{name}: {metric} of {len(held_out):,}, {made.steps} steps of {made.batch_size}")
    for side, found in scores.items():
        spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
        print(f"  {side:13}{statistics.mean(found):.4f}{spread}   {medians[side]:.3f} s a step")
    print(f"  {medians['transformers'] / medians['jaxnlp']:.2f}x as fast", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required="--serve" not in sys.argv)
    parser.add_argument("--pretrained")
    parser.add_argument("--data-dir")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--scored", type=int)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    from jaxnlp.training.loop import keep_compiled

    keep_compiled()
    for name in args.sets.split(","):
        other = peer.Peer(args.peer_python, __file__)
        compare(name, args, other)
        other.close()


if __name__ == "__main__":
    main()
