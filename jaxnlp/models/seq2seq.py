"""Sequence to sequence: a recurrent encoder reads the source, a recurrent decoder writes the target.

    h_1 … h_S = Encoder(x_1 … x_S),  s_0 = Bridge(last states)

    none              s_t = Cell(s_{t-1}, y_t),            o_t = s_t                    Sutskever et al., 2014
    additive          c_t = Attend(s_{t-1}, h)             s_t = Cell(s_{t-1}, [y_t; c_t])
                                                           o_t = tanh(W [s_t; c_t; y_t])   Bahdanau et al., 2015
    dot, general      s_t = Cell(s_{t-1}, [y_t; o_{t-1}])  c_t = Attend(s_t, h)
                                                           o_t = tanh(W [s_t; c_t])        Luong et al., 2015, 3.1, 3.3

    logits_t = o_t T' + b

x and y are rows of the embedding tables, y_t that of the token before the t-th. In training the tokens are the true
ones (teacher forcing) and t runs in one scan; greedy and beam search call the same function a step at a time.

Differs from the papers: Bahdanau's o_t is a maxout layer of s_{t-1}, and s_0 sees the backward encoder alone; here it
is a tanh layer of s_t, and the bridge sees both directions.

Letters: B batch, S source length, T target length, E width of the embeddings, D width of a layer, C of a source state
(2D of a bidirectional encoder), R of o, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxnlp.models.heads import Unembedding
from jaxnlp.nn.alignment import SCORES, Alignment, Keys
from jaxnlp.nn.blocks import Projection
from jaxnlp.nn.cells import CELLS, hidden
from jaxnlp.nn.embeddings import TokenTable, padded
from jaxnlp.nn.recurrent import Recurrent
from jaxnlp.nn.sharding import constrain

Memory = Mapping[str, Any]  # what the decoder sees of the source: "states", "keys", "mask"
Cache = Mapping[str, Any]  # what a step hands to the next: "carry", and "fed", the o before


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of Bahdanau et al., 2015, but for the tables' joint vocabulary."""

    vocab_size: int = 30000  # of the source; token ids are below this, and tables are padded to a multiple of 128
    target_vocab_size: int | None = None  # None: the two languages share one vocabulary
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    n_layers: int = 1  # of the encoder, and of the decoder
    d_embed: int = 620
    d_model: int = 1000  # width of a layer, in each direction
    bidirectional: bool = True  # the encoder
    attention: Literal["none", "additive", "dot", "general"] = "additive"
    d_attention: int | None = None  # width of the additive score; None: d_model
    input_feeding: bool = False  # dot and general: a step sees what the step before made of its attention
    reverse_source: bool = False  # read it from its end: Sutskever et al., 2014, 3.3
    share_embeddings: bool = False  # one table for source and target
    tied: bool = False  # the output's table is the target's: o then has the embeddings' width
    residual: bool = False  # adds a layer's input to its output, from the second layer on
    dropout: float = 0.0  # on embeddings, between layers, and on o
    forget_bias: float = 0.0  # of an LSTM at the start
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products and activations; parameters are float32

    def __post_init__(self):
        for name in ("vocab_size", "target_vocab_size", "n_layers", "d_embed", "d_model", "d_attention"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 1 and more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}; allowed: 0 <= dropout < 1")
        for name, allowed in (("cell", tuple(CELLS)), ("attention", ("none", *SCORES))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}={getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.input_feeding and self.attention not in ("dot", "general"):
            raise ValueError(
                f"model.input_feeding with model.attention={self.attention!r}; allowed with: dot, general "
                "(a step of the additive form sees its context anyway)"
            )
        if self.attention == "dot" and self.source_width != self.d_model:
            raise ValueError(
                "model.attention='dot' with model.bidirectional=True, whose states are 2 d_model wide; "
                "allowed: attention='general', or bidirectional=False"
            )
        if self.share_embeddings and self.target_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"model.share_embeddings with model.target_vocab_size={self.target_vocab_size}; allowed: None"
            )

    n_positions: ClassVar[int] = 2**31 - 1  # a state runs out of none

    @property
    def source_width(self) -> int:
        return self.d_model * (2 if self.bidirectional else 1)

    @property
    def output_width(self) -> int:
        return self.d_embed if self.tied else self.d_model

    @property
    def output_vocab_size(self) -> int:
        return self.target_vocab_size or self.vocab_size

    def flops(self, length: int, vocabulary: bool = True) -> float:
        """FLOPs that training spends on a token, source or target: 6 for each weight of a product, and the attention's.

        A pair has as many target tokens as source tokens, and each target token looks at every source state.
        """
        E, D, C, R, L = self.d_embed, self.d_model, self.source_width, self.output_width, self.n_layers
        A = self.d_attention or D
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[self.cell]
        encoder = gates * C * (E + D + (L - 1) * (C + D))
        fed = {"none": 0, "additive": C}.get(self.attention, R if self.input_feeding else 0)
        decoder = gates * D * (E + fed + D + (L - 1) * 2 * D) + (R * self.output_vocab_size if vocabulary else 0)
        if self.attention != "none":
            decoder += R * (D + C + (E if self.attention == "additive" else 0)) + length * (A + C)
            decoder += {"additive": (D + C) * A, "dot": 0, "general": C * D}[self.attention]
        elif self.tied:
            decoder += R * D
        return 6.0 * (encoder + decoder) / 2

    def build(self, heads: tuple[()] = ()) -> "Seq2Seq":
        if heads:
            raise ValueError(f"the heads {heads} on a sequence-to-sequence model; allowed: none, it has its output")
        return Seq2Seq(self)


