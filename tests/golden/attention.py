"""Writes attention.npz: torch's scaled_dot_product_attention, in float64, under masks spelled out, with its gradients.

python tests/golden/attention.py          where PyTorch is installed
"""

import pathlib

import numpy as np

B, H, T, K = 2, 2, 128, 4  # as short as jax's kernel for TPU takes
WINDOW, PREFIX, LENGTHS = 20, np.array([50, 3], np.int32), np.array([128, 77], np.int32)
SEGMENTS = np.stack([np.repeat([1, 2, 3], [30, 60, 38]), np.repeat([7, 4], [5, 123])]).astype(np.int32)


def visible() -> dict[str, np.ndarray]:
    """[B, 1, T, T] for each case, True = attend."""
    query, key = np.arange(T)[:, None], np.arange(T)
    everywhere, causal = np.ones((B, 1, T, T), bool), key <= query
    same = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])[:, None]
    return {
        "full": everywhere,
        "causal": everywhere & causal,
        "window": everywhere & causal & (key > query - WINDOW),
        "lengths": everywhere & (key < LENGTHS[:, None, None, None]),
        "segments": causal & same,
        "prefix": causal | (key < PREFIX[:, None, None, None]),
    }


def main():
    import torch

    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((B, H, T, K)).astype(np.float32) for name in ("q", "k", "v", "dout")}
    arrays = {**inputs, "window": np.int32(WINDOW), "prefix": PREFIX, "lengths": LENGTHS, "segment_ids": SEGMENTS}
    for case, mask in visible().items():
        q, k, v, dout = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs.values())
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.tensor(mask))
        for name, x in zip(("out", "dq", "dk", "dv"), (out, *torch.autograd.grad(out, (q, k, v), dout))):
            arrays[f"{case}/{name}"] = x.detach().numpy().astype(np.float32)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
