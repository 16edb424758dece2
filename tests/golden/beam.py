"""Writes beam.npz: transformers' beam search over a small random GPT-2. Needs torch and transformers.

python tests/golden/beam.py

No length penalty, since transformers divides by length^alpha. Every beam comes back, the best first.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

END, N_BEAMS, N_NEW = 5, 4, 12


def make() -> GPT2LMHeadModel:
    """The sizes of gpt2.py, so that its names serve; weights so large that the texts wander and end here and there."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_positions": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
    config = GPT2Config(bos_token_id=END, eos_token_id=END, attn_implementation="eager", **sizes)
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        mean = float("ln_" in name and "weight" in name)
        torch.nn.init.normal_(parameter, mean, std=1.0 if "wpe" in name else 0.3)
    tokens = model.transformer.wte.weight.data
    tokens *= 1.5 / tokens.norm(dim=1, keepdim=True)  # else the longest row wins always
    return model


def searched(model: GPT2LMHeadModel) -> dict[str, np.ndarray]:
    prompt = torch.tensor([[31, 41, 59], [26, 53, 58], [9, 11, 8], [2, 46, 43], [38, 32, 50], [28, 18, 30]])
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=N_BEAMS,
        num_return_sequences=N_BEAMS,
        max_new_tokens=N_NEW,
        length_penalty=0.0,
        early_stopping=False,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=END,
        return_dict_in_generate=True,
        output_scores=True,
    )
    new = out.sequences[:, prompt.shape[1] :]
    tokens = torch.nn.functional.pad(new, (0, N_NEW - new.shape[1]), value=END).reshape(len(prompt), N_BEAMS, N_NEW)
    scores = out.sequences_scores.reshape(len(prompt), N_BEAMS)
    return {
        "end_id": np.int32(END),
        "prompt": prompt.int().numpy(),
        "tokens": tokens.int().numpy(),
        "scores": scores.numpy(),
    }


if __name__ == "__main__":
    model = make()
    arrays = {f"params/{k}": v.numpy() for k, v in model.state_dict().items() if k.startswith("transformer")}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays, **searched(model))
