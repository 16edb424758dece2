"""Seconds a training step, against the same GPT-2 in PyTorch, in turns on one machine.

    python experiments/benchmarks/train_step.py --peer-python .venv-parity/bin/python [--size char|124m] [--rounds 7]

Both sides: float32, AdamW (clip 1.0, decay 0.1), no dropout, the same batch each step. The peer runs eager and
compiled, and the better of the two counts. The rate of matrix products is measured in the same run: a step's is
6 N tokens (N parameters, embeddings counted once) + 12 L T D tokens / 2 for causal attention, over its seconds.
"""

import argparse
import os
import statistics
import time

from peer import Peer, serve

SIZES = {  # batch, length, layers, width, heads, vocabulary; steps a round
    "char": ((12, 64, 4, 128, 4, 65), 40),
    "124m": ((4, 256, 12, 768, 12, 50257), 1),
}


def ours(size: str, steps_per_call: int, seed: int = 0):
    """A function that takes n steps and gives the seconds of each, compiled before the first."""
    import jax
    import numpy as np

    from jaxnlp.models import gpt
    from jaxnlp.tasks.language_modeling import LanguageModeling
    from jaxnlp.training.optim import Optim, optimizer
    from jaxnlp.training.step import Trainer

    (B, T, L, D, H, V), _ = SIZES[size]
    model = gpt.GPT(
        gpt.Config(n_layers=L, d_model=D, n_heads=H, vocab_size=V, n_positions=T, dropout=0.0, attention_dropout=0.0)
    )
    optim = Optim()
    trainer = Trainer(model, LanguageModeling(length=T), optim, optimizer(optim, 1000), seed)
    ids = np.random.default_rng(0).integers(0, V, (steps_per_call, B, T + 1), dtype=np.int32)
    ones = np.ones((steps_per_call, B, T), np.float32)
    batches = {"input_ids": ids[..., :-1], "labels": ids[..., 1:], "weights": ones, "bytes": ones.sum(-1)}
    params = jax.jit(model.init)(jax.random.key(0), ids[0, :, :-1])["params"]
    state = trainer.init(params, jax.tree.map(lambda x: x[0], batches))
    step = jax.jit(trainer.train_steps, donate_argnums=0)
    state, _ = jax.block_until_ready(step(state, batches))

    def run(n: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(-(-n // steps_per_call)):
            state, sums = step(state, batches)
        jax.block_until_ready(sums)
        return (time.perf_counter() - start) / (-(-n // steps_per_call) * steps_per_call)

    return run


def theirs(size: str):
    """The peer: GPT-2 in PyTorch, as in its published form, with fused attention and fused AdamW."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(os.cpu_count())
    (B, T, L, D, H, V), _ = SIZES[size]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(D), nn.LayerNorm(D)
            self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

        def forward(self, x):
            q, k, v = (y.view(B, T, H, D // H).transpose(1, 2) for y in self.qkv(self.norm_1(x)).split(D, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
            self.blocks = nn.ModuleList([Block() for _ in range(L)])
            self.norm = nn.LayerNorm(D)
            self.register_buffer("at", torch.arange(T))

        def forward(self, ids, labels):
            x = self.tokens(ids) + self.positions(self.at)
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.view(-1, V), labels.reshape(-1))

    def make(compiled: bool):
        torch.manual_seed(0)
        model = GPT()
        forward = torch.compile(model) if compiled else model
        decay = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
        ids = torch.randint(0, V, (B, T + 1))

        def run(n: int) -> float:
            start = time.perf_counter()
            for _ in range(n):
                loss = forward(ids[:, :-1], ids[:, 1:])
                loss.backward()
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


def flops(size: str) -> float:
    (B, T, L, D, _, V), _ = SIZES[size]
    n_params = V * D + L * 12 * D * D
    return B * T * (6 * n_params + 6 * L * T * D)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--size", choices=SIZES, default="char")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(theirs(args.size))

    n = SIZES[args.size][1]
    forms = {"one step a call": ours(args.size, 1)}
    if args.size == "char":
        forms["ten steps a call"] = ours(args.size, 10)
    peer = Peer(args.peer_python, __file__, "--size", args.size) if args.peer_python else None
    if peer:
        forms |= {f"PyTorch {form}": lambda n, form=form: peer.ask(form=form, n=n) for form in ("eager", "compiled")}
    seconds = {name: [] for name in forms}
    rate = []
    for _ in range(args.rounds):
        for name, run in forms.items():
            seconds[name].append(run(n))
        if peer:
            rate.append(peer.ask(form="products", n=5))
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    best = min((m for name, m in medians.items() if name.startswith("PyTorch")), default=None)
    print(f"{args.size}: medians of {args.rounds} rounds of {n}")
    for name, m in medians.items():
        line = (
            f"  {name:18} {m * 1e3:9.1f} ms a step  [{min(seconds[name]) * 1e3:.1f} … {max(seconds[name]) * 1e3:.1f}]"
        )
        if rate:
            line += f"  {flops(args.size) / m / statistics.median(rate):5.0%} of the matmul rate"
        print(line + (f"  {best / m:5.2f}x" if best else ""))
    if rate:
        print(f"  matmul rate {statistics.median(rate) / 1e9:.0f} GF/s")


if __name__ == "__main__":
    main()
