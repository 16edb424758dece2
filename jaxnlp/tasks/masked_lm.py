"""Pretraining of BERT: the masked words from all the others, and whether one text goes on from another.

    loss = sum_b (sum_m w_bm (- log p(y_bm | x_b)) + n_b (- log p(follows_b | x_b))) / sum_b n_b,    n_b = sum_m w_bm

Devlin et al., 2019, 3.1. A row's next sentence counts as much as its masked words do, so that the loss is one sum over
one weight on any number of devices; where all rows ask for as many words it is the sum of the two means, as there.
Without next sentences it is RoBERTa's (Liu et al., 2019). The perplexity is that of the masked words.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnlp.data import batches, pretraining
from jaxnlp.data.cache import Cache
from jaxnlp.data.pretraining import Vocabulary, sentences, slots
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import blocked_cross_entropy, cross_entropy
from jaxnlp.models import heads
from jaxnlp.tasks.inputs import by_length, outputs, parts, read, template
from jaxnlp.tasks.task import Apply, Batch, Record, Samples, Sums, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Documents in, rows of `length` tokens out: see data/pretraining.py."""

    text: str = "text"  # the feature that holds a document
    length: int = 128  # tokens a row, special ones too
    next_sentence: bool = True
    rate: float = 0.15  # of the tokens that are asked for
    whole_words: bool = False  # ask for all tokens of a word together
    short: float = 0.1  # of the pairs, made shorter than the row
    n_best: int = 5  # words that `predict` gives for a mask

    def __post_init__(self):
        least = 3 + pretraining.SHORTEST
        if self.length < least:
            raise ValueError(f"task.length={self.length}; allowed: {least} and more")
        for name, low, high in (("rate", 0, 1), ("short", 0, 1)):
            if not low <= getattr(self, name) <= high or (name == "rate" and not self.rate):
                raise ValueError(f"task.{name}={getattr(self, name)}; allowed: between 0 and 1")

    @property
    def heads(self) -> tuple[heads.Head, ...]:
        return (heads.MaskedLM(), heads.NextSentence()) if self.next_sentence else (heads.MaskedLM(),)

    @property
    def key(self) -> dict[str, Any]:
        return {"task": "masked_lm", "text": self.text, "next_sentence": self.next_sentence}

    def texts(self, example: Mapping[str, Any]) -> Sequence[str]:
        return (require(example, self.text, "text"),)

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """ "ab. c" -> {"input_ids": [5, 6, 9, 7], "starts": [0, 3]}; of no use to next sentences, an end after it."""
        parts = [sentences(self.texts(example)[0]) for example in examples]
        ids = iter(tokenizer.encode_batch([one for document in parts for one in document]))
        end = [] if self.next_sentence else [[tokenizer.eos_id]]
        records = []
        for document in parts:
            rows = [row for row in (next(ids) for _ in document) if row]
            starts = np.cumsum([0, *map(len, rows)])[:-1]
            tokens = [token for row in rows + end for token in row]
            if rows:
                records.append({"input_ids": np.asarray(tokens, np.int32), "starts": np.asarray(starts, np.int32)})
        return records

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        return pretraining.pretraining(
            cache,
            vocabulary(tokenizer),
            length=self.length,
            batch_size=batch_size,
            seed=seed,
            next_sentence=self.next_sentence,
            rate=self.rate,
            whole_words=self.whole_words,
            short=self.short,
        )

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        tokens, masked = (rows, self.length), (rows, slots(self.length, self.rate))
        whole = {"input_ids": tokens, "attention_mask": tokens, "masked_positions": masked, "labels": masked}
        whole |= {"token_type_ids": tokens, "next_sentence_labels": (rows,)} if self.next_sentence else {}
        weights = {"weights": masked} | ({"next_sentence_weights": (rows,)} if self.next_sentence else {})
        shapes = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in whole.items()}
        return shapes | {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in weights.items()}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        """Training takes the blocked loss; outside it the logits are there for the accuracy as well."""
        weights = batch["weights"]
        made = apply(**read(batch), masked_positions=batch["masked_positions"], logits=not training)
        if training:
            hidden, table, bias, vocab_size = made["unembedding"]
            words = blocked_cross_entropy(hidden, table, batch["labels"], weights, bias=bias, vocab_size=vocab_size)
            measured = {"mlm_loss": words}
        else:
            logits = made["prediction_logits" if self.next_sentence else "logits"]
            words = cross_entropy(logits, batch["labels"], weights)
            correct = jnp.sum(weights * (logits.argmax(-1) == batch["labels"]))
            measured = {"mlm_loss": words, "mlm_accuracy": (correct, words[1])}
        if not self.next_sentence:
            return measured | {"loss": words}
        logits, labels = made["seq_relationship_logits"], batch["next_sentence_labels"]
        rows, correct = batch["next_sentence_weights"], logits.argmax(-1) == labels
        measured["nsp_loss"] = cross_entropy(logits, labels, rows)
        measured["nsp_accuracy"] = (jnp.sum(rows * correct), rows.sum())
        following, _ = cross_entropy(logits, labels, rows * weights.sum(1))
        return measured | {"loss": (words[0] + following, words[1])}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {**means, "perplexity": float(np.exp(min(means["mlm_loss"], 700.0)))}

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """What the model puts in the place of a word in the middle of the first texts."""
        mask, texts = tokenizer.token(tokenizer.mask_id), []
        for i in range(min(8, len(examples))):
            words = next(iter(sentences(self.texts(examples[i])[0])), "").split()
            if words:
                texts.append(" ".join([*words[: len(words) // 2], mask, *words[len(words) // 2 + 1 :]]))
        fits = [text for text in texts if len(tokenizer.encode(text)) + 2 <= self.length]
        found = self.predict(model, params, tokenizer, fits)
        shown = tuple(
            (text, ", ".join(f"{token} {score:.2f}" for token, score in one["masks"][0]))
            for text, one in zip(fits, found, strict=True)
        )
        return (Samples("Masked words", shown),) if shown else ()

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, texts: Sequence[str]
    ) -> list[dict[str, Any]]:
        """{"text", "masks"}: the text with its masks filled, and of each mask the best tokens with their probabilities.

        A mask is written by its name, as in "Paris is the [MASK] of France." ValueError for a text without one, or one
        that is longer than the task's rows.
        """
        if tokenizer.mask_id is None:
            raise ValueError("the tokenizer has no token to mask with; allowed: one with [MASK] or <mask>")
        name, form, records = tokenizer.token(tokenizer.mask_id), template(tokenizer), []
        pieces = [parts(text, ("text",))[0].split(name) for text in texts]
        ids = iter(tokenizer.encode_batch([piece for text in pieces for piece in text]))
        for text, around in zip(texts, pieces, strict=True):
            row = next(ids)
            for _ in around[1:]:
                row = [*row, tokenizer.mask_id, *next(ids)]
            if len(around) == 1:
                raise ValueError(f"{text!r} has no {name}; allowed: one or more")
            if len(row) > form.room(self.length, 1):
                raise ValueError(f"{text[:40]!r}… has {len(row)} tokens; allowed: {form.room(self.length, 1)}")
            records.append(form.join(row))
        run = functools.partial(outputs, model, params)
        found, key = [], "prediction_logits" if self.next_sentence else "logits"
        for record, text, one in zip(
            records, pieces, by_length(run, records, pad_id=tokenizer.pad_id, max_length=self.length), strict=True
        ):
            places = np.flatnonzero(record["input_ids"] == tokenizer.mask_id)
            masks = [self._best(one[key][place], tokenizer) for place in places]
            words = [best[0][0] for best in masks] + [""]
            filled = "".join(piece + word for piece, word in zip(text, words, strict=True))
            found.append({"text": filled, "masks": masks})
        return found

    def _best(self, logits: np.ndarray, tokenizer: Tokenizer) -> list[tuple[str, float]]:
        p = np.asarray(jax.nn.softmax(jnp.asarray(logits)), np.float64)
        order = np.argsort(-p, kind="stable")[: self.n_best].tolist()
        return [(tokenizer.spell(i) if i < tokenizer.vocab_size else str(i), float(p[i])) for i in order]


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """ValueError for a tokenizer that cannot mask."""
    if tokenizer.mask_id is None:
        raise ValueError("the tokenizer has no token to mask with; allowed: WordPiece, or one with [MASK] or <mask>")
    tokens = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    special = np.array([i in tokenizer.backend.get_added_tokens_decoder() for i in range(len(tokens))])
    inside = any(token.startswith("##") for token in tokens)
    return Vocabulary(
        cls_id=tokenizer.bos_id,
        sep_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        mask_id=tokenizer.mask_id,
        begins=np.array([not t.startswith("##") if inside else t.startswith(("Ġ", "▁")) for t in tokens]),
        special=special,
    )
