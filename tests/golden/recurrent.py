"""Writes recurrent.npz: small torch.nn.RNN, LSTM and GRU with random weights, in float64; outputs, states, gradients.

    python tests/golden/recurrent.py          where PyTorch is installed

For each cell, 1 layer in one direction, 2 layers in one, and 2 layers in both; each on whole sequences from random
first states, and on ragged lengths as packed sequences. The loss is a random weighting of outputs and last states.
"""

import pathlib

import numpy as np

B, T, D, H = 3, 5, 4, 6
LENGTHS = [5, 3, 1]
MODELS = {
    f"{kind}-{n_layers}-{'both' if both else 'one'}": (kind, n_layers, both)
    for kind in ("RNN", "RNN-relu", "LSTM", "GRU")
    for n_layers, both in ((1, False), (2, False), (2, True))
    if kind != "RNN-relu" or n_layers == 1
}


def make(kind: str, n_layers: int, both: bool):
    import torch

    torch.manual_seed(0)
    options = {"nonlinearity": "relu"} if kind == "RNN-relu" else {}
    model = getattr(torch.nn, kind.partition("-")[0])(
        D, H, n_layers, bidirectional=both, batch_first=True, dtype=torch.float64, **options
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def outputs(model, kind: str, ragged: bool) -> dict[str, np.ndarray]:
    import torch

    torch.manual_seed(1)
    rows = model.num_layers * (1 + model.bidirectional)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    leaf = lambda *shape: draw(*shape).requires_grad_()  # noqa: E731
    arrays = {"x": leaf(B, T, D), "h": leaf(rows, B, H)} | ({"c": leaf(rows, B, H)} if kind == "LSTM" else {})
    first = (arrays["h"], arrays["c"]) if kind == "LSTM" else arrays["h"]
    x = arrays["x"]
    if ragged:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True)
    y, last = model(x, first)
    if ragged:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=T)
    last = dict(zip("hc", last if kind == "LSTM" else (last,), strict=False))
    weights = {"y": draw(*y.shape)} | {name: draw(*value.shape) for name, value in last.items()}
    model.zero_grad()
    sum((weights[name] * value).sum() for name, value in {"y": y, **last}.items()).backward()
    found = arrays | {f"last/{name}": value for name, value in last.items()} | {"y": y}
    found |= {f"weights/{name}": value for name, value in weights.items()}
    found |= {f"gradient/{name}": value.grad for name, value in arrays.items()}
    found |= {f"gradient/params/{name}": p.grad for name, p in model.named_parameters()}
    return {name: value.detach().numpy() for name, value in found.items()}


if __name__ == "__main__":
    stored = {}
    for name, (kind, n_layers, both) in MODELS.items():
        model = make(kind, n_layers, both)
        stored |= {f"{name}/params/{k}": p.detach().numpy() for k, p in model.named_parameters()}
        for form in ("whole", "ragged"):
            stored |= {f"{name}/{form}/{k}": v for k, v in outputs(model, kind, form == "ragged").items()}
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **stored)
