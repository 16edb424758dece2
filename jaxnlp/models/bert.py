"""BERT (Devlin et al., 2019): an encoder of the one block, each of whose tokens sees all others.

    x_0 = Drop(Norm(tokens[input_ids] + segments[token_type_ids] + positions[position_ids]))
    x_l = Block(x_{l-1}),  l = 1 … L                                           post-norm, erf GELU
    p   = tanh(W x_L[0] + b)                                                   the pooled state, that of [CLS]

RoBERTa (Liu et al., 2019) and DistilBERT (Sanh et al., 2019) are configurations of it: one kind of segments or none,
another pooler or none. Matrices and tables are drawn from N(0, 0.02²) cut off at two deviations.

Letters: B batch, C choices, T length, M masked positions, D width, L layers, V vocabulary.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from jaxnlp.models.heads import Body, Head, Heads
from jaxnlp.nn.attention import Mask
from jaxnlp.nn.blocks import ACTIVATIONS, Block, Stack
from jaxnlp.nn.embeddings import Embeddings


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are BERT-base's, uncased."""

    vocab_size: int = 30522  # token ids are below this; the table is padded to a multiple of 128
    n_positions: int = 512
    n_segments: int = 2  # kinds of token_type_ids; 0: no table of them (DistilBERT)
    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    d_head: int | None = None  # width of a head; None: d_model / n_heads
    d_ff: int | None = None  # width between the two feed-forward products; None: 4 d_model
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    pooler: Literal["tanh", "relu"] | None = "tanh"  # what follows the pooled state's product; None: no such state
    dropout: float = 0.1  # on the embeddings and on what each sublayer adds
    attention_dropout: float = 0.1  # on the attention weights
    head_dropout: float | None = None  # on what a head reads; None: as `dropout`
    epsilon: float = 1e-12  # of the layer norms
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products and activations; parameters are float32
    scan: bool = False  # compile one block for all layers: for deep models and pods
    remat: Literal["none", "dots", "full"] = "none"  # recompute in the backward pass: nothing, all but products, all

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_layers", "d_model", "n_heads", "d_head", "d_ff"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 1 and more")
        if self.n_segments < 0:
            raise ValueError(f"model.n_segments={self.n_segments}; allowed: 0 and more")
        for name in ("dropout", "attention_dropout", "head_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 0 <= {name} < 1")
        if self.d_head is None and self.d_model % self.n_heads:
            allowed = ", ".join(str(n) for n in range(1, self.d_model + 1) if self.d_model % n == 0)
            raise ValueError(
                f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}; allowed: {allowed}"
            )

    @property
    def head_width(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def ff_width(self) -> int:
        return self.d_ff or 4 * self.d_model

    def flops(self, length: int, vocabulary: float = 1.0) -> float:
        """FLOPs that training spends on a token: 6 for each weight of a product, and the attention's.

        6 (L (4 D H K + 2 D F) + D V) + attention (Chowdhery et al., 2022, appendix B), D V for that share of the tokens
        whose product with the vocabulary is taken.
        """
        D, heads = self.d_model, self.n_heads * self.head_width
        weights = self.n_layers * (4 * D * heads + 2 * D * self.ff_width) + D * self.vocab_size * vocabulary
        return 6.0 * weights + self.attention_flops(length)

    def attention_flops(self, length: int) -> float:
        """12 L H K T: each token sees all."""
        return 12.0 * self.n_layers * self.n_heads * self.head_width * length

    @property
    def n_attentions(self) -> int:
        return self.n_layers

    def build(self, heads: tuple[Head, ...] = ()) -> "BERT":
        return BERT(self, heads)


VARIANTS = {
    # github.com/google-research/bert: all 24 of Turc et al., 2019, are of these widths and depths
    "tiny": Config(n_layers=2, d_model=128, n_heads=2),
    "mini": Config(n_layers=4, d_model=256, n_heads=4),
    "small": Config(n_layers=4, d_model=512, n_heads=8),
    "medium": Config(n_layers=8, d_model=512, n_heads=8),
    "base": Config(),
    "large": Config(n_layers=24, d_model=1024, n_heads=16),
    "base-cased": Config(vocab_size=28996),
    "large-cased": Config(vocab_size=28996, n_layers=24, d_model=1024, n_heads=16),
    "base-multilingual-uncased": Config(vocab_size=105879),
    "base-multilingual-cased": Config(vocab_size=119547),
    "base-chinese": Config(vocab_size=21128),
    "roberta-base": Config(vocab_size=50265, n_segments=1, epsilon=1e-5),
    "roberta-large": Config(vocab_size=50265, n_segments=1, epsilon=1e-5, n_layers=24, d_model=1024, n_heads=16),
    "distilbert-base": Config(n_segments=0, n_layers=6, pooler=None),
}


class BERT(nn.Module):
    """The encoder with the heads put on it. Used through `init` and `apply` alone; parameters are a plain nested dict.

    Returns a dict with
        last_hidden_state   [B, T, D]
        pooler_output       [B, D], where the configuration has a pooler
    and what the heads add. With choices, input_ids, attention_mask, token_type_ids and position_ids are [B, C, T],
    and the states have B C rows. Without two kinds of segments or more, token_type_ids are not read. `attention_mask`
    is 1 on real tokens and 0 on padding, which stands on the right of what is pooled, position 0; `segment_ids` [B, T]
    keeps packed texts apart (0 is padding). `masked_positions` [B, M] says where a masked language model's words are
    asked for; None: everywhere. With `logits=False` such a head gives what a blocked loss needs (see heads.py).
    """

    config: Config
    heads: tuple[Head, ...] = ()

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "*B T"],
        attention_mask: Int[Array, "*B T"] | None = None,
        token_type_ids: Int[Array, "*B T"] | None = None,
        position_ids: Int[Array, "*b T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        masked_positions: Int[Array, "B M"] | None = None,
        *,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        c = self.config
        dtype, init = jnp.dtype(c.dtype), nn.initializers.truncated_normal(0.02)
        choices, T = input_ids.shape[1:-1], input_ids.shape[-1]
        input_ids, attention_mask, token_type_ids, position_ids = (
            x if x is None else x.reshape(-1, T) for x in (input_ids, attention_mask, token_type_ids, position_ids)
        )
        if c.n_positions < T:
            raise ValueError(f"input_ids has length {T}; allowed: at most model.n_positions={c.n_positions}")
        if segment_ids is None:
            segment_ids = attention_mask
        elif attention_mask is not None:
            segment_ids = segment_ids * attention_mask
        embed = Embeddings(
            *(c.vocab_size, c.n_positions, c.d_model, c.dropout, dtype),
            deterministic=deterministic,
            n_segments=c.n_segments,
            epsilon=c.epsilon,
            init=init,
            name="embed",
        )
        block = functools.partial(
            Block,
            n_heads=c.n_heads,
            d_head=c.head_width,
            d_ff=c.ff_width,
            activation=c.activation,
            norm_first=False,
            epsilon=c.epsilon,
            dropout=c.dropout,
            attention_dropout=c.attention_dropout,
            kernel_init=init,
            out_init=init,
            dtype=dtype,
            deterministic=deterministic,
        )
        position_ids = jnp.arange(T)[None] if position_ids is None else position_ids
        x = embed(input_ids, position_ids, token_type_ids)
        hidden, _ = Stack(block, c.n_layers, c.scan, c.remat, name="blocks")(x, Mask(segment_ids=segment_ids))
        outputs = {"last_hidden_state": hidden}
        if c.pooler is not None:
            pooled = nn.Dense(c.d_model, kernel_init=init, dtype=dtype, name="pooler")(hidden[:, 0])
            outputs["pooler_output"] = ACTIVATIONS[c.pooler](pooled)
        body = Body(
            hidden=hidden,
            attention_mask=attention_mask,
            pooled=outputs.get("pooler_output"),
            whole="first",
            tokens=embed.tokens,
            config=c,
            init=init,
            drop=nn.Dropout(c.dropout if c.head_dropout is None else c.head_dropout, deterministic=deterministic),
            masked_positions=masked_positions,
            choices=choices,
        )
        return outputs | Heads(self.heads, name="heads")(body, logits) if self.heads else outputs
