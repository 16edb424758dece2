"""A Transformer's training step and its beam search against PyTorch's, in turns on one machine.

    python experiments/benchmarks/transformer.py step --peer-python PEER [--size tiny|base] [--dropout 0.1] [--rounds 5]
    python experiments/benchmarks/transformer.py beam --peer-python PEER --run RUN --data-dir DIR [--rounds 3]

step    32 sources and 32 targets of 32 tokens; label smoothing, Adam, clip 1. The peer is torch.nn.Transformer, eager
        and compiled, of which the better counts. The rate of matrix products is measured in the same run.
beam    test_2016 of Multi30k by a run of `translation_story --model.no-norm-first`, beam 4, texts in and texts out. The
        peer is transformers' MarianMTModel on the run's export, the sources sorted by length, 64 at a time, as here.
"""

import argparse
import math
import os
import pathlib
import statistics
import tempfile
import time

import peer

ROWS, LENGTH = 32, 32
SIZES = {  # layers of each half, width, heads, feed-forward, vocabulary; steps a round
    "tiny": ((4, 128, 4, 256, 10000), 8),
    "base": ((6, 512, 8, 2048, 37000), 1),
}


def our_step(size: str, dropout: float):
    """A function that takes n steps and gives the seconds of each, compiled before the first; and a step's FLOPs."""
    import dataclasses

    import jax
    import numpy as np

    from jaxnlp.models import transformer
    from jaxnlp.tasks.translation import Translation
    from jaxnlp.training.optim import Optim, optimizer
    from jaxnlp.training.step import Trainer

    config = dataclasses.replace(transformer.VARIANTS[size], dropout=dropout)
    optim = Optim(b2=0.98, weight_decay=0.0)
    task = Translation(length=LENGTH, label_smoothing=0.1)
    trainer = Trainer(config.build(), task, optim, optimizer(optim, 1000), 0)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (3, ROWS, LENGTH), dtype=np.int32)
    batch = dict(zip(("input_ids", "decoder_input_ids", "labels"), ids, strict=True))
    batch |= {"attention_mask": np.ones_like(ids[0]), "weights": np.ones(ids[0].shape, np.float32)}
    params = jax.jit(config.build().init)(jax.random.key(0), ids[0])["params"]
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

    return run, 2 * ROWS * LENGTH * config.flops(LENGTH)


