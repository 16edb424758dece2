"""What is put on top of any body: each head turns the last hidden state into its outputs, under its field's own names.

A head is plain values; its parameters live under heads/<name>/.

Letters: B batch, C choices, T length, M masked positions, D width, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from jaxnlp.nn.blocks import ACTIVATIONS, LayerNorm, multiply


class Unembedding(NamedTuple):
    """What gives the logits of a vocabulary, logits = hidden table' + bias, not yet multiplied out.

    The blocked cross entropy takes it as it is; `logits` cuts the table's padding rows off.
    """

    hidden: Float[Array, "B T D"]
    table: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    vocab_size: int

    def logits(self) -> Float[Array, "B T vocab_size"]:
        rows = self.hidden.reshape(-1, self.hidden.shape[-1])
        logits = multiply(rows, self.table.astype(rows.dtype), jnp.float32).reshape(*self.hidden.shape[:2], -1)
        if self.bias is not None:
            logits += self.bias.astype(jnp.float32)[None, None]
        return logits[..., : self.vocab_size]


class Body(NamedTuple):
    """What a head may read of the body that it sits on."""

    hidden: Float[Array, "B T D"]
    attention_mask: Int[Array, "B T"] | None = None
    pooled: Float[Array, "B D"] | None = None  # BERT's state of the whole text
    whole: Literal["first", "last"] = "last"  # the token at whose state the whole text is read
    tokens: Float[Array, "V D"] | None = None  # the table that a masked language model is tied to
    words: Unembedding | None = None  # a language model's
    config: Any = None  # the body's sizes
    init: Callable[..., Array] = nn.initializers.normal(0.02)
    drop: Callable[[Array], Array] = lambda x: x  # dropout before a product
    masked_positions: Int[Array, "B M"] | None = None
    choices: tuple[int, ...] = ()  # (C,) where each C rows are choices of one example
    choice_positions: Int[Array, " B"] | None = None  # of the token at whose state a choice is read, in each row

    @property
    def state(self) -> Float[Array, "B D"]:
        """That of the whole text."""
        return pool(self.hidden, self.attention_mask, self.whole) if self.pooled is None else self.pooled


@dataclasses.dataclass(frozen=True)
class Classification:
    """logits = h W + b over the classes, h the hidden state of one token, their mean, or BERT's pooled state.

    Without a bias but on the pooled state, as Hugging Face's GPT2- and BertForSequenceClassification (Radford et al.,
    2018, eq. 4; Devlin et al., 2019, section 4.1). One class makes a regression. Under heads/classification/.
    """

    n_labels: int
    # Of real tokens only; None: the pooled state, or the one of the token that the body reads the whole text at
    pooling: Literal["first", "last", "mean"] | None = None

    name: ClassVar[str] = "classification"
    output: ClassVar[str] = "logits"

    def __call__(self, body: Body) -> dict[str, Float[Array, "B n_labels"]]:
        pooled = self.pooling is None and body.pooled is not None
        state = body.state if self.pooling is None else pool(body.hidden, body.attention_mask, self.pooling)
        return {self.output: _dense(self, body, self.n_labels, use_bias=pooled)(body.drop(state))}


@dataclasses.dataclass(frozen=True)
class Choice:
    """One logit a choice, [B, C], from the pooled state of the question with each (Radford et al., 2018, figure 1).

    Without the axis of choices, one a row, [B]. The bias, to which a softmax over choices is blind, is transformers'.
    """

    name: ClassVar[str] = "choice"
    output: ClassVar[str] = "logits"

    def __call__(self, body: Body) -> dict[str, Float[Array, "B *C"]]:
        if body.choice_positions is None:
            state = body.state
        else:
            state = jnp.take_along_axis(body.hidden, body.choice_positions[:, None, None], axis=1)[:, 0]
        return {self.output: _dense(self, body, 1)(body.drop(state)).reshape(-1, *body.choices)}


@dataclasses.dataclass(frozen=True)
class Tagging:
    """logits [B, T, n_labels] = x_t W + b of each token (Devlin et al., 2019, section 5.3)."""

    n_labels: int

    name: ClassVar[str] = "tagging"
    output: ClassVar[str] = "logits"

    def __call__(self, body: Body) -> dict[str, Float[Array, "B T n_labels"]]:
        return {self.output: _dense(self, body, self.n_labels)(body.drop(body.hidden))}


@dataclasses.dataclass(frozen=True)
class Span:
    """start_logits and end_logits [B, T] = x_t W + b (Devlin et al., 2019, section 4.2); no dropout, as there."""

    name: ClassVar[str] = "span"
    output: ClassVar[str] = "span"

    def __call__(self, body: Body) -> dict[str, Float[Array, "B T"]]:
        start, end = jnp.moveaxis(_dense(self, body, 2)(body.hidden), -1, 0)
        return {"start_logits": start, "end_logits": end}


@dataclasses.dataclass(frozen=True)
class NextSentence:
    """logits [B, 2] of the pooled state: 0, the second text goes on from the first, or 1 (Devlin et al., 2019, 3.1)."""

    name: ClassVar[str] = "next_sentence"
    output: ClassVar[str] = "seq_relationship_logits"

    def __call__(self, body: Body) -> dict[str, Float[Array, "B 2"]]:
        if body.pooled is None:
            raise ValueError("model.pooler=None; allowed for the next sentence: tanh")
        return {self.output: _dense(self, body, 2)(body.pooled)}


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """logits = Norm(act(x_t W + b)) tokens' + c of the words (Devlin et al., 2019, 3.1), everywhere or where asked for.

    With masked_positions [B, M] the product with the vocabulary is of M tokens a row instead of T.
    """

    name: ClassVar[str] = "masked_lm"
    output: ClassVar[str] = "prediction_logits"

    def __call__(self, body: Body) -> dict[str, Unembedding]:
        c, hidden = body.config, body.hidden
        if body.tokens is None:
            raise ValueError("a masked language model on a body that guesses no words; allowed: BERT")
        if body.masked_positions is not None:
            hidden = jnp.take_along_axis(hidden, body.masked_positions[..., None], axis=1)
        return {
            self.output: _Words(c.activation, c.epsilon, c.vocab_size, body.init, name=self.name)(hidden, body.tokens)
        }


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """logits = x_t tokens' of the next word, beside other heads: what a decoder without heads gives by itself.

    Its loss helps those heads to learn (Radford et al., 2018, eq. 5). It has no parameters: they are the body's.
    """

    name: ClassVar[str] = "language_model"
    output: ClassVar[str] = "prediction_logits"

    def __call__(self, body: Body) -> dict[str, Unembedding]:
        if body.words is None:
            raise ValueError("the head LanguageModel() on a body that is no language model; allowed: MaskedLM()")
        return {self.output: body.words}


class _Words(nn.Module):
    """The parameters of `MaskedLM`."""

    activation: str
    epsilon: float
    vocab_size: int
    kernel_init: Callable[..., Array]

    @nn.compact
    def __call__(self, hidden: Float[Array, "B M D"], tokens: Float[Array, "V D"]) -> Unembedding:
        dense = nn.Dense(hidden.shape[-1], kernel_init=self.kernel_init, dtype=hidden.dtype, name="transform")
        hidden = LayerNorm(self.epsilon, hidden.dtype, name="norm")(ACTIVATIONS[self.activation](dense(hidden)))
        bias = self.param("output_bias", nn.initializers.zeros, (len(tokens),))
        return Unembedding(hidden, tokens, bias, self.vocab_size)


Head = Classification | Choice | Tagging | Span | NextSentence | MaskedLM | LanguageModel


@functools.cache
def shapes(config: Any, heads: tuple[Head, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the parameters of a configuration's model with those heads, by path."""
    init = config.build(heads).init
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return flatten_dict(params, sep="/")


