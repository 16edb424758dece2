"""Beam search of 1,000 sentences against a batched PyTorch beam of the same model, in turns: sentences a second.

    python experiments/benchmarks/beam.py --peer-python PEER [--sentences 1000] [--rows 100] [--tokens 20] [--rounds 3]

The model is that of seq2seq_multi30k with random weights, which both sides share: a GRU with additive attention, 8,000
words, five beams. No text ends, so that both do the same work: `--tokens` tokens of every sentence. The peer keeps the
beams of all rows in one batch, takes the best with torch.topk and reorders its state. The scores have to agree.
"""

import argparse
import os
import pathlib
import tempfile
import time

import numpy as np
import peer

WORDS, E, D, BEAMS, LENGTH = 8000, 256, 256, 5, 16


def ours(file: pathlib.Path, args: argparse.Namespace):
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from jaxnlp import decoding
    from jaxnlp.models import seq2seq

    model = seq2seq.Config(vocab_size=WORDS, d_embed=E, d_model=D, share_embeddings=True, tied=True).build()
    ids = np.random.default_rng(0).integers(0, WORDS, (args.sentences, LENGTH)).astype(np.int32)
    params = model.init(jax.random.key(0), jnp.asarray(ids[:1]))["params"]
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    np.savez(file, ids=ids, **flatten_dict(params, sep="/"))

    @jax.jit
    def search(params, ids):
        memory, cache = model.apply({"params": params}, ids, method="encode")

        def step(tokens, cache):
            out = model.apply({"params": params}, tokens[:, None], memory, cache, method="decode")
            return out["logits"][:, 0], out["cache"]

        start = jnp.zeros(len(ids), jnp.int32)
        return decoding.beam_search(step, cache, start, n_beams=BEAMS, max_new_tokens=args.tokens, end_id=-1)

    def run() -> tuple[float, float]:
        began = time.perf_counter()
        parts = [search(params, ids[i : i + args.rows]).scores for i in range(0, len(ids), args.rows)]
        total = sum(float(part.sum()) for part in parts)
        return time.perf_counter() - began, total

    return run


def theirs():
    """The peer: the equations at the head of models/seq2seq.py, in PyTorch."""
    import torch

    torch.set_num_threads(os.cpu_count())
    F = torch.nn.functional

    def gates(p, path):
        zeros = torch.zeros(2 * D)
        return {
            "weight_ih": p[f"{path}/input/kernel"].flatten(0, 1),
            "weight_hh": p[f"{path}/recurrent/kernel"].flatten(0, 1),
            "bias_ih": p[f"{path}/input/bias"].flatten(),
            "bias_hh": torch.cat([zeros, p[f"{path}/recurrent/bias"]]),
        }

    def load(module, arrays):
        module.load_state_dict(arrays)
        return module.eval()

    @torch.inference_mode()
    def run(file: str, rows: int, tokens: int) -> tuple[float, float]:
        p = {name: torch.from_numpy(x) for name, x in np.load(file).items()}
        ids, table = p["ids"].long(), p["source/tokens"][:WORDS]
        both = {
            f"{name}_l0{suffix}": x
            for direction, suffix in (("forward", ""), ("backward", "_reverse"))
            for name, x in gates(p, f"encoder/layers/0/{direction}").items()
        }
        encoder = load(torch.nn.GRU(E, D, batch_first=True, bidirectional=True), both)
        cell = load(torch.nn.GRUCell(E + 2 * D, D), gates(p, "decoder/step/layer_0"))
        linear = lambda x, path: F.linear(x, p[f"{path}/kernel"], p.get(f"{path}/bias"))  # noqa: E731
        v, bias = p["decoder/step/attention/v"], p["output_bias"][:WORDS]
        began, total = time.perf_counter(), 0.0
        for start in range(0, len(ids), rows):
            states, last = encoder(table[ids[start : start + rows]])
            B = len(states)
            h = torch.tanh(linear(torch.cat([last[0], last[1]], -1), "encoder/bridge_0_0"))
            keys = linear(states, "encoder/keys/project").repeat_interleave(BEAMS, 0)
            states, h = states.repeat_interleave(BEAMS, 0), h.repeat_interleave(BEAMS, 0)
            token, out = torch.zeros(B * BEAMS, dtype=torch.long), torch.zeros(B * BEAMS, 0, dtype=torch.long)
            score = torch.full((B, BEAMS), -torch.inf)
            score[:, 0] = 0
            for _ in range(tokens):
                y = table[token]
                query = linear(h, "decoder/step/attention/query")
                weights = torch.softmax(torch.tanh(query[:, None] + keys) @ v, -1)
                context = torch.bmm(weights[:, None], states)[:, 0]
                h = cell(torch.cat([y, context], -1), h)
                o = torch.tanh(linear(torch.cat([h, context, y], -1), "decoder/readout"))
                log_p = torch.log_softmax(F.linear(o, table, bias), -1).view(B, BEAMS, WORDS)
                score, best = (score[:, :, None] + log_p).view(B, -1).topk(BEAMS, 1)
                rows_ = (torch.arange(B)[:, None] * BEAMS + best // WORDS).view(-1)
                token = (best % WORDS).view(-1)
                h, out = h[rows_], torch.cat([out[rows_], token[:, None]], 1)
            total += float(score[:, 0].sum())
        return time.perf_counter() - began, total

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=100, help="sentences searched at a time")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return peer.serve(theirs())

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.npz"
        run, scores = ours(file, args), {}

        def noted(name, run):
            seconds, scores[name] = run()
            return seconds

        forms = {"jaxnlp": lambda: noted("jaxnlp", run)}
        other = peer.Peer(args.peer_python, __file__) if args.peer_python else None
        if other:
            asked = {"file": str(file), "rows": args.rows, "tokens": args.tokens}
            forms["PyTorch"] = lambda: noted("PyTorch", lambda: other.ask(**asked))
        seconds = peer.in_turns(forms, args.rounds)
        for name, value in seconds.items():
            rate = f"{args.sentences / value:9.1f} sentences/s"
            print(f"{name:8}{value:8.2f} s{rate}   mean score {scores[name] / args.sentences:.4f}")
        if other:
            print(f"ratio   {seconds['PyTorch'] / seconds['jaxnlp']:8.2f}")
            other.close()


if __name__ == "__main__":
    main()
