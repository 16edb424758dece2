"""Writes transformer.npz: two small Transformers with random weights, their outputs and their gradients.

    python tests/golden/transformer.py          where PyTorch and transformers are installed

    marian      MarianMTModel of transformers: post-norm, SiLU, a bias of the logits, one table for all
    torch       torch.nn.Transformer: pre-norm, ReLU, a table for each language

Every weight is random, biases and norms too. The sources are padded on the right; the loss is the mean cross entropy of
the real target tokens. Gradients are of all parameters but a table's rows of the sinusoids, which are no parameters.
"""

import math
import pathlib

import numpy as np

B, S, T, V, W, D, H, F = 3, 9, 6, 61, 53, 16, 4, 24
LENGTHS, TARGETS = [9, 5, 1], [6, 2, 4]
LAYERS = {"marian": (3, 2), "torch": (2, 3)}
WORDS = {"marian": V, "torch": W}


def batch(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = (np.arange(S) < np.array(LENGTHS)[:, None]).astype(np.int64)
    y = rng.integers(0, WORDS[name], (B, T + 1))
    return {
        "input_ids": rng.integers(0, V, (B, S)),
        "attention_mask": mask,
        "decoder_input_ids": y[:, :-1],
        "labels": y[:, 1:],
        "weights": (np.arange(T) < np.array(TARGETS)[:, None]).astype(np.float32),
    }


def randomise(model) -> None:
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name:
                p.copy_(torch.randn_like(p) * 0.2 + ("norm" in name and name.endswith("weight")))


def marian():
    """(the model, function of a batch that gives logits and the encoder's states, its parameters by name)."""
    import torch
    import transformers

    config = transformers.MarianConfig(
        vocab_size=V,
        d_model=D,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=H,
        decoder_attention_heads=H,
        encoder_ffn_dim=F,
        decoder_ffn_dim=F,
        activation_function="swish",
        scale_embedding=True,
        dropout=0.0,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
        forced_eos_token_id=None,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.MarianMTModel(config).eval()
    randomise(model)
    model.final_logits_bias.copy_(torch.randn(1, V))
    # The table's row of the padding token has no gradient in PyTorch, and here it is a word as any other.
    for table in {model.model.shared, model.model.encoder.embed_tokens, model.model.decoder.embed_tokens}:
        table.padding_idx = None

    def run(data):
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        out = model(**{name: data[name] for name in names}, use_cache=False)
        return out.logits, out.encoder_last_hidden_state

    return model, run


def torchs():
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = torch.nn.Embedding(V, D), torch.nn.Embedding(W, D)
            self.body = torch.nn.Transformer(
                D, H, *LAYERS["torch"], F, dropout=0.0, layer_norm_eps=1e-6, batch_first=True, norm_first=True
            )

        def forward(self, data):
            padding = data["attention_mask"] == 0
            x, y = (
                table(ids) * math.sqrt(D) + torch.tensor(places(ids.shape[1]))
                for table, ids in ((self.source, data["input_ids"]), (self.target, data["decoder_input_ids"]))
            )
            causal = torch.nn.Transformer.generate_square_subsequent_mask(T)
            states = self.body.encoder(x, src_key_padding_mask=padding)
            hidden = self.body.decoder(y, states, tgt_mask=causal, memory_key_padding_mask=padding)
            return hidden @ self.target.weight.T, states

    model = Model().train()  # dropout is 0, and evaluation takes fused paths that know no gradient
    randomise(model)
    return model, model


def places(length: int) -> np.ndarray:
    """The sinusoids by the paper's formula, all sines before all cosines."""
    table = np.zeros((length, D), np.float32)
    for p in range(length):
        for i in range(D // 2):
            table[p, i], table[p, D // 2 + i] = (f(p / 10000 ** (2 * i / D)) for f in (math.sin, math.cos))
    return table


def outputs(model, run, name):
    import torch

    data = {key: torch.tensor(x) for key, x in batch(name).items()}
    logits, states = run(data)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), data["labels"], reduction="none")
    loss = (losses * data["weights"]).sum() / data["weights"].sum()
    loss.backward()
    found = {"logits": logits, "states": states, "loss": loss}
    found |= {f"params/{key}": p for key, p in model.named_parameters() if "embed_positions" not in key}
    found |= {f"gradient/{key}": p.grad for key, p in model.named_parameters() if "embed_positions" not in key}
    if name == "marian":
        found["params/final_logits_bias"] = model.final_logits_bias[0]
    return {f"{name}/{key}": x.detach().numpy() for key, x in found.items()}


def params_of(name: str, state: dict[str, np.ndarray]) -> dict:
    """The peers' names as ours."""
    K, (n_encoder, n_decoder) = D // H, LAYERS[name]
    marian = name == "marian"
    norm = lambda at: {"scale": state[f"{at}.weight"], "bias": state[f"{at}.bias"]}  # noqa: E731
    dense = lambda at: {"kernel": state[f"{at}.weight"], "bias": state[f"{at}.bias"]}  # noqa: E731

    def parts(at):
        """Queries, keys and values of one attention, [3, H, K, …]."""
        if marian:
            three = [dense(f"{at}.{part}_proj") for part in "qkv"]
            found = {kind: np.stack([one[kind] for one in three]) for kind in ("kernel", "bias")}
        else:
            found = {"kernel": state[f"{at}.in_proj_weight"], "bias": state[f"{at}.in_proj_bias"]}
        return {kind: x.reshape(3, H, K, *([D] if kind == "kernel" else [])) for kind, x in found.items()}

    def out(at):
        found = dense(f"{at}.out_proj")
        return {"kernel": found["kernel"].reshape(D, H, K), "bias": found["bias"]}

    def half(side, n_layers):
        at, norms = (f"model.{side}", ["self_attn_layer_norm"]) if marian else (f"body.{side}", ["norm1"])
        attention = "self_attn"
        if side == "decoder":
            norms.append("encoder_attn_layer_norm" if marian else "norm2")
            cross = "encoder_attn" if marian else "multihead_attn"
        norms.append("final_layer_norm" if marian else f"norm{len(norms) + 1}")
        mlp = ("fc1", "fc2") if marian else ("linear1", "linear2")
        blocks = {}
        for i in range(n_layers):
            layer = f"{at}.layers.{i}"
            blocks[str(i)] = {
                "attention": {
                    "qkv": {kind: x.swapaxes(0, 1) for kind, x in parts(f"{layer}.{attention}").items()},
                    "out": out(f"{layer}.{attention}"),
                },
                "norm_1": norm(f"{layer}.{norms[0]}"),
                "norm_2": norm(f"{layer}.{norms[-1]}"),
                "mlp": {"in": dense(f"{layer}.{mlp[0]}"), "out": dense(f"{layer}.{mlp[1]}")},
            }
            if side == "decoder":
                found = parts(f"{layer}.{cross}")
                blocks[str(i)]["cross_attention"] = {
                    "query": {kind: x[0] for kind, x in found.items()},
                    "out": out(f"{layer}.{cross}"),
                }
                blocks[str(i)]["norm_cross"] = norm(f"{layer}.{norms[1]}")
                for kind, x in found.items():
                    memory.setdefault(kind, []).append(x[1:].swapaxes(0, 1))
        return {"blocks": blocks} | ({} if marian else {"norm": norm(f"{at}.norm")})

    memory: dict[str, list] = {}
    found = {"encoder": half("encoder", n_encoder), "decoder": half("decoder", n_decoder)}
    found["memory"] = {"keys_values": {kind: np.stack(x) for kind, x in memory.items()}}
    if marian:
        found["embed"] = {"tokens": state["model.shared.weight"]}
    else:
        found |= {side: {"tokens": state[f"{side}.weight"]} for side in ("source", "target")}
    return found


if __name__ == "__main__":
    arrays = outputs(*marian(), "marian") | outputs(*torchs(), "torch")
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
