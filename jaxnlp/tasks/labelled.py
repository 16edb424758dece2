"""Examples with a label, each read in a row or in several; and the language model's loss beside the label's.

    L_3 = L_2 + lambda L_1                                                      Radford et al., 2018, eq. 5
    L_2   the task's own loss, a mean over examples                             "loss"
    L_1 = - sum_t w_t log p(x_t | x_<t) / sum_t w_t, over all tokens read       "lm_loss"

Each mean is over its own whole batch; the paper has sums, and its authors' code a mean over each row first.

Letters: B batch, C rows of an example, T length.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxnlp.data import batches
from jaxnlp.data.cache import Cache
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import blocked_cross_entropy
from jaxnlp.models import heads
from jaxnlp.tasks.inputs import BARE, by_length, fitted, outputs, parts, read, stacked, template
from jaxnlp.tasks.task import Apply, Batch, Record, Sums, require

SECOND = ("text_pair", "pair")  # what a second text to predict may be called whatever the task calls it
LIKE_SECOND = (*SECOND, "text2", "sentence2", "question2", "hypothesis")  # not passed over in silence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """What tasks have in common that learn one label of an example."""

    label: str = "label"  # the feature to learn
    length: int = 256  # tokens a row at most, special ones too: a longer text keeps its beginning
    buckets: tuple[int, ...] | None = None  # padded lengths, so that short texts cost less
    auxiliary: float = 0.0  # lambda, the weight of the language model's loss: 0.5 in the paper; of decoders alone

    def __post_init__(self):
        if not self.auxiliary >= 0:
            raise ValueError(f"task.auxiliary={self.auxiliary}; allowed: 0 and more")

    @property
    def head(self) -> heads.Head:
        """What gives the label."""
        raise NotImplementedError

    @property
    def axes(self) -> tuple[int, ...]:
        """(C,) where an example is read in C rows, () where in one."""
        return ()

    @property
    def heads(self) -> tuple[heads.Head, ...]:
        return (heads.LanguageModel(), self.head) if self.auxiliary else (self.head,)

    @property
    def losses(self) -> dict[str, str]:
        """The sums whose means training lowers together, and the batch's arrays that hold their weights."""
        return {"loss": "weights"} | ({"auxiliary": "next_weights"} if self.auxiliary else {})

    def check(self, model: nn.Module) -> None:
        """ValueError of a model that sees the words which it would learn to say."""
        if self.auxiliary and not hasattr(model, "init_cache"):
            name = type(model).__name__
            raise ValueError(f"task.auxiliary={self.auxiliary} with the model {name}, no decoder; allowed: 0, or a GPT")

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        if full := int((cache.lengths >= self.length).sum()):
            count = f"{full:,} of {len(cache):,} examples"
            print(f"{count} fill {self.length} tokens; what was longer is cut", file=sys.stderr)
        options = {"batch_size": batch_size, "max_length": self.length, "buckets": self.buckets, "seed": seed}
        made = batches.padded(cache, pad_id=tokenizer.pad_id, **options)
        return batches.Mapped(made, with_next) if self.auxiliary else made

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        tokens = (rows, *self.axes, self.length)
        ids = ("input_ids", "attention_mask") + ("next_ids",) * bool(self.auxiliary)
        shapes = {name: jax.ShapeDtypeStruct(tokens, jnp.int32) for name in ids}
        shapes |= {name: jax.ShapeDtypeStruct((rows,), jnp.float32) for name in ("labels", "weights")}
        return shapes | ({"next_weights": jax.ShapeDtypeStruct(tokens, jnp.float32)} if self.auxiliary else {})

    def measured(self, apply: Apply, batch: Batch) -> tuple[Float[Array, "B C *n"], Sums]:
        """The head's logits for each row, and the weighted loss of the language model, if there is one."""
        B, T = len(batch["weights"]), batch["input_ids"].shape[-1]
        flat = {name: x.reshape(-1, T) for name, x in batch.items() if x.ndim > 1}  # [B C, T]
        out = apply(**read(flat), logits=False)
        logits = out["mc_logits" if "mc_logits" in out else "logits"]
        logits = logits.reshape(B, -1, *logits.shape[1:])
        if not self.auxiliary:
            return logits, {}
        hidden, table, bias, vocab_size = out["unembedding"]
        total, weight = blocked_cross_entropy(
            hidden, table, flat["next_ids"], flat["next_weights"], bias=bias, vocab_size=vocab_size
        )
        return logits, {"auxiliary": (self.auxiliary * total, weight)}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """ "loss" is the task's own, so that it says the same with the other beside it and without."""
        if not self.auxiliary:
            return dict(means)
        own = {name: value for name, value in means.items() if name != "auxiliary"}
        return own | {"lm_loss": means["auxiliary"] / self.auxiliary}

    def logits(
        self,
        model: nn.Module,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        examples: Sequence[Sequence[Record]],
    ) -> list[Float[np.ndarray, "C *n"]]:
        """What the head says of each example's rows, however many; the words' logits are left out."""
        run = functools.partial(outputs, model.clone(heads=(self.head,)), params)
        every = [record for records in examples for record in records]
        found = iter(by_length(run, every, pad_id=tokenizer.pad_id, max_length=self.length))
        return [np.stack([next(found)["logits"] for _ in records]) for records in examples]


