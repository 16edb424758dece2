"""Writes adamw.npz: ten steps of torch.optim.AdamW after clip_grad_norm_, with decay on the matrix alone.

python tests/golden/adamw.py         where PyTorch is installed
"""

import pathlib

import numpy as np

STEPS, LR, DECAY, CLIP = 10, 0.05, 0.1, 1.0


def problem():
    """Initial parameters and the gradients of each step: some longer than CLIP, some shorter."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    size = np.geomspace(0.01, 3.0, STEPS)
    gradients = {
        name: (size.reshape(-1, *[1] * len(shape)) * rng.normal(size=(STEPS, *shape))).astype(np.float32)
        for name, shape in shapes.items()
    }
    return params, gradients


if __name__ == "__main__":
    import torch

    params, gradients = problem()
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    groups = [
        {"params": [tensors["kernel"]], "weight_decay": DECAY},
        {"params": [tensors["bias"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    for step in range(STEPS):
        for name, p in tensors.items():
            p.grad = torch.tensor(gradients[name][step])
        torch.nn.utils.clip_grad_norm_(tensors.values(), CLIP)
        optimizer.step()
    arrays = {name: p.detach().numpy() for name, p in tensors.items()}
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
