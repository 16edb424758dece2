"""Language modelling: the next token from those before it (Bengio et al., 2003; Radford et al., 2018, eq. 1).

    loss = - sum_t w_t log p(x_t | x_<t) / sum_t w_t          perplexity = exp(loss)
    bits_per_byte = - sum_t w_t log2 p(x_t | x_<t) / bytes of the texts of all x_t: independent of the tokenizer
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnlp.data import batches
from jaxnlp.data.cache import Cache
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import blocked_cross_entropy
from jaxnlp.tasks.task import Apply, Batch, Record, Sums, require


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """Documents joined by the end token and cut in rows of `length` tokens."""

    text: str = "text"  # the feature that holds the text
    length: int = 1024  # tokens a row
    apart: bool = False  # attention stops at a document's border, and positions start again there
    label_smoothing: float = 0.0
    z_loss: float = 0.0  # weight of log(Z)² (Chowdhery et al., 2022, section 5), which keeps bfloat16 logits small
    prompt: str = "The "  # what the samples in the report go on from

    @property
    def heads(self) -> tuple[()]:
        return ()

    @property
    def key(self) -> dict[str, Any]:
        return {"task": "language_modeling", "text": self.text}

    def texts(self, example: Mapping[str, Any]) -> Sequence[str]:
        return (require(example, self.text, "text"),)

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """Each text's ids and the end token: "ab" -> {"input_ids": [5, 6, 0]} where 0 is the end token."""
        texts = tokenizer.encode_batch([text for example in examples for text in self.texts(example)])
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        return [{"input_ids": np.asarray([*ids, *end], np.int32)} for ids in texts]

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        windows = batches.windows(cache, length=self.length, batch_size=batch_size, seed=seed, apart=self.apart)
        n_bytes = tokenizer.byte_lengths.astype(np.float32)
        return windows.map(lambda batch: {**batch, "bytes": (n_bytes[batch["labels"]] * batch["weights"]).sum(1)})

    def sums(self, apply: Apply, batch: Batch) -> Sums:
        inputs = {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids") if name in batch}
        hidden, table, bias, vocab_size = apply(**inputs, logits=False)["unembedding"]
        loss, weight = blocked_cross_entropy(
            hidden,
            table,
            batch["labels"],
            batch["weights"],
            bias=bias,
            vocab_size=vocab_size,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        return {"loss": (loss, weight), "bits_per_byte": (loss / math.log(2), jnp.sum(batch["bytes"]))}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {**means, "perplexity": math.exp(min(means["loss"], 700.0))}