VARIANTS = {
    "rnnsearch": Config(),
    "rnnencdec": Config(attention="none", bidirectional=False),
    # Sutskever et al., 2014, 3.4: four layers of 1000, 160,000 and 80,000 words
    "sutskever": Config(
        vocab_size=160000,
        target_vocab_size=80000,
        cell="lstm",
        n_layers=4,
        d_embed=1000,
        bidirectional=False,
        attention="none",
        reverse_source=True,
    ),
    # Luong et al., 2015, 4.1
    "luong": Config(
        vocab_size=50000,
        target_vocab_size=50000,
        cell="lstm",
        n_layers=4,
        d_embed=1000,
        bidirectional=False,
        attention="general",
        input_feeding=True,
        reverse_source=True,
        dropout=0.2,
    ),
    # learns to read and write numbers in minutes on two cores
    "numbers": Config(vocab_size=128, d_embed=64, d_model=128, share_embeddings=True, tied=True),
}


class Seq2Seq(nn.Module):
    """Encoder and decoder. Used through `init` and `apply` alone; parameters are a plain nested dict.

    apply(…)                                         teacher forcing: a dict of
        last_hidden_state           [B, T, R]        o
        encoder_last_hidden_state   [B, S, C]
        logits                      [B, T, V]        float32, or, where `logits=False`, what a blocked loss needs:
        unembedding
    apply(…, method="encode", length=n)              (memory, cache) of the source, the cache before the first token; a
                                                     state has room for any number n of them
    apply(ids [N, T], memory, cache, method="decode")   T more tokens: last_hidden_state, logits, cache

    and, with `mutable="intermediates"`, the attention's weights [B, T, S] as `cross_attentions`.
    `attention_mask` [B, S] is 1 on real source tokens and 0 on padding, on either side. N is B, or a multiple of it;
    the rows of a source, such as the beams of a search, stand side by side.
    """

    config: Config

    def setup(self):
        c = self.config
        table = lambda size: TokenTable(size, c.d_embed, dtype=jnp.dtype(c.dtype))  # noqa: E731
        self.source = table(c.vocab_size)
        self.target = self.source if c.share_embeddings else table(c.output_vocab_size)
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.output = self.target if c.tied else TokenTable(c.output_vocab_size, c.output_width)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (padded(c.output_vocab_size),))

    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"] | None = None,
        decoder_input_ids: Int[Array, "B T"] | None = None,
        *,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        memory, cache = self.encode(input_ids, attention_mask, deterministic=deterministic)
        if decoder_input_ids is None:
            if not self.is_initializing():
                raise ValueError("decoder_input_ids did not come; allowed: the target's tokens, moved by one")
            decoder_input_ids = input_ids
        outputs = self.decode(decoder_input_ids, memory, cache, deterministic=deterministic, logits=logits)
        del outputs["cache"]
        return outputs | {"encoder_last_hidden_state": memory["states"]}

    def encode(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"] | None = None,
        deterministic: bool = True,
        *,
        length: int | None = None,
    ) -> tuple[Memory, Cache]:
        mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask != 0
        return self.encoder(self.source(input_ids), mask, deterministic)

    def decode(
        self,
        input_ids: Int[Array, "N T"],
        memory: Memory,
        cache: Cache,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        hidden, cache = self.decoder(self.target(input_ids), memory, cache, deterministic)
        unembedding = Unembedding(hidden, self.output.tokens, self.output_bias, self.config.output_vocab_size)
        outputs = {"last_hidden_state": hidden, "cache": cache}
        return outputs | ({"logits": unembedding.logits()} if logits else {"unembedding": unembedding})


class Encoder(nn.Module):
    """What the decoder sees of the source, and its state before the first token."""

    config: Config

    @nn.compact
    def __call__(self, x: Float[Array, "B S E"], mask: Bool[Array, "B S"], deterministic: bool) -> tuple[Memory, Cache]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        layers = _layers(c, deterministic, bidirectional=c.bidirectional)
        x = nn.Dropout(c.dropout, deterministic=deterministic)(x)
        states, carry = layers(_reversed(x, mask) if c.reverse_source else x, mask)
        memory = {"states": _reversed(states, mask) if c.reverse_source else states, "mask": mask}
        if c.attention != "none":
            width = c.d_attention or c.d_model if c.attention == "additive" else c.d_model
            memory["keys"] = Keys(c.attention, width, dtype, name="keys")(memory["states"])
        if c.bidirectional:
            carry = tuple(self._bridge(i, *directions) for i, directions in enumerate(carry))
        fed = jnp.zeros((len(x), c.output_width if c.input_feeding else 0), dtype)
        return memory, {"carry": carry, "fed": fed}

    def _bridge(self, layer: int, forward: Any, backward: Any) -> tuple[Any]:
        """tanh of a linear map of both directions' last states, for each part of a state (an LSTM has two)."""

        def join(part: str, *states: Float[Array, "B D"]) -> Float[Array, "B D"]:
            both = jnp.concatenate(states, axis=-1)
            init = nn.initializers.glorot_uniform()
            return jnp.tanh(Projection(states[0].shape[1:], kernel_init=init, dtype=both.dtype, name=part)(both))

        leaves, form = jax.tree.flatten(forward)
        parts = zip(leaves, jax.tree.leaves(backward), strict=True)
        return (form.unflatten(join(f"bridge_{layer}_{i}", *states) for i, states in enumerate(parts)),)


class Decoder(nn.Module):
    """The equations at the head of this file, for T tokens: (o, the cache after them)."""

    config: Config

    @nn.compact
    def __call__(
        self, y: Float[Array, "B T E"], memory: Memory, cache: Cache, deterministic: bool
    ) -> tuple[Float[Array, "B T R"], Cache]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        drop = nn.Dropout(c.dropout, deterministic=deterministic)
        y = drop(y)
        if c.attention == "additive" or c.input_feeding:  # a step needs the attention of this one, or the one before
            scan = nn.scan(
                Step,
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                in_axes=(1, nn.broadcast),
                out_axes=1,
            )
            # On a mesh, parameters are gathered once, not by each step.
            gather = functools.partial(jax.tree.map, constrain)
            whole = nn.map_variables(scan, "params", gather, init=self.is_initializing())
            cache, (s, context, weights, o) = whole(c, deterministic, name="step")(cache, y, memory)
        else:
            s, carry = _layers(c, deterministic)(y, None, cache["carry"])
            cache = {**cache, "carry": carry}
            if c.attention == "none":
                context = weights = None
            else:
                context, weights = Alignment(c.attention, dtype, name="attention")(
                    s, memory["keys"], memory["states"], memory["mask"]
                )
        if weights is not None:
            self.sow("intermediates", "cross_attentions", weights)
        if c.input_feeding:
            return drop(o), cache
        if c.attention == "none" and not c.tied:
            return drop(s), cache
        return drop(readout(c, s, context, y)), cache


class Step(nn.Module):
    """One token through the decoder, where the attention is a part of the recurrence."""

    config: Config
    deterministic: bool

    @nn.compact
    def __call__(self, cache: Cache, y: Float[Array, "B E"], memory: Memory) -> tuple[Cache, tuple[Any, ...]]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        drop = nn.Dropout(c.dropout, deterministic=self.deterministic)
        align = Alignment(c.attention, dtype, name="attention")

        def attend(query: Float[Array, "B D"]) -> tuple[Float[Array, "B C"], Float[Array, "B S"]]:
            found = align(query[:, None], memory["keys"], memory["states"], memory["mask"])
            return found[0][:, 0], found[1][:, 0]

        if c.attention == "additive":
            context, weights = attend(hidden(cache["carry"][-1][0]))
        x = jnp.concatenate([y, context if c.attention == "additive" else cache["fed"]], axis=-1)
        carries = []
        for i, (carry,) in enumerate(cache["carry"]):
            own = {"forget_bias": c.forget_bias} if c.cell == "lstm" else {}
            cell = CELLS[c.cell](c.d_model, dtype=dtype, name=f"layer_{i}", **own)
            carry, h = cell(carry, drop(x) if i else x)
            x = h + x if c.residual and i else h
            carries.append((carry,))
        if c.attention != "additive":
            context, weights = attend(x)
        fed = readout(c, x, context, y) if c.input_feeding else cache["fed"]
        return {"carry": tuple(carries), "fed": fed}, (x, context, weights, fed)


def readout(
    c: Config, s: Float[Array, "*B D"], context: Float[Array, "*B C"] | None, y: Float[Array, "*B E"]
) -> Float[Array, "*B R"]:
    """o = tanh(W [s; c; y]), y in the additive form alone."""
    parts = [s] if context is None else [s, context, y] if c.attention == "additive" else [s, context]
    init = nn.initializers.glorot_uniform()
    project = Projection((c.output_width,), kernel_init=init, dtype=jnp.dtype(c.dtype), name="readout")
    return jnp.tanh(project(jnp.concatenate(parts, axis=-1)))


def _layers(c: Config, deterministic: bool, *, bidirectional: bool = False) -> Recurrent:
    return Recurrent(
        cell=c.cell,
        features=c.d_model,
        n_layers=c.n_layers,
        bidirectional=bidirectional,
        residual=c.residual,
        dropout=c.dropout,
        forget_bias=c.forget_bias,
        dtype=jnp.dtype(c.dtype),
        deterministic=deterministic,
        name="layers",
    )


def _reversed(x: Float[Array, "B S D"], mask: Bool[Array, "B S"]) -> Float[Array, "B S D"]:
    """The real positions in reverse order, padding where it was."""
    at = jnp.arange(mask.shape[1])[None]
    first, last = mask.argmax(1, keepdims=True), mask.shape[1] - 1 - mask[:, ::-1].argmax(1, keepdims=True)
    return jnp.take_along_axis(x, jnp.where(mask, first + last - at, at)[:, :, None], axis=1)
