"""BERT's pretraining step and its predictions against transformers in PyTorch, in turns on one machine.

    python experiments/benchmarks/bert.py step --peer-python PEER [--size base] [--rows 16] [--length 128] [--rounds 3]
    python experiments/benchmarks/bert.py predict --peer-python PEER --model DIR --data-dir DIR [--rounds 3]

step       masked words (15 %) and next sentences of random ids, dropout 0.1, AdamW, clip 1. The peer is
           BertForPreTraining with fused attention and fused AdamW, eager and compiled, of which the better counts.
predict    the 872 sentences of SST-2's validation part as they come, texts in and labels out, by a classifier on the
           BERT in DIR (a Hugging Face directory). The peer is transformers' pipeline on the export, in batches of 32.
"""

import argparse
import os
import pathlib
import tempfile
import time

import peer

MASKED = 0.15


def our_step(args: argparse.Namespace):
    """A function that takes n steps and gives the seconds of each, compiled before the first."""
    import jax
    import numpy as np

    from jaxnlp.models import bert
    from jaxnlp.tasks.masked_lm import MaskedLM
    from jaxnlp.training.optim import Optim, optimizer
    from jaxnlp.training.step import Trainer

    config, optim = bert.VARIANTS[args.size], Optim(weight_decay=0.01)
    task = MaskedLM(length=args.length, next_sentence=True)
    rng = np.random.default_rng(0)
    batch = {}
    for name, x in task.shapes(args.rows).items():
        whole = np.issubdtype(x.dtype, np.integer)
        high = {"token_type_ids": 2, "masked_positions": args.length, "next_sentence_labels": 2}.get(name, 30522)
        batch[name] = rng.integers(0, high, x.shape, np.int32) if whole else np.ones(x.shape, np.float32)
    batch["attention_mask"] = np.ones_like(batch["attention_mask"])
    trainer = Trainer(config.build(task.heads), task, optim, optimizer(optim, 1000), 0)
    params = jax.jit(config.build(task.heads).init)(jax.random.key(0), batch["input_ids"])["params"]
    state = trainer.init(params, batch)
    step = jax.jit(trainer.train_steps, donate_argnums=0)
    batches = jax.tree.map(lambda x: x[None], batch)
    state, _ = jax.block_until_ready(step(state, batches))

    def run(n: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(n):
            state, sums = step(state, batches)
        jax.block_until_ready(sums)
        return (time.perf_counter() - start) / n

    return run


def their_step(args: argparse.Namespace):
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    sizes = {"tiny": (128, 2, 2), "mini": (256, 4, 4), "small": (512, 4, 8), "medium": (512, 8, 8)}
    sizes |= {"base": (768, 12, 12), "large": (1024, 24, 16)}
    D, L, H = sizes[args.size]
    widths = {"hidden_size": D, "num_hidden_layers": L, "num_attention_heads": H, "intermediate_size": 4 * D}
    config = transformers.BertConfig(**widths)
    B, T = args.rows, args.length
    ids = torch.randint(0, config.vocab_size, (B, T))
    labels = torch.where(torch.rand(B, T).argsort(1) < round(MASKED * T), ids, -100)
    batch = {"input_ids": ids, "labels": labels, "next_sentence_label": torch.randint(0, 2, (B,))}
    batch |= {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.randint(0, 2, (B, T))}

    def make(compiled: bool):
        torch.manual_seed(0)
        model = transformers.BertForPreTraining(config).train()
        forward = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

        def run(n: int) -> float:
            start = time.perf_counter()
            for _ in range(n):
                forward(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return (time.perf_counter() - start) / n

        run(1)
        return run

    made = {"eager": make(False)}
    if args.compiled:
        made["compiled"] = make(True)
    return lambda form, n: peak() if form == "peak" else made[form](n)


def peak() -> float:
    """GiB of memory that this process has held at most."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def step(args: argparse.Namespace) -> None:
    run = our_step(args)
    given = [f"--{name}={getattr(args, name)}" for name in ("size", "rows", "length")]
    other = peer.Peer(args.peer_python, __file__, "step", *given, *(["--compiled"] if args.compiled else []))
    forms = {"jaxnlp": lambda: run(1), "PyTorch eager": lambda: other.ask(form="eager", n=1)}
    if args.compiled:
        forms["PyTorch compiled"] = lambda: other.ask(form="compiled", n=1)
    found = peer.in_turns(forms, args.rounds)
    held = {"jaxnlp": peak(), "PyTorch": other.ask(form="peak", n=0)}
    other.close()
    best = min(seconds for name, seconds in found.items() if name != "jaxnlp")
    print(f"{args.size}, {args.rows} x {args.length}: medians of {args.rounds} rounds")
    for name, seconds in found.items():
        print(f"  {name:18}{seconds * 1e3:9.0f} ms a step {best / seconds:6.2f}x")
    print("  peak of the process " + ", ".join(f"{name} {gib:.2f} GiB" for name, gib in held.items()))


def their_predict(path: str):
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    pipeline = transformers.pipeline("text-classification", model=path, batch_size=32, device="cpu")

    def run(texts: list[str]) -> tuple[float, list[dict]]:
        start = time.perf_counter()
        found = pipeline(texts)
        return time.perf_counter() - start, found

    return run


def predict(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    import jaxnlp
    from jaxnlp.data.sources import TFDS, open_source
    from jaxnlp.run import Run
    from jaxnlp.tasks.classification import Classification

    body = jaxnlp.load(args.model)
    task = Classification(text="sentence", labels=("negative", "positive"), length=128)
    model = body.config.build(task.heads)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = {**params, **body.params, "heads": jax.tree.map(lambda x: 20 * x, params["heads"])}
    run = Run(model, params, body.tokenizer, task)
    source = open_source(TFDS("glue/sst2", "validation"), args.data_dir)
    texts, told = [source[i]["sentence"] for i in range(len(source))], {}

    def ours() -> float:
        start = time.perf_counter()
        told["jaxnlp"] = run.predict(texts)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        jaxnlp.export(run, pathlib.Path(folder) / "out")
        other = peer.Peer(args.peer_python, __file__, "predict", "--model", f"{folder}/out")

        def theirs() -> float:
            seconds, told["PyTorch"] = other.ask(texts=texts)
            return seconds

        found = peer.in_turns({"jaxnlp": ours, "PyTorch": theirs}, args.rounds)
        other.close()
    same = sum(a["label"] == b["label"] for a, b in zip(told["jaxnlp"], told["PyTorch"], strict=True))
    far = max(abs(a["score"] - b["score"]) for a, b in zip(told["jaxnlp"], told["PyTorch"], strict=True))
    for name, seconds in found.items():
        print(f"{name:8}{seconds:8.2f} s{len(texts) / seconds:9.1f} texts/s")
    ratio = found["PyTorch"] / found["jaxnlp"]
    print(f"ratio   {ratio:8.2f}   {same} of {len(texts)} labels are the same, scores to {far:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "predict"))
    parser.add_argument("--peer-python")
    parser.add_argument("--size", default="base")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--compiled", action="store_true", help="the peer's step compiled as well")
    parser.add_argument("--model")
    parser.add_argument("--data-dir")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return peer.serve(their_step(args) if args.what == "step" else their_predict(args.model))
    return {"step": step, "predict": predict}[args.what](args)


if __name__ == "__main__":
    main()
