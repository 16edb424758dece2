"""Writes seq2seq.npz: three sequence-to-sequence models in PyTorch with random weights, in float64; logits, gradients.

    python tests/golden/seq2seq.py          where PyTorch is installed

The encoder is torch.nn.GRU or LSTM on packed sequences, the decoder their cells. The loss is the mean cross entropy of
the real target tokens. Arrays under NAME/params/… and NAME/gradient/… are named as jaxnlp names its parameters.
"""

import pathlib

import numpy as np

B, S, T, E, D, V, W = 3, 5, 4, 5, 6, 11, 13
LENGTHS, TARGETS = [5, 3, 1], [4, 2, 3]
GATES = {"gru": 3, "lstm": 4}
MODELS = {  # name: cell, layers, both directions, attention, input feeding, reversed source, one table for all
    "bahdanau": {"cell": "gru", "n_layers": 1, "bidirectional": True, "attention": "additive"},
    "luong": {
        "cell": "lstm",
        "n_layers": 2,
        "bidirectional": False,
        "attention": "general",
        "input_feeding": True,
        "reverse_source": True,
        "share_embeddings": True,
        "tied": True,
    },
    "sutskever": {"cell": "lstm", "n_layers": 2, "bidirectional": False, "attention": "none", "reverse_source": True},
}


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids, y = rng.integers(1, V, (B, S)), rng.integers(1, V, (B, T + 1))
    mask = np.arange(S) < np.array(LENGTHS)[:, None]
    weights = (np.arange(T) < np.array(TARGETS)[:, None]).astype(np.float32)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.astype(np.int64),
        "decoder_input_ids": y[:, :-1],
        "labels": y[:, 1:],
        "weights": weights,
    }


def shapes(cell, n_layers, bidirectional, attention, share_embeddings=False, tied=False, input_feeding=False, **_):
    G, C, R = GATES[cell], D * (2 if bidirectional else 1), E if tied else D
    words = V if share_embeddings else W
    found = {"source/tokens": (V, E), "output_bias": (words,)}
    found |= {} if share_embeddings else {"target/tokens": (W, E)}
    found |= {} if tied else {"output/tokens": (W, R)}

    def add(path, width):
        found[f"{path}/input/kernel"], found[f"{path}/input/bias"] = (G, D, width), (G, D)
        found[f"{path}/recurrent/kernel"] = (G, D, D)
        if cell == "gru":
            found[f"{path}/recurrent/bias"] = (D,)

    for i in range(n_layers):
        for name in ("forward", "backward")[: 1 + bidirectional]:
            add(f"encoder/layers/{i}/{name}", C if i else E)
        fed = {"additive": C, "none": 0}.get(attention, R if input_feeding else 0)
        add(f"decoder/layers/{i}/forward" if attention == "none" else f"decoder/step/layer_{i}", D if i else E + fed)
    if bidirectional:
        found["encoder/bridge_0_0/kernel"], found["encoder/bridge_0_0/bias"] = (D, C), (D,)
    if attention != "none":
        found["encoder/keys/project/kernel"] = (D, C)
        at = "decoder/step/readout" if input_feeding else "decoder/readout"
        found[f"{at}/kernel"] = (R, D + C + (E if attention == "additive" else 0))
        found[f"{at}/bias"] = (R,)
    if attention == "additive":
        found["decoder/step/attention/query/kernel"], found["decoder/step/attention/v"] = (D, D), (D,)
        found["encoder/keys/project/bias"] = (D,)
    return found


def encoder(p, options, x):
    """States [B, S, C], and of each layer the last state of each direction."""
    import torch

    kind, both, n_layers = options["cell"].upper(), options["bidirectional"], options["n_layers"]
    model = getattr(torch.nn, kind)(E, D, n_layers, bidirectional=both, batch_first=True, dtype=torch.float64)
    weights = {}
    for i in range(n_layers):
        for name, suffix in (("forward", ""), ("backward", "_reverse"))[: 1 + both]:
            cell = lambda part: p[f"encoder/layers/{i}/{name}/{part}"]  # noqa: B023, E731
            weights[f"weight_ih_l{i}{suffix}"] = cell("input/kernel").flatten(0, 1)
            weights[f"weight_hh_l{i}{suffix}"] = cell("recurrent/kernel").flatten(0, 1)
            weights[f"bias_ih_l{i}{suffix}"] = cell("input/bias").flatten()
            zeros = torch.zeros((GATES[options["cell"]] - 1) * D, dtype=torch.float64)
            own = cell("recurrent/bias") if kind == "GRU" else zeros[:D]
            weights[f"bias_hh_l{i}{suffix}"] = torch.cat([zeros, own])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True)
    states, last = torch.func.functional_call(model, weights, (packed,))
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=S)
    last = last if kind == "LSTM" else (last,)
    return states, [tuple(part[i * (1 + both) : (i + 1) * (1 + both)] for part in last) for i in range(n_layers)]


