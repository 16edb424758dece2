"""Writes bert_family.npz: every class of BERT, RoBERTa and DistilBERT of transformers, small, with random weights.

    python tests/golden/bert_family.py          where PyTorch and transformers are installed

CLASS/config and CLASS/tensors are the bytes of config.json and of model.safetensors, CLASS/outputs/NAME what the class
gives for `inputs(CLASS)`: ragged texts, padded on the right, of BERT with both segments.
"""

import pathlib
import tempfile

import numpy as np

B, C, T, V, D, H, L, F, LABELS = 4, 3, 10, 37, 8, 2, 2, 12, 3
BERT = ("Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction", "ForSequenceClassification")
BERT += ("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
OTHERS = tuple(end for end in BERT if end not in ("ForPreTraining", "ForNextSentencePrediction"))
CLASSES = tuple(
    f"{name}{end}" for name, ends in (("Bert", BERT), ("Roberta", OTHERS), ("DistilBert", OTHERS)) for end in ends
)


def inputs(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (2, C) if name.endswith("MultipleChoice") else (B,)
    lengths = rng.integers(3, T + 1, (*shape, 1))
    lengths[0] = T
    mask = (np.arange(T) < lengths).astype(np.int64)
    pad = int(name.startswith("Roberta"))
    found = {"input_ids": np.where(mask, rng.integers(5, V, (*shape, T)), pad), "attention_mask": mask}
    if name.startswith("Bert"):
        found["token_type_ids"] = (np.arange(T) >= lengths // 2) * mask
    return found


def config_of(name: str):
    import transformers

    labels = {} if name.endswith("QuestionAnswering") else {"num_labels": LABELS}
    if name.startswith("DistilBert"):
        sizes = {"dim": D, "n_layers": L, "n_heads": H, "hidden_dim": F}
        return transformers.DistilBertConfig(vocab_size=V, max_position_embeddings=T, **sizes, **labels)
    roberta = name.startswith("Roberta")
    made = transformers.RobertaConfig if roberta else transformers.BertConfig
    return made(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        intermediate_size=F,
        max_position_embeddings=T + 2 * roberta,
        type_vocab_size=1 if roberta else 2,
        pad_token_id=int(roberta),
        **labels,
    )


def arrays(name: str) -> dict[str, np.ndarray]:
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(config_of(name)).eval()
    with torch.no_grad():
        for path, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + ("orm" in path and path.endswith("weight")))
        out = model(**{key: torch.tensor(x) for key, x in inputs(name).items()})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for what, file in (("config", "config.json"), ("tensors", "model.safetensors")):
            found[f"{name}/{what}"] = np.frombuffer((pathlib.Path(folder) / file).read_bytes(), np.uint8)
    return found | {f"{name}/outputs/{key}": x.numpy() for key, x in out.items() if torch.is_tensor(x)}


if __name__ == "__main__":
    whole: dict[str, np.ndarray] = {}
    for name in CLASSES:
        whole |= arrays(name)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **whole)
