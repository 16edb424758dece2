"""GPT-2 (Radford et al., 2019): GPT2LMHeadModel of transformers, whose matrices have their inputs first.

The published files leave the stem `transformer.` out, and hold each layer's causal mask beside its parameters.
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.interop.tables import Row, fields, norm
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling

ARCHITECTURES = {"GPT2LMHeadModel": ()}  # and the heads of each
SAME = {  # settings and fields that say the same
    "vocab_size": "vocab_size",
    "n_positions": "n_positions",
    "n_layer": "n_layers",
    "n_embd": "d_model",
    "n_head": "n_heads",
    "n_inner": "d_ff",
    "resid_pdrop": "dropout",
    "embd_pdrop": "dropout",
    "attn_pdrop": "attention_dropout",
    "layer_norm_epsilon": "epsilon",
}
FIXED = {  # settings that our GPT has in one form, with what transformers takes where they are absent
    "activation_function": ("gelu_new", "gelu_new"),
    "scale_attn_weights": (True, True),
    "scale_attn_by_inverse_layer_idx": (False, False),
    "add_cross_attention": (False, False),
    "tie_word_embeddings": (True, True),
}
STEM = "transformer."
ENDS = False  # the tokenizer puts no special tokens round a text
MASK_BEFORE = -1e4  # what older versions added to the scores that a mask hides


def writes(c: Any, tokenizer: Tokenizer) -> bool:
    return isinstance(c, gpt.Config)


def config(settings: Mapping[str, Any], names: Container[str]) -> gpt.Config:
    return gpt.Config(**fields(gpt.Config, {"n_inner": None, **settings}, SAME, FIXED))


def settings(c: gpt.Config, task: Any) -> dict[str, Any]:
    if c.d_head not in (None, c.d_model // c.n_heads):
        raise ValueError(f"model.d_head={c.d_head}; GPT-2 allows: None")
    fixed = {theirs: allowed for theirs, (allowed, _) in FIXED.items()}
    return {theirs: getattr(c, ours) for theirs, ours in SAME.items()} | fixed


def rows(c: gpt.Config, heads: tuple[()]) -> list[Row]:
    found = [
        Row("embed/tokens", "v d", f"{STEM}wte.weight", "v d"),
        Row("embed/positions", "p d", f"{STEM}wpe.weight", "p d"),
        *norm("norm", f"{STEM}ln_f"),
    ]
    for i in range(c.n_layers):
        ours, theirs = f"blocks/{i}", f"{STEM}h.{i}"
        found += [
            *norm(f"{ours}/norm_1", f"{theirs}.ln_1"),
            Row(f"{ours}/attention/qkv/kernel", "h c k d", f"{theirs}.attn.c_attn.weight", "d (c h k)"),
            Row(f"{ours}/attention/qkv/bias", "h c k", f"{theirs}.attn.c_attn.bias", "(c h k)"),
            Row(f"{ours}/attention/out/kernel", "d h k", f"{theirs}.attn.c_proj.weight", "(h k) d"),
            Row(f"{ours}/attention/out/bias", "d", f"{theirs}.attn.c_proj.bias", "d"),
            *norm(f"{ours}/norm_2", f"{theirs}.ln_2"),
            Row(f"{ours}/mlp/in/kernel", "f d", f"{theirs}.mlp.c_fc.weight", "d f"),
            Row(f"{ours}/mlp/in/bias", "f", f"{theirs}.mlp.c_fc.bias", "f"),
            Row(f"{ours}/mlp/out/kernel", "d f", f"{theirs}.mlp.c_proj.weight", "f d"),
            Row(f"{ours}/mlp/out/bias", "d", f"{theirs}.mlp.c_proj.bias", "d"),
        ]
    return found


def complete(c: gpt.Config, params: Mapping[str, Any], heads: tuple[()]) -> tuple[gpt.Config, Mapping[str, Any]]:
    return c, params


def ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Settings that the tokenizer gives."""
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}


def files(tokenizer: Tokenizer, task: Any) -> None:
    """None of its own: tokenizer.json is what transformers reads."""
    return None


def copies(c: gpt.Config, heads: tuple[()]) -> dict[str, str]:
    """Names under which a tensor may stand a second time, or instead."""
    short = {row.theirs.removeprefix(STEM): row.theirs for row in rows(c, heads)}
    return short | {"lm_head.weight": f"{STEM}wte.weight"}


def constants(c: gpt.Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Of the tensors that are there, those that are no parameters, with the values that they must have."""
    whole = {}
    for i in range(c.n_layers):
        for stem in ("", STEM):
            whole[f"{stem}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, c.n_positions, c.n_positions)))
            whole[f"{stem}h.{i}.attn.masked_bias"] = np.float32(MASK_BEFORE)
    return {name: value for name, value in whole.items() if name in shapes}


def task(settings: Mapping[str, Any], names: Container[str]) -> LanguageModeling:
    return LanguageModeling(length=settings["n_positions"])
