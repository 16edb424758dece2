"""Writes gpt_family.npz: every class of GPT, GPT-2 and GPT-Neo of transformers, small, with random weights.

    python tests/golden/gpt_family.py          where PyTorch and transformers are installed

CLASS/config and CLASS/tensors are the bytes of config.json and of model.safetensors, CLASS/outputs/SIDE/NAME what the
class gives for `inputs(CLASS, SIDE)`: ragged texts, padded on the right or the left, whose positions count real tokens.
"""

import pathlib
import tempfile

import numpy as np

B, C, T, V, D, H, L, LABELS, WINDOW = 4, 3, 10, 37, 12, 2, 4, 3, 4  # heads of 6: no power of 4 for GPT-Neo's scale
SIDES = ("right", "left")
CLASSES = (
    *("GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification"),
    *("GPT2ForTokenClassification", "GPT2ForQuestionAnswering"),
    *("OpenAIGPTLMHeadModel", "OpenAIGPTModel", "OpenAIGPTDoubleHeadsModel", "OpenAIGPTForSequenceClassification"),
    *("GPTNeoForCausalLM", "GPTNeoModel", "GPTNeoForSequenceClassification", "GPTNeoForTokenClassification"),
    "GPTNeoForQuestionAnswering",
)
PAD = 0  # an id of padding alone, by which transformers finds the last real token of a class


def inputs(name: str, side: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (2, C) if name.endswith("DoubleHeadsModel") else (B,)
    lengths = rng.integers(3, T + 1, (*shape, 1))
    lengths[0] = T
    mask = (np.arange(T) < lengths).astype(np.int64)
    mask = mask if side == "right" else mask[..., ::-1].copy()
    found = {"input_ids": np.where(mask, rng.integers(1, V, (*shape, T)), PAD), "attention_mask": mask}
    found["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)
    if len(shape) == 2:
        found["mc_token_ids"] = T - 1 - mask[..., ::-1].argmax(-1)
    return found


def flat(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of choices, masks and positions a row each: in the shape of input_ids transformers does not take them."""
    rows = {key: given[key].reshape(-1, T) for key in ("attention_mask", "position_ids")}
    return given | rows


def config_of(name: str):
    import transformers

    labels = {"pad_token_id": PAD} | ({} if name.endswith("QuestionAnswering") else {"num_labels": LABELS})
    if name.startswith("GPTNeo"):
        sizes = {"hidden_size": D, "num_layers": L, "num_heads": H, "max_position_embeddings": T + 2}
        attention = {"attention_types": [[["global", "local"], L // 2]], "window_size": WINDOW}
        return transformers.GPTNeoConfig(vocab_size=V, **sizes, **attention, **labels)
    made = transformers.GPT2Config if name.startswith("GPT2") else transformers.OpenAIGPTConfig
    return made(vocab_size=V, n_positions=T + 2, n_embd=D, n_layer=L, n_head=H, **labels)


def arrays(name: str) -> dict[str, np.ndarray]:
    import torch
    import transformers

    torch.manual_seed(0)
    config = config_of(name)
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager").eval()
    found = {}
    with torch.no_grad():
        for path, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (".ln_" in path and path.endswith("weight")))
        for side in SIDES:
            out = model(**{key: torch.tensor(x) for key, x in flat(inputs(name, side)).items()})
            found |= {f"{name}/outputs/{side}/{key}": x.numpy() for key, x in out.items() if torch.is_tensor(x)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for what, file in (("config", "config.json"), ("tensors", "model.safetensors")):
            found[f"{name}/{what}"] = np.frombuffer((pathlib.Path(folder) / file).read_bytes(), np.uint8)
    return found


if __name__ == "__main__":
    whole: dict[str, np.ndarray] = {}
    for name in CLASSES:
        whole |= arrays(name)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **whole)
