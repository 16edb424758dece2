"""Writes bert.npz: small BERTs of transformers with random weights, their outputs and the gradients of pretraining.

    python tests/golden/bert.py          where PyTorch and transformers are installed

    pretraining   BertForPreTraining: logits of words and of the next sentence, states, loss and every gradient
    others        the heads of BertForSequenceClassification, -TokenClassification, -QuestionAnswering, -MultipleChoice
                  on the same body

Every weight is random, biases and norms too. Texts are ragged, padded on the right, with both segments. The loss is the
mean over the masked positions and that of the next sentence.
"""

import pathlib

import numpy as np

B, C, T, M, V, D, H, L, F, LABELS = 4, 3, 10, 3, 61, 16, 4, 2, 24, 5
LENGTHS = [10, 7, 4, 10]
CLASSES = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    places = np.stack([np.sort(rng.choice(n, M, replace=False)) for n in LENGTHS])
    return {
        "input_ids": rng.integers(0, V, (B, T)),
        "attention_mask": (np.arange(T) < np.array(LENGTHS)[:, None]).astype(np.int64),
        "token_type_ids": (np.arange(T) >= np.array([4, 3, 2, 9])[:, None]).astype(np.int64),
        "masked_positions": places,
        "labels": rng.integers(0, V, (B, M)),
        "weights": np.float32([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]),
        "next_sentence_label": rng.integers(0, 2, B),
    }


def choices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, T + 1, (2, C, 1))
    return {
        "input_ids": rng.integers(0, V, (2, C, T)),
        "attention_mask": (np.arange(T) < lengths).astype(np.int64),
        "token_type_ids": (np.arange(T) >= lengths // 2).astype(np.int64),
    }


def make(name: str):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        intermediate_size=F,
        max_position_embeddings=T,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2 if name == "QuestionAnswering" else LABELS,
        attn_implementation="eager",
    )
    model = getattr(transformers, f"BertFor{name}")(config).eval()
    with torch.no_grad():
        for path, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.2 + ("LayerNorm" in path and path.endswith("weight")))
    # The row of the padding token has no gradient in PyTorch, and here it is a word as any other.
    model.bert.embeddings.word_embeddings.padding_idx = None
    return model


def pretraining() -> dict[str, np.ndarray]:
    import torch

    model, data = make("PreTraining"), {name: torch.tensor(x) for name, x in batch().items()}
    inputs = {name: data[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    out, body = model(**inputs), model.bert(**inputs)
    rows = torch.arange(B)[:, None]
    words = out.prediction_logits[rows, data["masked_positions"]]
    losses = torch.nn.functional.cross_entropy(words.transpose(1, 2), data["labels"], reduction="none")
    masked = (losses * data["weights"]).sum() / data["weights"].sum()
    following = torch.nn.functional.cross_entropy(out.seq_relationship_logits, data["next_sentence_label"])
    (masked + following).backward()
    found = {
        "prediction_logits": out.prediction_logits,
        "seq_relationship_logits": out.seq_relationship_logits,
        "last_hidden_state": body.last_hidden_state,
        "pooler_output": body.pooler_output,
        "loss": masked + following,
    }
    found |= {f"params/{name}": p for name, p in model.named_parameters()}
    found |= {f"gradient/{name}": p.grad for name, p in model.named_parameters()}
    return {f"pretraining/{name}": x.detach().numpy() for name, x in found.items()}


def others(name: str) -> dict[str, np.ndarray]:
    import torch

    model, data = make(name), choices() if name == "MultipleChoice" else batch()
    inputs = {key: torch.tensor(data[key]) for key in ("input_ids", "attention_mask", "token_type_ids")}
    out = model(**inputs)
    found = {key: out[key] for key in ("logits", "start_logits", "end_logits") if key in out}
    found |= {f"params/{key}": p for key, p in model.named_parameters()}
    return {f"{name}/{key}": x.detach().numpy() for key, x in found.items()}


def params_of(state: dict[str, np.ndarray], head: str = "") -> dict:
    """transformers' names as ours; `head` is our name of what lies on the body."""
    K = D // H
    norm = lambda at: {"scale": state[f"{at}.weight"], "bias": state[f"{at}.bias"]}  # noqa: E731
    product = lambda at: {"kernel": state[f"{at}.weight"], "bias": state[f"{at}.bias"]}  # noqa: E731
    dense = lambda at: {"kernel": state[f"{at}.weight"].T, "bias": state[f"{at}.bias"]}  # noqa: E731

    def filled(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros((-len(x) % 128, *x.shape[1:]), x.dtype)])

    def block(i: int) -> dict:
        at = f"bert.encoder.layer.{i}"
        three = [product(f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
        qkv = {kind: np.stack([one[kind].reshape(H, K, *one[kind].shape[1:]) for one in three], 1) for kind in three[0]}
        out = product(f"{at}.attention.output.dense")
        return {
            "attention": {"qkv": qkv, "out": {"kernel": out["kernel"].reshape(D, H, K), "bias": out["bias"]}},
            "norm_1": norm(f"{at}.attention.output.LayerNorm"),
            "mlp": {"in": product(f"{at}.intermediate.dense"), "out": product(f"{at}.output.dense")},
            "norm_2": norm(f"{at}.output.LayerNorm"),
        }

    tables = {"tokens": "word", "positions": "position", "segments": "token_type"}
    found = {
        "embed": {ours: state[f"bert.embeddings.{name}_embeddings.weight"] for ours, name in tables.items()},
        "blocks": {str(i): block(i) for i in range(L)},
    }
    found["embed"] |= {"tokens": filled(found["embed"]["tokens"]), "norm": norm("bert.embeddings.LayerNorm")}
    if "bert.pooler.dense.weight" in state:
        found["pooler"] = dense("bert.pooler.dense")
    if "cls.predictions.bias" in state:
        words = {
            "transform": dense("cls.predictions.transform.dense"),
            "norm": norm("cls.predictions.transform.LayerNorm"),
            "output_bias": filled(state["cls.predictions.bias"]),
        }
        found["heads"] = {"masked_lm": words, "next_sentence": dense("cls.seq_relationship")}
    elif head:
        found["heads"] = {head: dense("qa_outputs" if head == "span" else "classifier")}
    return found


if __name__ == "__main__":
    arrays = pretraining()
    for name in CLASSES:
        arrays |= others(name)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