def step(p, path, cell, x, state):
    """One step of a decoder's cell; state is (h,) or (h, c)."""
    import torch

    U, h = p[f"{path}/recurrent/kernel"], state[0]
    a = torch.einsum("ghd,bd->gbh", p[f"{path}/input/kernel"], x) + p[f"{path}/input/bias"][:, None]
    b = torch.einsum("ghd,bd->gbh", U, h)
    if cell == "gru":
        r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
        n = torch.tanh(a[2] + r * (b[2] + p[f"{path}/recurrent/bias"]))
        return ((1 - z) * n + z * h,)
    i, f, o = (torch.sigmoid(a[g] + b[g]) for g in (0, 1, 3))
    c = f * state[1] + i * torch.tanh(a[2] + b[2])
    return o * torch.tanh(c), c


def forward(p, options):
    import torch

    data = {name: torch.tensor(x) for name, x in batch().items()}
    real = data["attention_mask"].bool()
    ids = data["input_ids"].clone()
    flip = lambda x: torch.stack([torch.cat([r[:n].flip(0), r[n:]]) for r, n in zip(x, LENGTHS, strict=True)])  # noqa: E731
    reverse = options.get("reverse_source", False)
    states, last = encoder(p, options, p["source/tokens"][flip(ids) if reverse else ids])
    states = flip(states) if reverse else states
    attention, cell = options["attention"], options["cell"]
    if options["bidirectional"]:
        both = torch.cat([last[0][0][0], last[0][0][1]], -1)
        carry = [(torch.tanh(both @ p["encoder/bridge_0_0/kernel"].T + p["encoder/bridge_0_0/bias"]),)]
    else:
        carry = [tuple(part[0] for part in layer) for layer in last]
    target = p["source/tokens"] if options.get("share_embeddings") else p["target/tokens"]
    table = target if options.get("tied") else p["output/tokens"]
    keys = None
    if attention != "none":
        keys = states @ p["encoder/keys/project/kernel"].T + p.get("encoder/keys/project/bias", 0)
    fed, logits = torch.zeros(B, table.shape[1], dtype=torch.float64), []

    def attend(score):
        weights = torch.softmax(score.masked_fill(~real, -torch.inf), -1)
        return torch.einsum("bs,bsc->bc", weights, states)

    for t in range(T):
        y = target[data["decoder_input_ids"][:, t]]
        x = y
        if attention == "additive":
            query = carry[-1][0] @ p["decoder/step/attention/query/kernel"].T
            context = attend(torch.tanh(query[:, None] + keys) @ p["decoder/step/attention/v"])
            x = torch.cat([y, context], -1)
        elif attention == "general":
            x = torch.cat([y, fed], -1)
        for i in range(options["n_layers"]):
            path = f"decoder/layers/{i}/forward" if attention == "none" else f"decoder/step/layer_{i}"
            carry[i] = step(p, path, cell, x, carry[i])
            x = carry[i][0]
        out = x
        if attention == "general":
            context = attend(torch.einsum("bd,bsd->bs", x, keys))
            out = torch.tanh(
                torch.cat([x, context], -1) @ p["decoder/step/readout/kernel"].T + p["decoder/step/readout/bias"]
            )
            fed = out
        elif attention == "additive":
            parts = torch.cat([x, context, y], -1)
            out = torch.tanh(parts @ p["decoder/readout/kernel"].T + p["decoder/readout/bias"])
        logits.append(out @ table.T + p["output_bias"])
    return torch.stack(logits, 1), data


if __name__ == "__main__":
    import torch

    stored = {}
    for name, options in MODELS.items():
        rng = np.random.default_rng(1)
        arrays = {path: 0.5 * rng.standard_normal(shape) for path, shape in shapes(**options).items()}
        p = {path: torch.tensor(array, requires_grad=True) for path, array in arrays.items()}
        logits, data = forward(p, options)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), data["labels"].flatten(), reduction="none")
        loss = (losses * data["weights"].flatten()).sum() / data["weights"].sum()
        loss.backward()
        stored |= {f"{name}/params/{path}": array for path, array in arrays.items()}
        stored |= {f"{name}/gradient/{path}": x.grad.numpy() for path, x in p.items()}
        stored |= {f"{name}/logits": logits.detach().numpy(), f"{name}/loss": loss.detach().numpy()}
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **stored)
