"""Writes gpt2.npz: a small GPT2LMHeadModel of transformers with random weights, its outputs and its gradients.

    python tests/golden/gpt2.py          where PyTorch and transformers are installed

Every weight is random, biases and norms too, so that none may be left out unnoticed. Three batches:
    plain      no padding
    right      padding on the right, loss over the real tokens
    left       padding on the left, position_ids that count real tokens
"""

import pathlib

import numpy as np

SIZES = {"vocab_size": 61, "n_positions": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}


def make(**overrides):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **SIZES, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager", **overrides
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.2 + ("ln_" in name and name.endswith("weight")))
    return model


def inputs():
    """Batches as keyword arguments of both sides: ids, masks, positions and what the loss counts."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SIZES["vocab_size"], (3, 20))
    lengths = np.array([20, 13, 1])
    right = (np.arange(20) < lengths[:, None]).astype(np.int64)
    left = right[:, ::-1].copy()
    return {
        "plain": {"input_ids": ids},
        "right": {"input_ids": ids, "attention_mask": right},
        "left": {
            "input_ids": ids,
            "attention_mask": left,
            "position_ids": np.maximum(left.cumsum(1) - 1, 0),
        },
    }


def outputs(model, batch):
    """Logits, loss (mean over real next tokens) and the gradient of every parameter."""
    import torch

    model.zero_grad()
    logits = model(**{name: torch.tensor(x) for name, x in batch.items()}).logits
    ids = torch.tensor(batch["input_ids"])
    real = torch.tensor(batch.get("attention_mask", np.ones_like(batch["input_ids"]))).bool()
    counted = (real[:, 1:] & real[:, :-1]).float()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    loss = (losses * counted).sum() / counted.sum()
    loss.backward()
    gradients = {f"gradient/{name}": p.grad.numpy() for name, p in model.named_parameters()}
    return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy(), **gradients}


def params_of(state: dict[str, np.ndarray]) -> dict:
    """transformers' names as ours: {"embed": {"tokens", …}, "blocks": {"0": …}, "norm": …}."""
    get = lambda name: np.asarray(state[f"transformer.{name}"])  # noqa: E731
    D, H = SIZES["n_embd"], SIZES["n_head"]
    norm = lambda name: {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}  # noqa: E731
    dense = lambda name: {"kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias")}  # noqa: E731

    def block(i):
        qkv, out = dense(f"h.{i}.attn.c_attn"), dense(f"h.{i}.attn.c_proj")
        return {
            "norm_1": norm(f"h.{i}.ln_1"),
            "attention": {
                "qkv": {name: x.reshape(3, H, D // H, *x.shape[1:]).swapaxes(0, 1) for name, x in qkv.items()},
                "out": {"kernel": out["kernel"].reshape(D, H, D // H), "bias": out["bias"]},
            },
            "norm_2": norm(f"h.{i}.ln_2"),
            "mlp": {"in": dense(f"h.{i}.mlp.c_fc"), "out": dense(f"h.{i}.mlp.c_proj")},
        }

    tokens = get("wte.weight")
    table = np.zeros((-(-len(tokens) // 128) * 128, D), tokens.dtype)
    table[: len(tokens)] = tokens
    return {
        "embed": {"tokens": table, "positions": get("wpe.weight")},
        "blocks": {str(i): block(i) for i in range(SIZES["n_layer"])},
        "norm": norm("ln_f"),
    }


if __name__ == "__main__":
    model = make()
    arrays = {f"params/{k}": v.numpy() for k, v in model.state_dict().items() if k.startswith("transformer")}
    for name, batch in inputs().items():
        arrays |= {f"{name}/{k}": v for k, v in outputs(model, batch).items()}
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