def their_step(size: str, dropout: float):
    """The peer: torch.nn.Transformer between one table and sinusoids, with fused attention and fused Adam."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(os.cpu_count())
    (L, D, H, F_, V), _ = SIZES[size]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(V, D)
            self.body = nn.Transformer(D, H, L, L, F_, dropout=dropout, batch_first=True)
            rates = 10000.0 ** (-torch.arange(0, D, 2) / D)
            angles = torch.arange(LENGTH)[:, None] * rates
            self.register_buffer("places", torch.cat([angles.sin(), angles.cos()], 1))
            self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(LENGTH))
            self.drop = nn.Dropout(dropout)

        def forward(self, source, target, labels):
            x, y = (self.drop(self.tokens(ids) * math.sqrt(D) + self.places) for ids in (source, target))
            hidden = self.body(x, y, tgt_mask=self.causal, tgt_is_causal=True)
            logits = F.linear(hidden, self.tokens.weight)
            return F.cross_entropy(logits.view(-1, V), labels.reshape(-1), label_smoothing=0.1)

    def make(compiled: bool):
        torch.manual_seed(0)
        model = Model().train()
        forward = torch.compile(model) if compiled else model
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9, fused=True)
        batch = torch.randint(0, V, (3, ROWS, LENGTH))

        def run(n: int) -> float:
            start = time.perf_counter()
            for _ in range(n):
                forward(*batch).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return (time.perf_counter() - start) / n

        run(2)
        return run

    made = {"eager": make(False), "compiled": make(True)}

    def products(n: int) -> float:
        a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
        start = time.perf_counter()
        for _ in range(n):
            a @ b
        return 2 * 2048**3 * n / (time.perf_counter() - start)

    return lambda form, n: products(n) if form == "products" else made[form](n)


def step(args: argparse.Namespace) -> None:
    n = SIZES[args.size][1]
    run, flops = our_step(args.size, args.dropout)
    other = peer.Peer(args.peer_python, __file__, "step", "--size", args.size, "--dropout", str(args.dropout))
    ask = lambda form: lambda: other.ask(form=form, n=n)  # noqa: E731
    forms = {"jaxnlp": lambda: run(n), "PyTorch eager": ask("eager"), "PyTorch compiled": ask("compiled")}
    found = peer.in_turns(forms | {"products": lambda: other.ask(form="products", n=5)}, args.rounds)
    other.close()
    rate, best = found.pop("products"), min(found["PyTorch eager"], found["PyTorch compiled"])
    print(f"{args.size}, dropout {args.dropout}: medians of {args.rounds} rounds of {n}")
    for name, seconds in found.items():
        part = f"{flops / seconds / rate:5.0%} of the matmul rate"
        print(f"  {name:18}{seconds * 1e3:9.1f} ms a step  {part}  {best / seconds:5.2f}x")
    print(f"  matmul rate {rate / 1e9:.0f} GF/s")


def their_beam(path: str):
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    model = transformers.MarianMTModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    @torch.inference_mode()
    def run(texts: list[str], longest: int) -> tuple[float, list[str]]:
        start, found = time.perf_counter(), [""] * len(texts)
        ids = tokenizer(texts)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        for first in range(0, len(order), 64):
            part = order[first : first + 64]
            batch = tokenizer([texts[i] for i in part], padding=True, return_tensors="pt")
            width = min(2 * batch["input_ids"].shape[1], longest)
            given = {name: batch[name] for name in ("input_ids", "attention_mask")}
            options = {"num_beams": 4, "do_sample": False, "max_new_tokens": width, "length_penalty": 0.0}
            told = tokenizer.batch_decode(model.generate(**given, **options), skip_special_tokens=True)
            for i, text in zip(part, told, strict=True):
                found[i] = text
        return time.perf_counter() - start, found

    return run


def beam(args: argparse.Namespace) -> None:
    import dataclasses

    import jaxnlp
    from jaxnlp.data.sources import TFDS, open_source
    from jaxnlp.tasks.translation import scores

    run = jaxnlp.load(args.run)
    task = dataclasses.replace(run.task, n_beams=4, length_penalty=0.0)
    source = open_source(TFDS("multi30k", "test_2016"), args.data_dir)
    examples = [source[i] for i in range(len(source))]
    texts, references = ([example[name] for example in examples] for name in ("en", "de"))
    told = {}

    def ours() -> float:
        start = time.perf_counter()
        told["jaxnlp"] = [one["translation"] for one in run.predict(texts, task=task)]
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        jaxnlp.export(run, pathlib.Path(folder) / "out")
        other = peer.Peer(args.peer_python, __file__, "beam", "--run", f"{folder}/out")

        def theirs() -> float:
            seconds, told["PyTorch"] = other.ask(texts=texts, longest=task.length)
            return seconds

        seconds = peer.in_turns({"jaxnlp": ours, "PyTorch": theirs}, args.rounds)
        other.close()
    same = statistics.mean(a.strip() == b for a, b in zip(told["jaxnlp"], told["PyTorch"], strict=True))
    for name, value in seconds.items():
        bleu = scores(told[name], references)[0]["bleu"]
        print(f"{name:8}{value:8.2f} s{len(texts) / value:9.1f} sentences/s   BLEU {bleu:.2f}")
    print(f"ratio   {seconds['PyTorch'] / seconds['jaxnlp']:8.2f}   {same:.1%} of the translations are the same")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "beam"))
    parser.add_argument("--peer-python")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--run")
    parser.add_argument("--data-dir")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return peer.serve(their_step(args.size, args.dropout) if args.what == "step" else their_beam(args.run))
    return {"step": step, "beam": beam}[args.what](args)


if __name__ == "__main__":
    main()
