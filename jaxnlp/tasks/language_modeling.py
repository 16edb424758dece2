"""Language modelling: the next token from those before it (Bengio et al., 2003; Radford et al., 2018, eq. 1).

loss = - sum_t w_t log p(x_t | x_<t) / sum_t w_t          perplexity = exp(loss)
bits_per_byte = - sum_t w_t log2 p(x_t | x_<t) / bytes of the texts of all x_t: independent of the tokenizer

A SentencePiece model does not say which bytes a token stands for, and has no bits_per_byte. Each x_t of a text is
predicted once, but for the very first token of all (with `apart` of each document), and seen with at most `length`
tokens before it. In evaluation with a `stride` below the length, each but the first `length` is seen with at least
length - stride + 1: what transformers' perplexity with a sliding window of length + 1 tokens and this stride gives.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnlp.data import batches
from jaxnlp.data.cache import Cache
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import blocked_cross_entropy
from jaxnlp.tasks.generation import generate
from jaxnlp.tasks.task import Apply, Batch, Record, Samples, Sums, require, whole


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """Documents joined by the end token and cut in rows of `length` tokens."""

    text: str = "text"  # the feature that holds the text
    length: int = 1024  # tokens a row
    stride: int | None = None  # tokens that each row but the first predicts in evaluation; None: length, each once seen
    apart: bool = False  # attention stops at a document's border, and positions start again there
    label_smoothing: float = 0.0
    z_loss: float = 0.0  # weight of log(Z)² (Chowdhery et al., 2022, section 5), which keeps bfloat16 logits small
    prompts: tuple[str, ...] = ("The", "Return")  # what the samples in the report go on from

    def __post_init__(self):
        if self.stride is not None:
            whole("task.stride", self.stride, 1)

    def check(self, model: nn.Module) -> None:
        """ValueError of an encoder with a decoder."""
        if not hasattr(model, "init_cache"):
            raise ValueError(f"the model {type(model).__name__} is no language model; allowed with it: Translation")

    @property
    def heads(self) -> tuple[()]:
        return ()

    @property
    def key(self) -> dict[str, Any]:
        return {"task": "language_modeling", "text": self.text, "bytes": True}

    def texts(self, example: Mapping[str, Any]) -> Sequence[str]:
        return (require(example, self.text, "text"),)

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """ "ab" -> {"input_ids": [5, 6, 0]} where 0 is the end token; an empty text -> nothing.

        Where an id does not spell its text, {"input_ids": [5, 0], "bytes": [2, 0]} says how much of it each stands for.
        """
        texts = [text for example in examples for text in self.texts(example)]
        if tokenizer.byte_lengths is not None or not tokenizer.gives_places:
            encoded = tokenizer.encode_batch(texts)
            return [{"input_ids": np.asarray([*ids, tokenizer.eos_id], np.int32)} for ids in encoded if ids]
        encoded = zip(texts, tokenizer.offsets(texts), strict=True)
        return [
            {
                "input_ids": np.asarray([*ids, tokenizer.eos_id], np.int32),
                "bytes": np.asarray([*_bytes(text, places), 0], np.int32),
            }
            for text, (ids, places) in encoded
            if ids
        ]

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        windows = batches.windows(
            cache,
            length=self.length,
            batch_size=batch_size,
            seed=seed,
            apart=self.apart,
            stride=self.stride if seed is None else None,
        )
        n_bytes = tokenizer.byte_lengths
        if n_bytes is None and not windows.sized:
            return windows

        def counted(batch: Batch) -> Batch:
            of_labels = batch.pop("label_bytes") if n_bytes is None else n_bytes[batch["labels"]]
            return batch | {"bytes": np.float32((of_labels * batch["weights"]).sum(1))}

        return batches.Mapped(windows, counted)

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        names = ("input_ids", "labels", *(("segment_ids", "position_ids") if self.apart else ()))
        tokens = {name: jax.ShapeDtypeStruct((rows, self.length), jnp.int32) for name in names}
        weights = jax.ShapeDtypeStruct((rows, self.length), jnp.float32)
        return tokens | {"weights": weights, "bytes": jax.ShapeDtypeStruct((rows,), jnp.float32)}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        """Label smoothing and z-loss are training's alone: in evaluation, perplexity and bits per byte are without."""
        inputs = {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids") if name in batch}
        hidden, table, bias, vocab_size = apply(**inputs, logits=False)["unembedding"]
        loss, weight = blocked_cross_entropy(
            hidden,
            table,
            batch["labels"],
            batch["weights"],
            bias=bias,
            vocab_size=vocab_size,
            label_smoothing=self.label_smoothing if training else 0.0,
            z_loss=self.z_loss if training else 0.0,
        )
        sums = {"loss": (loss, weight)}
        if "bytes" in batch:
            sums["bits_per_byte"] = (loss / math.log(2), jnp.sum(batch["bytes"]))
        return sums

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {**means, "perplexity": math.exp(min(means["loss"], 700.0))}

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Samples, ...]:
        """What the model makes of the prompts."""
        room = min(100, model.config.n_positions - max(map(len, tokenizer.encode_batch(self.prompts)), default=0))
        if room < 1:
            return ()
        texts = generate(model, params, tokenizer, self.prompts, max_new_tokens=room, temperature=0.8, top_p=0.95)
        return (Samples("Samples, temperature 0.8, top-p 0.95", tuple(zip(self.prompts, texts, strict=True))),)


def _bytes(text: str, places: Sequence[tuple[int, int]]) -> list[int]:
    """Of each token the UTF-8 bytes since the one before it; white space after the last is its too.

    "Ab, é" in the places (0, 2), (2, 3), (4, 5) -> [2, 1, 3].
    """
    before = np.cumsum([0, *(len(character.encode()) for character in text)])
    ends = [end for _, end in places[:-1]]
    return np.diff(np.maximum.accumulate(before[[0, *ends, len(text)]])).tolist()
