"""Makes decoding.npz: what transformers' logits processors and `generate` give. Needs torch and transformers.

python tests/golden/decoding.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def processors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal((4, 101))).astype(np.float32)
    tokens = random.integers(0, 101, (4, 12))
    chains = {
        "temperature": [TemperatureLogitsWarper(0.7)],
        "top_k": [TopKLogitsWarper(5)],
        "top_k_all": [TopKLogitsWarper(1000)],
        "top_p": [TopPLogitsWarper(0.8)],
        "top_p_small": [TopPLogitsWarper(1e-6)],
        "repetition_penalty": [RepetitionPenaltyLogitsProcessor(1.3)],
        "all": [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(30),
            TopPLogitsWarper(0.9),
        ],
    }
    words = [[3], [97], [*tokens[0, -1:], 5], [*tokens[1, -3:], 6], [*tokens[2, -6:], 7], [*tokens[3, -3:-1], 8]]
    chains["banned"] = [NoBadWordsLogitsProcessor([[int(i) for i in word] for word in words])]
    out = {"logits": logits, "tokens": tokens.astype(np.int32)}
    out |= {f"words/{i}": np.array(word, np.int32) for i, word in enumerate(words)}
    for name, chain in chains.items():
        out[name] = LogitsProcessorList(chain)(torch.tensor(tokens), torch.tensor(logits)).numpy()
    return out


def generated() -> dict[str, np.ndarray]:
    """A small GPT-2 under our parameters' names, its weights so large that its texts wander, and its greedy texts."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=48, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(
            parameter, mean=float("ln_" in name and "weight" in name), std=1.0 if "wpe" in name else 0.3
        )
    tokens = model.transformer.wte.weight.data
    tokens /= tokens.norm(dim=1, keepdim=True)  # else the longest row wins always
    state = {name.removeprefix("transformer."): value.numpy() for name, value in model.state_dict().items()}
    params = {"embed/tokens": np.pad(state["wte.weight"], ((0, 64), (0, 0))), "embed/positions": state["wpe.weight"]}
    for source, target in {"ln_f": "norm", "h.{}.ln_1": "blocks/{}/norm_1", "h.{}.ln_2": "blocks/{}/norm_2"}.items():
        for i in range(2):
            for ours, theirs in (("scale", "weight"), ("bias", "bias")):
                params[f"{target.format(i)}/{ours}"] = state[f"{source.format(i)}.{theirs}"]
    shapes = {
        "h.{}.attn.c_attn": ("blocks/{}/attention/qkv", (3, 2, 8, 16), (3, 2, 8)),
        "h.{}.attn.c_proj": ("blocks/{}/attention/out", (16, 2, 8), (16,)),
        "h.{}.mlp.c_fc": ("blocks/{}/mlp/in", (64, 16), (64,)),
        "h.{}.mlp.c_proj": ("blocks/{}/mlp/out", (16, 64), (16,)),
    }
    for source, (target, kernel, bias) in shapes.items():
        for i in range(2):
            params[f"{target.format(i)}/kernel"] = state[f"{source.format(i)}.weight"].T.reshape(kernel)
            params[f"{target.format(i)}/bias"] = state[f"{source.format(i)}.bias"].reshape(bias)
    for i in range(2):
        for name in ("kernel", "bias"):  # heads first
            path = f"blocks/{i}/attention/qkv/{name}"
            params[path] = params[path].swapaxes(0, 1)

    prompt = torch.tensor([[31, 41, 59, 26, 53, 58, 9, 7], [0, 0, 0, 27, 18, 28, 18, 28], [0, 0, 0, 0, 0, 0, 0, 11]])
    mask = torch.tensor([[1] * 8, [0] * 3 + [1] * 5, [0] * 7 + [1]])
    common = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    greedy = model.generate(prompt, attention_mask=mask, **common)[:, 8:]
    penalised = model.generate(prompt[:1], attention_mask=mask[:1], repetition_penalty=1.5, **common)[:, 8:]
    first, second, third = greedy[0, 0], greedy[1, 2], greedy[1, 3]
    banned = model.generate(
        prompt, attention_mask=mask, bad_words_ids=[[int(first)], [int(second), int(third)]], **common
    )[:, 8:]
    ends = common | {"eos_token_id": 0, "num_beams": 4, "length_penalty": 0.0, "early_stopping": False}
    beams = model.generate(prompt, attention_mask=mask, **ends)[:, 8:]
    beams = torch.nn.functional.pad(beams, (0, 24 - beams.shape[1]))
    texts = {"prompt": prompt, "mask": mask, "greedy": greedy, "penalised": penalised, "banned": banned, "beams": beams}

    whole = torch.cat(
        [prompt[:1], greedy[:1, :20], torch.arange(20)[None] * 7 % 64], 1
    )  # as many as there are positions
    log_p = torch.log_softmax(model(whole).logits[0], -1)
    texts |= {"scored": whole, "likeliest": log_p[:-1].argmax(1) == whole[0, 1:]}
    arrays = {f"params/{k}": v for k, v in params.items()} | {k: v.numpy().astype(np.int32) for k, v in texts.items()}
    return arrays | {"log_probs": log_p[:-1].gather(1, whole[0, 1:, None])[:, 0].detach().numpy()}


if __name__ == "__main__":
    arrays = {f"processors/{k}": v for k, v in processors().items()}
    arrays |= {f"generated/{k}": v for k, v in generated().items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)
