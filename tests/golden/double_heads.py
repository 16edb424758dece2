"""Writes double_heads.npz: a small GPT2DoubleHeadsModel with random weights, its two losses and their gradients.

    python tests/golden/double_heads.py          where PyTorch and transformers are installed

Three examples of two choices of ragged lengths, padded on the right. The loss is that of the choice plus half of the
language model's over all real tokens, as in eq. 5 of Radford et al., 2018.
"""

import pathlib
import runpy

import numpy as np

GPT2 = runpy.run_path(str(pathlib.Path(__file__).with_name("gpt2.py")))

LAMBDA = 0.5


def make():
    import torch
    import transformers

    torch.manual_seed(1)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), 0.0)
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(**GPT2["SIZES"], **rates, **ends, num_labels=1, attn_implementation="eager")
    model = transformers.GPT2DoubleHeadsModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.2 + ("ln_" in name and name.endswith("weight")))
    return model


def batch():
    rng = np.random.default_rng(1)
    lengths = np.array([[12, 7], [5, 9], [3, 12]])
    mask = (np.arange(12) < lengths[..., None]).astype(np.int32)
    ids = rng.integers(0, GPT2["SIZES"]["vocab_size"], mask.shape).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "labels": np.array([1, 0, 1], np.int32)}


def outputs(model, given):
    import torch

    ids, mask = (torch.tensor(given[name]).long() for name in ("input_ids", "attention_mask"))
    out = model(
        input_ids=ids,
        attention_mask=mask,
        mc_token_ids=mask.sum(-1) - 1,
        labels=torch.where(mask == 1, ids, -100),
        mc_labels=torch.tensor(given["labels"]).long(),
    )
    (out.mc_loss + LAMBDA * out.loss).backward()
    losses = {"loss": out.mc_loss.detach().numpy(), "lm_loss": out.loss.detach().numpy()}
    return losses | {f"gradient/{name}": p.grad.numpy() for name, p in model.named_parameters()}


def tree_of(state: dict[str, np.ndarray]) -> dict:
    """transformers' names as ours."""
    head = {
        "kernel": state["multiple_choice_head.summary.weight"].T,
        "bias": state["multiple_choice_head.summary.bias"],
    }
    return GPT2["params_of"](state) | {"heads": {"choice": head}}


if __name__ == "__main__":
    model = make()
    arrays = {f"params/{k}": v.numpy() for k, v in model.state_dict().items() if not k.startswith("lm_head")}
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays, **outputs(model, batch()))
