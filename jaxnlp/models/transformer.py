"""The Transformer (Vaswani et al., 2017): an encoder and a decoder of the one block, or either of them alone.

    x_0 = Drop(sqrt(D) tokens[x] + sinusoids),  x_l = Block(x_{l-1})             every token sees the whole source
    y_0 = Drop(sqrt(D) tokens[y] + sinusoids),  y_l = Block(y_{l-1}, x_L)        causal, then on the encoder's states
    logits = y_L tokens'

Post-norm, or with `norm_first` pre-norm and one norm more at the end of each stack. Matrices are drawn as
tensor2tensor's are (Glorot and Bengio, 2010), queries, keys and values each by itself, tables from N(0, 1/D).

Letters: B batch, S source length, T target length, D width, H heads, K head width, F feed-forward width, V vocabulary;
N rows of the decoder, B or a multiple of it with the rows of a source side by side.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxnlp.models.heads import Body, Head, Heads, LanguageModel, Unembedding, speaks
from jaxnlp.nn.attention import Mask
from jaxnlp.nn.blocks import Block, LayerNorm, Memory, Stack
from jaxnlp.nn.cache import Cache, empty, reading
from jaxnlp.nn.embeddings import TokenTable, padded, sinusoids


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are the base model's (Vaswani et al., 2017, table 3)."""

    vocab_size: int = 37000  # token ids are below this; tables are padded to a multiple of 128
    # None: one table serves source, target and output; else the last two share one
    target_vocab_size: int | None = None
    n_encoder_layers: int = 6  # 0: the decoder alone, a language model
    n_decoder_layers: int = 6  # 0: the encoder alone
    d_model: int = 512
    n_heads: int = 8
    d_head: int | None = None  # width of a head; None: d_model / n_heads
    d_ff: int = 2048
    activation: Literal["relu", "gelu", "silu"] = "relu"
    norm_first: bool = False
    output_bias: bool = False  # b of the logits, which the paper has not and Marian has
    dropout: float = 0.1  # on the embeddings and on what each sublayer adds
    attention_dropout: float = 0.0  # on the attention weights
    epsilon: float = 1e-5  # of the layer norms, which the paper leaves open; PyTorch's and Marian's
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products and activations; parameters are float32
    scan: bool = False  # compile one block for all layers: for deep models and pods
    remat: Literal["none", "dots", "full"] = "none"  # recompute in the backward pass: nothing, all but products, all

    n_positions: ClassVar[int] = 2**31 - 1  # sinusoids run out of none
    n_segments: ClassVar[int] = 0  # no table of token_type_ids

    def __post_init__(self):
        for name in ("vocab_size", "target_vocab_size", "d_model", "n_heads", "d_head", "d_ff"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 1 and more")
        layers = (self.n_encoder_layers, self.n_decoder_layers)
        if min(layers) < 0 or max(layers) < 1:
            raise ValueError(
                f"model.n_encoder_layers={layers[0]}, n_decoder_layers={layers[1]}; allowed: 0 and more, not both 0"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 0 <= {name} < 1")
        if not self.epsilon > 0:
            raise ValueError(f"model.epsilon={self.epsilon}; allowed: above 0")
        types = get_type_hints(type(self))
        for name in ("activation", "dtype", "remat"):
            if getattr(self, name) not in (allowed := get_args(types[name])):
                raise ValueError(f"model.{name}={getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.d_head is None and self.d_model % self.n_heads:
            allowed = ", ".join(str(n) for n in range(1, self.d_model + 1) if self.d_model % n == 0)
            raise ValueError(
                f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}; allowed: {allowed}"
            )
        if self.d_model % 2:
            raise ValueError(f"model.d_model={self.d_model}; allowed: an even number, for the sinusoidal positions")
        if self.target_vocab_size is not None and not all(layers):
            raise ValueError(f"model.target_vocab_size={self.target_vocab_size} without both halves; allowed: None")

    @property
    def head_width(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def output_vocab_size(self) -> int:
        return self.target_vocab_size or self.vocab_size

    def flops(self, length: int, vocabulary: bool = True) -> float:
        """FLOPs that training spends on a token, source or target: 6 for each weight of a product, and the attention's.

        A pair has as many target tokens as source tokens.
        """
        D, heads, E, L = self.d_model, self.n_heads * self.head_width, self.n_encoder_layers, self.n_decoder_layers
        weights = (E + L) * (4 * D * heads + 2 * D * self.d_ff) + (4 * D * heads * L if E else 0)
        output = D * self.output_vocab_size * vocabulary * bool(L)
        return 6.0 * (weights + output) / self._halves + self.attention_flops(length)

    def attention_flops(self, length: int) -> float:
        """12 H K T of each attention; a target token sees half of the others, and all the source's."""
        E, L = self.n_encoder_layers, self.n_decoder_layers
        seen = E + L / 2 + (L if E else 0)
        return 12.0 * seen * self.n_heads * self.head_width * length / self._halves

    @property
    def n_attentions(self) -> int:
        return self.n_encoder_layers + self.n_decoder_layers * (2 if self.n_encoder_layers else 1)

    @property
    def _halves(self) -> int:
        """Halves of the model, of which a token goes through one."""
        return bool(self.n_encoder_layers) + bool(self.n_decoder_layers)

    def build(self, heads: tuple[Head, ...] = ()) -> nn.Module:
        if self.n_encoder_layers and self.n_decoder_layers:
            if heads:
                raise ValueError(f"the heads {heads} on an encoder with a decoder; allowed: none, it has its output")
            return Transformer(self)
        return Encoder(self, heads) if self.n_encoder_layers else Decoder(self, heads)


VARIANTS = {
    "base": Config(),
    "big": Config(d_model=1024, n_heads=16, d_ff=4096, dropout=0.3),
    # Wu et al., 2021, for Multi30k
    "tiny": Config(
        vocab_size=10000, n_encoder_layers=4, n_decoder_layers=4, d_model=128, n_heads=4, d_ff=256, dropout=0.3
    ),
}


# Glorot and Bengio's of a square matrix, which each of a layer's queries', keys' and values' is.
SQUARE = nn.initializers.lecun_uniform()


class Transformer(nn.Module):
    """Both halves. Used through `init` and `apply` alone; parameters are a plain nested dict.

    apply(…)                                            teacher forcing: a dict of
        last_hidden_state           [B, T, D]
        encoder_last_hidden_state   [B, S, D]
        logits                      [B, T, V]           float32, or, where `logits=False`, what a blocked loss needs:
        unembedding
    apply(…, method="encode", length=n)                 (memory, cache) of the source: keys and values of every layer,
                                                        made once, and a cache of n slots for the tokens to come
    apply(ids [N, T], memory, cache, method="decode")   T more of these: last_hidden_state, logits, cache

    and, with `mutable="intermediates"`, each block's input and attention weights, `cross_attentions` [N, H, T, S] too,
    in which a source's real tokens stand first, whatever side its padding is on.
    `attention_mask` [B, S] is 1 on real source tokens, which stand side by side, and 0 on padding, on either side. Of a
    source without a real token the decoder sees nothing: its attention adds no more than a bias.
    """

    config: Config

    def setup(self):
        c = self.config
        if c.target_vocab_size is None:
            self.embed = TokenTable(c.vocab_size, c.d_model)
        else:
            self.source, self.target = TokenTable(c.vocab_size, c.d_model), TokenTable(c.target_vocab_size, c.d_model)
        self.encoder, self.decoder = _Half(c, c.n_encoder_layers), _Half(c, c.n_decoder_layers)
        self.memory = Memory(c.n_decoder_layers, c.n_heads, c.head_width, SQUARE, jnp.dtype(c.dtype), c.scan)
        self.bias = _bias(self) if c.output_bias else None

    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"] | None = None,
        decoder_input_ids: Int[Array, "B T"] | None = None,
        *,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        memory, states = self._read(input_ids, attention_mask, deterministic)
        if decoder_input_ids is None:
            if not self.is_initializing():
                raise ValueError("decoder_input_ids did not come; allowed: the target's tokens, moved by one")
            decoder_input_ids = input_ids
        return self.decode(decoder_input_ids, memory, None, deterministic, logits) | {
            "encoder_last_hidden_state": states
        }

    def encode(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"] | None = None,
        deterministic: bool = True,
        *,
        length: int,
    ) -> tuple[dict[str, Any], Cache]:
        memory, _ = self._read(input_ids, attention_mask, deterministic)
        return memory, _empty(self.config, len(input_ids), length)

    def decode(
        self,
        input_ids: Int[Array, "N T"],
        memory: Mapping[str, Any],
        cache: Cache | None,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        c = self.config
        table = self.embed if c.target_vocab_size is None else self.target
        cache, mask, places = reading(input_ids, None, None, None, cache)
        rest = {"memory": memory["layers"], "memory_mask": Mask(lengths=memory["lengths"])}
        hidden, cache = self.decoder(table(input_ids), places, mask, deterministic, cache, **rest)
        unembedding = Unembedding(hidden, table.tokens, self.bias, c.output_vocab_size)
        outputs = {"last_hidden_state": hidden} | ({} if cache is None else {"cache": cache})
        return outputs | ({"logits": unembedding.logits()} if logits else {"unembedding": unembedding})

    def _read(
        self, input_ids: Int[Array, "B S"], attention_mask: Int[Array, "B S"] | None, deterministic: bool
    ) -> tuple[dict[str, Any], Float[Array, "B S D"]]:
        """What the decoder sees of the source, and the encoder's states."""
        table = self.embed if self.config.target_vocab_size is None else self.source
        ids, lengths, back = _to_the_left(input_ids, attention_mask)
        states = _states(self.encoder, table(ids), lengths, deterministic)
        return {"layers": self.memory(states), "lengths": lengths}, back(states)


class Encoder(nn.Module):
    """The encoder alone, with the heads put on it; its parameters have the paths that they have in a Transformer.

    Returns a dict with `last_hidden_state` [B, S, D], of which `heads.pool` makes one vector a text, and what the heads
    add, with `logits` and `masked_positions` as on BERT. `attention_mask` is a Transformer's; token_type_ids are not
    read: what parts two texts is a token.
    """

    config: Config
    heads: tuple[Head, ...] = ()

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"] | None = None,
        token_type_ids: Int[Array, "B S"] | None = None,
        masked_positions: Int[Array, "B M"] | None = None,
        *,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        c = self.config
        ids, lengths, back = _to_the_left(input_ids, attention_mask)
        embed = TokenTable(c.vocab_size, c.d_model, name="embed")
        states = back(_states(_Half(c, c.n_encoder_layers, name="encoder"), embed(ids), lengths, deterministic))
        outputs = {"last_hidden_state": states}
        body = Body(
            hidden=states,
            attention_mask=attention_mask,
            tokens=embed.tokens,
            config=c,
            drop=nn.Dropout(c.dropout, deterministic=deterministic),
            masked_positions=masked_positions,
        )
        return outputs | Heads(self.heads, name="heads")(body, logits) if self.heads else outputs


class Decoder(nn.Module):
    """The decoder alone: a language model; outputs and arguments are those of `gpt.GPT`."""

    config: Config
    heads: tuple[Head, ...] = ()  # none: the language model

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        prefix_lengths: Int[Array, " B"] | None = None,
        *,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        c = self.config
        embed = TokenTable(c.vocab_size, c.d_model, name="embed")
        cache, mask, places = reading(input_ids, attention_mask, position_ids, segment_ids, cache, prefix_lengths)
        half = _Half(c, c.n_decoder_layers, name="decoder")
        hidden, cache = half(embed(input_ids), places, mask, deterministic, cache)
        outputs = {"last_hidden_state": hidden} | ({} if cache is None else {"cache": cache})
        bias = _bias(self) if c.output_bias and speaks(self.heads) else None
        body = Body(
            hidden=hidden,
            attention_mask=attention_mask,
            words=Unembedding(hidden, embed.tokens, bias, c.vocab_size),
            drop=nn.Dropout(c.dropout, deterministic=deterministic),
        )
        return outputs | Heads(self.heads or (LanguageModel(),), name="heads")(body, logits)

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> Cache:
        """An empty cache of `length` slots (see nn/cache.py), of which each `apply` with T tokens fills T."""
        return _empty(self.config, batch, length, dtype)


class _Half(nn.Module):
    """Embeddings and a stack of blocks: what encoder and decoder share."""

    config: Config
    n_layers: int

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "N T D"],
        position_ids: Int[Array, "#N T"],
        mask: Mask,
        deterministic: bool,
        cache: Cache | None = None,
        **memory: Any,
    ) -> tuple[Float[Array, "N T D"], Cache | None]:
        c = self.config
        dtype, glorot = jnp.dtype(c.dtype), nn.initializers.glorot_uniform()
        x = tokens * c.d_model**0.5 + sinusoids(position_ids, c.d_model)
        x = nn.Dropout(c.dropout, deterministic=deterministic)(x.astype(dtype))
        block = functools.partial(
            Block,
            n_heads=c.n_heads,
            d_head=c.head_width,
            d_ff=c.d_ff,
            activation=c.activation,
            norm_first=c.norm_first,
            epsilon=c.epsilon,
            dropout=c.dropout,
            attention_dropout=c.attention_dropout,
            kernel_init=glorot,
            out_init=glorot,
            attention_init=SQUARE,
            dtype=dtype,
            deterministic=deterministic,
        )
        layers = None if cache is None else cache["layers"]
        x, layers = Stack(block, self.n_layers, c.scan, c.remat, name="blocks")(x, mask, layers, **memory)
        if c.norm_first:
            x = LayerNorm(c.epsilon, dtype, name="norm")(x)
        return x, None if cache is None else {**cache, "layers": layers}


def _states(
    encoder: _Half, tokens: Float[Array, "B S D"], lengths: Int[Array, " B"] | None, deterministic: bool
) -> Float[Array, "B S D"]:
    return encoder(tokens, jnp.arange(tokens.shape[1])[None], Mask(lengths=lengths), deterministic)[0]


def _to_the_left(
    input_ids: Int[Array, "B S"], attention_mask: Int[Array, "B S"] | None
) -> tuple[Int[Array, "B S"], Int[Array, " B"] | None, Callable[[Array], Array]]:
    """The real tokens at the start of their rows, how many they are, and what brings their states back.

    So padding is a length, which every kernel knows, and positions count from the first real token.
    """
    if attention_mask is None:
        return input_ids, None, lambda states: states
    real, places = attention_mask != 0, jnp.arange(input_ids.shape[1])[None]
    first = real.argmax(1, keepdims=True)

    def rolled(x: Array, by: Int[Array, "B 1"]) -> Array:
        at = (places + by) % x.shape[1]
        return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)

    return rolled(input_ids, first), real.sum(1), lambda states: rolled(states, -first)


def _bias(module: nn.Module) -> Float[Array, " V"]:
    return module.param("output_bias", nn.initializers.zeros, (padded(module.config.output_vocab_size),))


def _empty(c: Config, batch: int, length: int, dtype: Any = None) -> Cache:
    return empty(
        batch,
        length,
        n_layers=c.n_decoder_layers,
        n_heads=c.n_heads,
        d_head=c.head_width,
        dtype=dtype or c.dtype,
        scan=c.scan,
    )
