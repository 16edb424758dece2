"""Writes losses.npz: torch's cross entropy of a linear layer, in float64, with its gradients.

    python tests/golden/losses.py          where PyTorch is installed

Cases: plain; smooth (label_smoothing); z (PaLM's z-loss beside it); all (smoothing and z-loss with a bias).
"""

import pathlib

import numpy as np

B, T, D, V = 3, 7, 5, 11
SHAPES = {"hidden": (B, T, D), "table": (V, D), "bias": (V,)}
CASES = {"plain": (0.0, 0.0, False), "smooth": (0.1, 0.0, False), "z": (0.0, 1e-2, False), "all": (0.2, 1e-2, True)}


def main():
    import torch

    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays["labels"] = rng.integers(0, V, (B, T)).astype(np.int32)
    arrays["weights"] = (rng.random((B, T)) * (rng.random((B, T)) < 0.7)).astype(np.float32)
    labels, weights = (
        torch.tensor(arrays["labels"]).long().flatten(),
        torch.tensor(arrays["weights"]).double().flatten(),
    )
    for case, (smoothing, z_loss, use_bias) in CASES.items():
        hidden, table, bias = (torch.tensor(arrays[name]).double().requires_grad_() for name in SHAPES)
        logits = hidden.flatten(0, 1) @ table.T + bias * use_bias
        losses = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        loss = (weights * (losses + z_loss * logits.logsumexp(-1) ** 2)).sum()
        arrays[f"{case}/loss"] = np.float32(loss.item())
        for name, gradient in zip(SHAPES, torch.autograd.grad(loss, (hidden, table, bias))):
            arrays[f"{case}/{name}"] = gradient.numpy().astype(np.float32)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
