"""Texts as vectors, from the last hidden states of any body, and the texts nearest to one by their cosine.

    e(x) = pool(h_1 … h_T),  e(x) / |e(x)| where normalised            Reimers and Gurevych, 2019, section 3

The mean and the maximum are over real tokens, the special ones too.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.models.heads import pool
from jaxnlp.tasks.inputs import by_length, fitted, parts, read, template
from jaxnlp.tasks.task import Batch, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
    """Of a body without heads; nothing is trained."""

    pooling: Literal["first", "last", "mean", "max"] = "mean"
    normalize: bool = False  # to length 1
    length: int = 256  # tokens a text at most, special ones too: a longer text keeps its beginning

    @property
    def heads(self) -> tuple[()]:
        return ()

    def check(self, model: nn.Module) -> None:
        """ValueError of an encoder with a decoder."""
        if hasattr(model, "encode"):
            raise ValueError(
                f"the model {type(model).__name__} reads a source and a target; allowed: one that reads a text"
            )

    def features(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[Record]:
        """What the model reads of each."""
        ids = tokenizer.encode_batch([parts(text, ("text",))[0] for text in texts])
        return fitted([(row,) for row in ids], template(tokenizer), self.length)

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, texts: Sequence[str]
    ) -> list[dict[str, Any]]:
        """{"embedding": D numbers} for each text."""
        run = functools.partial(_embed, model, self.pooling, self.normalize, params)
        found = by_length(run, self.features(texts, tokenizer), pad_id=tokenizer.pad_id, max_length=self.length)
        return [{"embedding": vector.tolist()} for vector in found]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _embed(
    model: nn.Module, pooling: str, normalize: bool, params: Mapping[str, Any], inputs: Batch
) -> Float[Array, "B D"]:
    hidden = model.apply({"params": params}, **read(inputs))["last_hidden_state"]
    vectors = pool(hidden, inputs["attention_mask"], pooling).astype(jnp.float32)
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12) if normalize else vectors


def search(
    queries: Sequence[Mapping[str, Any]], corpus: Sequence[Mapping[str, Any]], k: int = 10
) -> list[list[tuple[int, float]]]:
    """For each query the k texts of the corpus that are nearest to it, (number, cosine), nearest first.

    >>> search(run.predict(["a cat"]), run.predict(["the dog", "the kitten"]), k=1)
    [[(1, 0.71)]]
    """
    if not 1 <= k <= len(corpus):
        raise ValueError(f"k={k} of {len(corpus)} texts; allowed: 1 to {len(corpus)}")
    if not queries:
        return []
    a, b = (_normal(np.array([one["embedding"] for one in side], np.float32)) for side in (queries, corpus))
    cosines = a @ b.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return [[(int(i), float(row[i])) for i in best] for row, best in zip(cosines, order, strict=True)]


def _normal(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
