"""GPT (Radford et al., 2018), GPT-2 (Radford et al., 2019), GPT-3 (Brown et al., 2020): decoders of one kind.

    x_0 = Drop(tokens[input_ids] + positions[position_ids])
    x_l = Block(x_{l-1}),  l = 1 … L                             causal, tanh GELU
    h   = Norm(x_L),  logits = h tokens'                         GPT: no norm here, but after each sublayer

From GPT-2 on, blocks norm first. Weights are drawn from N(0, 0.02²), then also those of the projections that write to
the residual stream from N(0, 0.02² / 2L) (2019, section 2.3). Dropout sits on the embeddings, the attention weights,
what each sublayer adds, and what a head reads. In GPT-3 every second layer sees a band of the last tokens alone (2020,
section 2.1), as in a Sparse Transformer (Child et al., 2019), whose other half, dense, lets all tokens be reached.

Letters: B batch, C choices, T length, S slots of the cache, D width, H heads, K head width, L layers, V vocabulary.
"""

import dataclasses
import functools
import itertools
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from jaxnlp.models.heads import Body, Head, Heads, LanguageModel, Unembedding
from jaxnlp.nn.blocks import Block, LayerNorm, Stack
from jaxnlp.nn.cache import empty, reading
from jaxnlp.nn.embeddings import Embeddings


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are GPT-2's."""

    vocab_size: int = 50257  # token ids are below this; the table is padded to a multiple of 128
    n_positions: int = 1024
    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    d_head: int | None = None  # width of a head; None: d_model / n_heads
    d_ff: int | None = None  # width between the two feed-forward products; None: 4 d_model
    norm_first: bool = True  # of blocks: before each sublayer, and once after the last; or after each alone: GPT
    windows: tuple[int | None, ...] = (None,)  # tokens that the layers' attention sees, in turn; None: all before
    qkv_bias: bool = True  # of queries, keys and values; GPT-Neo has none
    attention_scale: float | None = None  # of the products of queries and keys; None: 1 / sqrt(K); GPT-Neo's is 1
    dropout: float = 0.1  # on the embeddings, on what each sublayer adds, and on what a head reads
    attention_dropout: float = 0.1  # on the attention weights
    epsilon: float = 1e-5  # of the layer norms
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products and activations; parameters are float32
    scan: bool = False  # compile one block for all layers: for deep models and pods
    remat: Literal["none", "dots", "full"] = "none"  # recompute in the backward pass: nothing, all but products, all

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_layers", "d_model", "n_heads", "d_head", "d_ff"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 1 and more")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 0 <= {name} < 1")
        if self.d_head is None and self.d_model % self.n_heads:
            allowed = ", ".join(str(n) for n in range(1, self.d_model + 1) if self.d_model % n == 0)
            raise ValueError(
                f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}; allowed: {allowed}"
            )
        if not self.windows or not all(window is None or window >= 1 for window in self.windows):
            raise ValueError(f"model.windows={self.windows}; allowed: one and more of None and of 1 and more")
        if self.scan and self.n_layers % len(self.windows):
            raise ValueError(
                f"model.windows={self.windows} are {len(self.windows)}, and model.scan takes layers in groups of as "
                f"many; allowed: model.n_layers={self.n_layers} a multiple of it, or no scan"
            )

    @property
    def head_width(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def ff_width(self) -> int:
        return self.d_ff or 4 * self.d_model

    def flops(self, length: int, vocabulary: bool = True) -> float:
        """FLOPs that training spends on a token of a sequence: 6 for each weight of a product, and the attention's.

        6 (L (4 D H K + 2 D F) + D V) + attention; recomputation does not count (Chowdhery et al., 2022, appendix B).
        Without the product with the vocabulary, D V, where a head stands in its place; the head's own is too small.
        """
        D, V, heads = self.d_model, self.vocab_size * vocabulary, self.n_heads * self.head_width
        return 6 * (self.n_layers * (4 * D * heads + 2 * D * self.ff_width) + D * V) + self.attention_flops(length)

    def attention_flops(self, length: int) -> float:
        """12 H K times the tokens seen, on average, of all layers: T / 2, or w - w² / 2T of a window of w < T."""
        sizes = [min(window or length, length) for window in self.windows]
        seen = [size - size * size / (2 * length) for size in sizes]
        layers = zip(range(self.n_layers), itertools.cycle(seen), strict=False)
        return 12 * self.n_heads * self.head_width * sum(tokens for _, tokens in layers)

    @property
    def n_attentions(self) -> int:
        return self.n_layers

    def build(self, heads: tuple[Head, ...] = ()) -> "GPT":
        return GPT(self, heads)


# Brown et al., 2020, section 2.1: "alternating dense and locally banded sparse attention patterns". The paper does not
# give the band's width; this one is GPT-Neo's (github.com/EleutherAI/gpt-neo), which was made after it.
_GPT3 = Config(n_positions=2048, windows=(None, 256))

VARIANTS = {
    # Radford et al., 2018, section 4.1: 40,000 merges, and the 478 characters and ends that they begin with
    "gpt1": Config(vocab_size=40478, n_positions=512, norm_first=False),
    "gpt2": Config(),
    "gpt2-medium": Config(n_layers=24, d_model=1024, n_heads=16),
    "gpt2-large": Config(n_layers=36, d_model=1280, n_heads=20),
    "gpt2-xl": Config(n_layers=48, d_model=1600, n_heads=25),
    # Brown et al., 2020, table 2.1; heads times head width is not always the width
    "gpt3-small": _GPT3,
    "gpt3-medium": dataclasses.replace(_GPT3, n_layers=24, d_model=1024, n_heads=16),
    "gpt3-large": dataclasses.replace(_GPT3, n_layers=24, d_model=1536, n_heads=16),
    "gpt3-xl": dataclasses.replace(_GPT3, n_layers=24, d_model=2048, n_heads=24, d_head=128),
    "gpt3-2.7b": dataclasses.replace(_GPT3, n_layers=32, d_model=2560, n_heads=32),
    "gpt3-6.7b": dataclasses.replace(_GPT3, n_layers=32, d_model=4096, n_heads=32),
    "gpt3-13b": dataclasses.replace(_GPT3, n_layers=40, d_model=5140, n_heads=40, d_head=128),
    "gpt3-175b": dataclasses.replace(_GPT3, n_layers=96, d_model=12288, n_heads=96),
    # nanoGPT's CPU settings for characters: no dropout
    "char": Config(
        vocab_size=67, n_positions=64, n_layers=4, d_model=128, n_heads=4, dropout=0.0, attention_dropout=0.0
    ),
    # learns English in minutes on two cores
    "quickstart": Config(
        vocab_size=2048, n_positions=256, n_layers=4, d_model=128, n_heads=4, dropout=0.0, attention_dropout=0.0
    ),
}


class GPT(nn.Module):
    """The decoder with the heads put on it. Used through `init` and `apply` alone; parameters are a plain nested dict.

    Returns a dict with
        last_hidden_state   [B, T, D]
        logits              [B, T, vocab_size], where there are no heads; else what the heads add
        unembedding         instead of a language model's logits, where `logits=False`: what a blocked loss needs
        cache               the new one, where one was given
    and, with `mutable="intermediates"`, each block's input and attention weights. With choices, input_ids,
    attention_mask and position_ids are [B, C, T], and the states have B C rows; `mc_token_ids` [B, C] says at which
    token each choice is read, by default the last real one.

    `attention_mask` [B, T] is 1 on real tokens and 0 on padding (left or right); `segment_ids` [B, T] keeps packed
    documents apart (0 is padding); with a cache they are of a tree of texts (see nn/cache.py). Positions are 0 … T - 1
    where not given; with a cache they count real tokens. The first `prefix_lengths` [B] tokens of a row see one another
    (prefix language model: Raffel et al., 2020, 3.2.1).
    """

    config: Config
    heads: tuple[Head, ...] = ()  # none: the language model

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "*B T"],
        attention_mask: Int[Array, "*B T"] | None = None,
        position_ids: Int[Array, "*b T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: dict[str, Any] | None = None,
        prefix_lengths: Int[Array, " B"] | None = None,
        mc_token_ids: Int[Array, "*B"] | None = None,
        *,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        choices, T = input_ids.shape[1:-1], input_ids.shape[-1]
        input_ids, attention_mask, position_ids = (
            x if x is None else x.reshape(-1, T) for x in (input_ids, attention_mask, position_ids)
        )
        if cache is None and c.n_positions < T:
            raise ValueError(f"input_ids has length {T}; allowed: at most model.n_positions={c.n_positions}")
        cache, mask, position_ids = reading(input_ids, attention_mask, position_ids, segment_ids, cache, prefix_lengths)
        embed = Embeddings(
            c.vocab_size, c.n_positions, c.d_model, c.dropout, dtype, deterministic=deterministic, name="embed"
        )
        block = functools.partial(
            Block,
            n_heads=c.n_heads,
            d_head=c.head_width,
            d_ff=c.ff_width,
            activation="gelu_tanh",
            norm_first=c.norm_first,
            epsilon=c.epsilon,
            dropout=c.dropout,
            attention_dropout=c.attention_dropout,
            kernel_init=nn.initializers.normal(0.02),
            out_init=nn.initializers.normal(0.02 / (2 * c.n_layers) ** 0.5 if c.norm_first else 0.02),
            qkv_bias=c.qkv_bias,
            attention_scale=c.attention_scale,
            dtype=dtype,
            deterministic=deterministic,
        )
        layers = None if cache is None else cache["layers"]
        stack = Stack(block, c.n_layers, c.scan, c.remat, c.windows, name="blocks")
        hidden, layers = stack(embed(input_ids, position_ids), mask, layers)
        if c.norm_first:
            hidden = LayerNorm(c.epsilon, dtype, name="norm")(hidden)

        outputs = {"last_hidden_state": hidden}
        if cache is not None:
            outputs["cache"] = {**cache, "layers": layers}
        body = Body(
            hidden=hidden,
            attention_mask=attention_mask,
            words=Unembedding(hidden, embed.tokens, None, c.vocab_size),
            drop=nn.Dropout(c.dropout, deterministic=deterministic),
            choices=choices,
            choice_positions=mc_token_ids if mc_token_ids is None else mc_token_ids.reshape(-1),
        )
        return outputs | Heads(self.heads or (LanguageModel(),), name="heads")(body, logits)

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> dict[str, Any]:
        """An empty cache of `length` slots (see nn/cache.py), of which each `apply` with T tokens fills T."""
        c = self.config
        if length > c.n_positions:
            raise ValueError(f"a cache of {length} slots; allowed: at most model.n_positions={c.n_positions}")
        return empty(
            batch,
            length,
            n_layers=c.n_layers,
            n_heads=c.n_heads,
            d_head=c.head_width,
            dtype=dtype or c.dtype,
            scan=c.scan,
        )