def with_next(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the token after each, and whether it counts: padding and rows of weight 0 do not."""
    ids, mask, weights = (batch[name] for name in ("input_ids", "attention_mask", "weights"))
    after, counts = np.zeros_like(ids), np.zeros(ids.shape, np.float32)
    after[..., :-1] = ids[..., 1:]
    counts[..., :-1] = mask[..., 1:] * weights.reshape(-1, *(1,) * (ids.ndim - 1))
    return {**batch, "next_ids": after, "next_weights": counts}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts(Labelled):
    """One label of a text, or of a pair of texts."""

    text: str = "text"  # the feature that holds the text
    pair: str | None = None  # the feature that holds a second text
    symmetric: bool = False  # a pair is read in both orders, as neither text comes first (Radford et al., 2018, 3.3)
    ends: bool = True  # special tokens stand round the texts (see inputs.py); False: none, as in transformers' GPTs

    def __post_init__(self):
        super().__post_init__()
        if self.symmetric and self.pair is None:
            raise ValueError("task.symmetric=True with task.pair=None; allowed: a feature that holds the second text")

    @property
    def axes(self) -> tuple[int, ...]:
        return (2,) if self.symmetric else ()

    @property
    def key(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("text", "pair", "label", "length", "symmetric", "ends")}
        return {"task": type(self).__name__.lower(), **own}

    @property
    def names(self) -> dict[str, str]:
        """The task's fields that name texts, and the features that they name."""
        return {"text": self.text} | ({} if self.pair is None else {"pair": self.pair})

    def texts(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(require(example, feature, field) for field, feature in self.names.items())

    def records(self, items: Sequence[Any], tokenizer: Tokenizer, *, quiet: bool = False) -> list[list[Record]]:
        """Of each text, or pair of texts, a record for each row. Where no pair is named, both may come."""
        texts = [parts(item, self._names(item)) for item in items]
        ids = iter(tokenizer.encode_batch([text for item in texts for text in item]))
        sides = [[next(ids) for _ in item] for item in texts]
        form = template(tokenizer) if self.ends else BARE
        orders = [fitted(sides, form, self.length, quiet=quiet)]
        if self.symmetric:
            orders.append(fitted([item[::-1] for item in sides], form, self.length, quiet=True))
        return [list(records) for records in zip(*orders, strict=True)]

    def _names(self, item: Any) -> tuple[str, ...]:
        """What of something to predict is read; ValueError of a second text that is not."""
        names = tuple(self.names.values())
        if not isinstance(item, Mapping):
            two = self.pair is None and isinstance(item, list | tuple) and len(item) == 2
            return (*names, "a second") if two else names
        given = [name for name in SECOND if name not in names and isinstance(item.get(name), str)]
        if given and (self.pair is None or item.get(self.pair) is None):
            names = (self.text, given[0])
        if unread := [name for name in LIKE_SECOND if name not in names and isinstance(item.get(name), str)]:
            allowed = f"the texts {', '.join(names)}, a second as {self.pair or SECOND[0]}"
            raise ValueError(f"found {unread[0]!r} in {item!r} to predict; allowed: {allowed}")
        return names

    def features(self, items: Sequence[Any], tokenizer: Tokenizer, *, quiet: bool = False) -> list[Record]:
        """As `records`, those of each item as one."""
        found = self.records(items, tokenizer, quiet=quiet)
        if self.symmetric:
            return [stacked(records, 2, tokenizer.pad_id) for records in found]
        return [record for (record,) in found]
