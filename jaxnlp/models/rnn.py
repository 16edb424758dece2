"""The recurrent language model (Mikolov et al., 2010), with any cell, as Zaremba et al. (2014) regularise it.

    x_t = Drop(tokens[id_t])
    h_t = Recurrent(x_t, h_{t-1})                       a stack of Elman, LSTM or GRU layers: nn/recurrent.py
    logits_t = Drop(h_t) W' + b                         W = tokens where tied (Press and Wolf, 2017)

It takes GPT's place in the language-modelling task, in generation and under the classification head: the state of the
layers is its cache.

Letters: B batch, T length, E width of the embeddings, D width of a layer, V vocabulary.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from jaxnlp.models.heads import Body, Head, Heads, LanguageModel, Unembedding, speaks
from jaxnlp.nn.cells import CELLS
from jaxnlp.nn.embeddings import TokenTable
from jaxnlp.nn.recurrent import Recurrent


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are Zaremba's medium LSTM."""

    vocab_size: int = 10000  # token ids are below this; the table is padded to a multiple of 128
    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    n_layers: int = 2
    d_embed: int | None = None  # width of the embeddings; None: d_model
    d_model: int = 650  # width of a layer
    dropout: float = 0.5  # on the embeddings, between layers and on the last layer's output
    recurrent_dropout: float = 0.0  # on the state, one mask for all steps (Gal and Ghahramani, 2016)
    residual: bool = False  # adds a layer's input to its output, from the second layer on
    forget_bias: float = 0.0  # of an LSTM at the start
    tied: bool = False  # the output's table is the embeddings': d_embed is then d_model
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products and activations; parameters are float32
    remat_steps: int | None = None  # recompute the backward pass in blocks of so many steps: for long sequences

    n_positions: ClassVar[int] = 2**31 - 1  # a state runs out of none

    def __post_init__(self):
        for name in ("vocab_size", "n_layers", "d_embed", "d_model", "remat_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 1 and more")
        for name in ("dropout", "recurrent_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; allowed: 0 <= {name} < 1")
        if self.cell not in CELLS:
            raise ValueError(f"model.cell={self.cell!r}; allowed: {', '.join(CELLS)}")
        if self.tied and self.embed_width != self.d_model:
            raise ValueError(f"model.tied with model.d_embed={self.d_embed}; allowed: model.d_model={self.d_model}")

    @property
    def embed_width(self) -> int:
        return self.d_embed or self.d_model

    def flops(self, length: int, vocabulary: bool = True) -> float:
        """FLOPs that training spends on a token: 6 for each weight of a product, whatever the length.

        Without `vocabulary` there is no output over it, as under a classification head.
        """
        n_gates, D = {"rnn": 1, "gru": 3, "lstm": 4}[self.cell], self.d_model
        inputs = self.embed_width + (self.n_layers - 1) * D
        return 6.0 * (n_gates * D * (inputs + self.n_layers * D) + (D * self.vocab_size if vocabulary else 0))

    def build(self, heads: tuple[Head, ...] = ()) -> "RNN":
        return RNN(self, heads)


VARIANTS = {
    "medium": Config(),  # Zaremba et al., 2014, section 4.1, Penn Treebank
    "large": Config(d_model=1500, dropout=0.65),
    # near the parameters of the character GPT
    "char-rnn": Config(vocab_size=67, cell="rnn", d_model=448, dropout=0.0, tied=True),
    "char-lstm": Config(vocab_size=67, cell="lstm", d_model=224, dropout=0.0, tied=True),
    "char-gru": Config(vocab_size=67, cell="gru", d_model=256, dropout=0.0, tied=True),
}


class RNN(nn.Module):
    """The model with the heads put on it; outputs and arguments are those of `gpt.GPT`, and positions mean nothing.

    A padded position (left or right) leaves the state as it is.
    """

    config: Config
    heads: tuple[Head, ...] = ()  # none: the language model

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: Any = None,
        *,
        deterministic: bool = True,
        logits: bool = True,
    ) -> dict[str, Any]:
        c = self.config
        if segment_ids is not None:
            raise ValueError("segment_ids came to a recurrent model, whose state runs on; allowed: task.apart=False")
        embed = TokenTable(c.vocab_size, c.embed_width, name="embed")
        drop = nn.Dropout(c.dropout, deterministic=deterministic)
        hidden, carry = self._layers(deterministic)(drop(embed(input_ids).astype(c.dtype)), attention_mask, cache)
        outputs: dict[str, Any] = {"last_hidden_state": hidden}
        if cache is not None:
            outputs["cache"] = carry
        body = Body(drop(hidden), attention_mask)
        if speaks(self.heads):
            output = embed if c.tied else TokenTable(c.vocab_size, c.d_model, name="output")
            bias = self.param("output_bias", nn.initializers.zeros, output.tokens.shape[:1])
            body = body._replace(words=Unembedding(body.hidden, output.tokens, bias, c.vocab_size))
        return outputs | Heads(self.heads or (LanguageModel(),), name="heads")(body, logits)

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> Any:
        """The state of every layer before the first token; `length` does not matter."""
        carry = self._layers(True).initial_carry(batch)
        return carry if dtype is None else jax.tree.map(lambda x: x.astype(dtype), carry)

    @nn.nowrap
    def _layers(self, deterministic: bool) -> Recurrent:
        c = self.config
        return Recurrent(
            cell=c.cell,
            features=c.d_model,
            n_layers=c.n_layers,
            residual=c.residual,
            dropout=c.dropout,
            recurrent_dropout=c.recurrent_dropout,
            forget_bias=c.forget_bias,
            remat_steps=c.remat_steps,
            dtype=jnp.dtype(c.dtype),
            deterministic=deterministic,
            parent=self if self.scope else None,
            name="layers",
        )