def speaks(heads: tuple[Head, ...]) -> bool:
    """Whether a language model's output is among what a decoder with those heads gives."""
    return not heads or any(isinstance(head, LanguageModel) for head in heads)


# What GPT2DoubleHeadsModel calls the outputs of a language model and of a choice beside it.
DOUBLE = {LanguageModel.output: "logits", Choice.output: "mc_logits"}


def _dense(head: Head, body: Body, n_outputs: int, *, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(n_outputs, use_bias=use_bias, kernel_init=body.init, dtype=jnp.float32, name=head.name)


def pool(hidden: Float[Array, "B T D"], attention_mask: Int[Array, "B T"] | None, pooling: str) -> Float[Array, "B D"]:
    """The first or last real token's hidden state, or the mean or maximum of the real ones; padding on either side."""
    if attention_mask is None:
        attention_mask = jnp.ones(hidden.shape[:2], jnp.int32)
    if pooling == "mean":
        weights = attention_mask.astype(jnp.float32)[:, :, None]
        return ((hidden.astype(jnp.float32) * weights).sum(1) / jnp.maximum(weights.sum(1), 1)).astype(hidden.dtype)
    real = attention_mask != 0
    if pooling == "max":
        return jnp.where(real[:, :, None], hidden, -jnp.inf).max(1)
    at = real.argmax(1) if pooling == "first" else hidden.shape[1] - 1 - real[:, ::-1].argmax(1)
    return jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]


class Heads(nn.Module):
    """The scope heads/ in which each head makes its parameters. The output of one head alone is called logits.

    Of a language model with a choice beside it, the two are called logits and mc_logits. With `logits=False` that of a
    language model, masked or not, is an `unembedding`.
    """

    heads: tuple[Head, ...]

    @nn.compact
    def __call__(self, body: Body, logits: bool = True) -> dict[str, Any]:
        outputs = {}
        for head in self.heads:
            found = head(body)
            if isinstance(whole := found.get(head.output), Unembedding):
                found = {head.output: _by_choice(whole.logits(), body)} if logits else {"unembedding": whole}
            outputs |= {self._public(name): x for name, x in found.items()}
        return outputs

    def _public(self, output: str) -> str:
        if {type(head) for head in self.heads} == {LanguageModel, Choice}:
            return DOUBLE.get(output, output)
        return "logits" if [output] == [head.output for head in self.heads] else output


def _by_choice(logits: Float[Array, "B T V"], body: Body) -> Float[Array, "*B T V"]:
    return logits.reshape(-1, *body.choices, *logits.shape[1:]) if body.choices else logits
