"""Marian (Junczys-Dowmunt et al., 2018), as the OPUS-MT models come: MarianMTModel of transformers.

The Transformer after the paper: post-norm, SiLU, one table for source, target and output (or one for each language),
and a constant bias of the logits. Its tokenizer is a pair of SentencePiece models and the ids of their pieces; the
decoder begins with <pad>, which is never written.
"""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnlp.data.sentencepiece import SentencePiece
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.interop.tables import Row, as_json, fields, from_heads, norm, product
from jaxnlp.models import transformer
from jaxnlp.nn.embeddings import padded, sinusoids
from jaxnlp.tasks.translation import Translation

ARCHITECTURES = {"MarianMTModel": ()}  # and the heads of each
SAME = {  # settings and fields that say the same
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "encoder_layers": "n_encoder_layers",
    "decoder_layers": "n_decoder_layers",
    "encoder_attention_heads": "n_heads",
    "decoder_attention_heads": "n_heads",
    "encoder_ffn_dim": "d_ff",
    "decoder_ffn_dim": "d_ff",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
FIXED = {  # settings that our Transformer has in one form, with what transformers takes where they are absent
    "scale_embedding": (True, False),
    "tie_word_embeddings": (True, True),
    "normalize_before": (False, False),
    "normalize_embedding": (False, False),
    "add_final_layer_norm": (False, False),
    "static_position_embeddings": (True, True),
    "activation_dropout": (0.0, 0.0),
}
ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu"}
EPSILON = 1e-5
ENDS = True  # the tokenizer puts special tokens round a text
POSITIONS = 512  # that a model is said to have; the sinusoids run out of none


def writes(c: Any, tokenizer: Tokenizer) -> bool:
    return isinstance(c, transformer.Config)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that are null, which is as if they were absent."""
    return {name: value for name, value in settings.items() if value is not None}


def config(settings: Mapping[str, Any], names: Container[str]) -> transformer.Config:
    settings = _given(settings)
    activation = settings.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation_function={activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    shared = settings.get("share_encoder_decoder_embeddings", True)
    return transformer.Config(
        **fields(transformer.Config, settings, SAME, FIXED),
        target_vocab_size=None if shared else settings.get("decoder_vocab_size") or settings["vocab_size"],
        activation=ACTIVATIONS[activation],
        output_bias=True,
        epsilon=EPSILON,
    )


def settings(c: transformer.Config, task: Translation) -> dict[str, Any]:
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first of each
    one = {"norm_first": False, "epsilon": EPSILON, "d_head": None}
    if c.d_head == c.d_model // c.n_heads:
        one.pop("d_head")
    for name, allowed in one.items():
        if getattr(c, name) != allowed:
            raise ValueError(f"model.{name}={getattr(c, name)}; Marian allows: {allowed}")
    if not (c.n_encoder_layers and c.n_decoder_layers):
        raise ValueError("a half of a Transformer; Marian has both")
    return {
        **{theirs: getattr(c, ours) for theirs, ours in SAME.items()},
        **{theirs: allowed for theirs, (allowed, _) in FIXED.items()},
        "activation_function": activations[c.activation],
        "decoder_vocab_size": c.output_vocab_size,
        "share_encoder_decoder_embeddings": c.target_vocab_size is None,
        "max_position_embeddings": max(task.length, POSITIONS),
        "is_encoder_decoder": True,
        "num_beams": task.n_beams,
        "source_lang": task.source,
        "target_lang": task.target,
    }


def rows(c: transformer.Config, heads: tuple[()]) -> list[Row]:
    if c.target_vocab_size is None:
        found = [Row("embed/tokens", "v d", "model.shared.weight", "v d")]
    else:
        sides = {"source": "encoder", "target": "decoder"}
        found = [
            Row(f"{ours}/tokens", "v d", f"model.{half}.embed_tokens.weight", "v d") for ours, half in sides.items()
        ]
    found.append(Row("output_bias", "v", "final_logits_bias", "1 v"))

    def several(ours, theirs, axes, stacked):
        """Those of several products, whose outputs are heads."""
        return [row._replace(stacked=stacked) for row in product(ours, theirs, axes, "(h k)")]

    for half, n_layers in (("encoder", c.n_encoder_layers), ("decoder", c.n_decoder_layers)):
        for i in range(n_layers):
            ours, theirs = f"{half}/blocks/{i}", f"model.{half}.layers.{i}"
            found += several(f"{ours}/attention/qkv", f"{theirs}.self_attn.{{c}}_proj", "h c k", {"c": "qkv"})
            found += from_heads(f"{ours}/attention/out", f"{theirs}.self_attn.out_proj")
            found += norm(f"{ours}/norm_1", f"{theirs}.self_attn_layer_norm")
            if half == "decoder":
                found += product(f"{ours}/cross_attention/query", f"{theirs}.encoder_attn.q_proj", "h k", "(h k)")
                found += from_heads(f"{ours}/cross_attention/out", f"{theirs}.encoder_attn.out_proj")
                found += norm(f"{ours}/norm_cross", f"{theirs}.encoder_attn_layer_norm")
            found += product(f"{ours}/mlp/in", f"{theirs}.fc1")
            found += product(f"{ours}/mlp/out", f"{theirs}.fc2")
            found += norm(f"{ours}/norm_2", f"{theirs}.final_layer_norm")
    memory = {"l": range(c.n_decoder_layers), "c": "kv"}
    return found + several("memory/keys_values", "model.decoder.layers.{l}.encoder_attn.{c}_proj", "l h c k", memory)


def complete(
    c: transformer.Config, params: Mapping[str, Any], heads: tuple[()]
) -> tuple[transformer.Config, dict[str, Any]]:
    """With the bias that Marian has in any case."""
    zeros = {} if c.output_bias else {"output_bias": np.zeros(padded(c.output_vocab_size), np.float32)}
    return dataclasses.replace(c, output_bias=True), {**params, **zeros}


def ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Settings that the tokenizer gives."""
    end, pad, start = tokenizer.target.eos_id, tokenizer.pad_id, tokenizer.target.bos_id
    return {"eos_token_id": end, "forced_eos_token_id": end, "pad_token_id": pad, "decoder_start_token_id": start}


def generation(tokenizer: Tokenizer, task: Translation) -> dict[str, Any]:
    """What transformers makes translations with: as many beams, which never write the padding that begins a text.

    Its length penalty is lengths ** n, another formula than ours, and max_length counts the token that begins.
    """
    found = ids(tokenizer)
    own = [] if (pad := found["pad_token_id"]) == found["eos_token_id"] else [[pad]]
    return {
        **found,
        **({"bad_words_ids": own, "renormalize_logits": True} if own else {}),
        "num_beams": task.n_beams,
        "length_penalty": task.length_penalty,
        "max_length": task.max_new_tokens or task.length,
    }


def files(tokenizer: Tokenizer, task: Translation) -> dict[str, bytes] | None:
    """The files of a pair of SentencePiece models; None of another tokenizer, which both languages have to share."""
    pair = tokenizer.backend, tokenizer.target.backend
    if all(isinstance(one, SentencePiece) for one in pair):
        apart = pair[0].vocabulary != pair[1].vocabulary
        own = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": apart}
        own |= {"source_lang": task.source, "target_lang": task.target}
        found = {"source.spm": pair[0].model, "target.spm": pair[1].model, "vocab.json": as_json(pair[0].vocabulary)}
        found |= {"target_vocab.json": as_json(pair[1].vocabulary)} if apart else {}
        return found | {"tokenizer_config.json": as_json(own)}
    if pair[0] is not pair[1]:
        raise ValueError("two tokenizers that are no SentencePiece models; Marian allows: such ones, or one for both")
    return None


def copies(c: transformer.Config, heads: tuple[()]) -> dict[str, str]:
    """Names under which a tensor may stand a second time, or instead."""
    if c.target_vocab_size is not None:
        return {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    again = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    return dict.fromkeys(again, "model.shared.weight")


def constants(c: transformer.Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Of the tensors that are there, those that are no parameters of ours, with the values that they must have."""
    names = (f"model.{half}.embed_positions.weight" for half in ("encoder", "decoder"))
    return {name: np.asarray(sinusoids(jnp.arange(shapes[name][0]), c.d_model)) for name in names if name in shapes}


def task(settings: Mapping[str, Any], names: Container[str]) -> Translation:
    settings = _given(settings)
    return Translation(
        source=settings.get("source_lang") or "source",
        target=settings.get("target_lang") or "target",
        length=settings.get("max_position_embeddings", POSITIONS),
        n_beams=settings.get("num_beams") or 4,
        length_penalty=settings.get("length_penalty", 1.0),
    )
