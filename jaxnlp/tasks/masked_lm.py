"""Masked language modelling, with the next sentence or without (Devlin et al., 2019, section 3.1; Liu et al., 2019).

    loss = - sum_m w_m log p(x_m | the text with words hidden) / sum_m w_m         of the masked words, plus
           - sum_b v_b log p(y_b | A_b, B_b) / sum_b v_b                           y_b: whether B_b is from elsewhere

Each mean is over its own whole batch, whatever devices and microbatches it is cut into. mlm_accuracy and nsp_accuracy
are of the two guesses (the first in evaluation alone), perplexity is exp of the first mean.

Letters: B batch, T length, M masked positions, V vocabulary.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxnlp.data import batches, pretraining
from jaxnlp.data.cache import Cache
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import blocked_cross_entropy, cross_entropy
from jaxnlp.models import heads
from jaxnlp.models.heads import Unembedding
from jaxnlp.tasks.inputs import by_length, finite, parts, read, template
from jaxnlp.tasks.task import Apply, Batch, Record, Samples, Sums, Table, require, whole

# A sentence ends after a full stop, question or exclamation mark with white space behind it, and at a blank line; the
# white space is the next one's, so that together they are the text.
SENTENCE = re.compile(r"(?<=[.!?。！？])(?=\s)|(?<!\s)(?=\s*\n\s*\n)")
SHOWN = 256  # texts of the validation part that `show` reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Rows of `length` tokens: two texts where the next sentence is learned, or else one that runs on."""

    text: str = "text"  # the feature that holds the text
    document: str | None = None  # of consecutive examples of one document, the feature that says which; None: one each
    length: int = 128  # tokens a row, special ones too
    next_sentence: bool = True
    mask_rate: float = 0.15  # of the tokens
    whole_words: bool = False  # hide all pieces of a word, or none
    short_rate: float = 0.1  # of pairs that are made shorter, so that short ones are known too
    top: int = 5  # words that `predict` gives for each mask

    def __post_init__(self):
        whole("task.length", self.length, 3)
        whole("task.top", self.top, 1)
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"task.mask_rate={self.mask_rate}; allowed: 0 < mask_rate < 1")
        if not 0 <= self.short_rate <= 1:
            raise ValueError(f"task.short_rate={self.short_rate}; allowed: 0 to 1")

    @property
    def heads(self) -> tuple[heads.MaskedLM | heads.NextSentence, ...]:
        return (heads.MaskedLM(), heads.NextSentence()) if self.next_sentence else (heads.MaskedLM(),)

    @property
    def losses(self) -> dict[str, str]:
        """The sums whose means training lowers together, and the batch's arrays that hold their weights."""
        return {"mlm_loss": "weights"} | ({"nsp_loss": "next_sentence_weights"} if self.next_sentence else {})

    @property
    def asked(self) -> float:
        return pretraining.n_slots(self.length, self.mask_rate) / self.length

    @property
    def key(self) -> dict[str, Any]:
        own = {"text": self.text, "document": self.document, "next_sentence": self.next_sentence}
        return {"task": "masked_lm", **own}

    def check(self, model: nn.Module) -> None:
        """ValueError of a model that cannot see what comes after a word, or cannot tell two texts apart."""
        if hasattr(model, "init_cache"):
            raise ValueError(f"the model {type(model).__name__} sees no word's right; allowed with MaskedLM: BERT")
        if self.next_sentence and model.config.n_segments == 1:
            raise ValueError("model.n_segments=1 with task.next_sentence=True; allowed: 2, or 0 for no segments")

    def texts(self, example: Mapping[str, Any]) -> Sequence[str]:
        return (require(example, self.text, "text"),)

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """ "Ab. C" -> {"input_ids": [5, 6, 7], "sentence_starts": [1, 0, 1]}, or without the next sentence, where 3 is
        [SEP], {"input_ids": [5, 6, 7, 3]}. Examples of a document that the cache gives apart, 256 at a time, are two.
        """
        documents = [
            [sentence for example in document for sentence in SENTENCE.split(self.texts(example)[0])]
            for document in self._documents(examples)
        ]
        encoded = iter(tokenizer.encode_batch([sentence for document in documents for sentence in document]))
        records = []
        for document in documents:
            sentences = [ids for ids in itertools.islice(encoded, len(document)) if ids]
            if not sentences:
                continue
            ids = np.concatenate(sentences).astype(np.int32)
            if self.next_sentence:
                starts = np.zeros(len(ids), np.uint8)
                starts[np.cumsum([0, *map(len, sentences[:-1])])] = 1
                records.append({"input_ids": ids, "sentence_starts": starts})
            else:
                records.append({"input_ids": np.append(ids, np.int32(tokenizer.eos_id))})
        return records

    def _documents(self, examples: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
        if self.document is None:
            return [[example] for example in examples]
        return [
            list(group) for _, group in itertools.groupby(examples, lambda e: require(e, self.document, "document"))
        ]

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        form = template(tokenizer)
        room = form.room(self.length, 2 if self.next_sentence else 1)
        options = {"length": self.length, "room": room, "join": form.join, "batch_size": batch_size, "seed": seed}
        options["pad_id"] = tokenizer.pad_id
        if self.next_sentence:
            texts = pretraining.next_sentences(cache, short_rate=self.short_rate, **options)
        else:
            texts = pretraining.full_sentences(cache, **options)
        return pretraining.masked(
            texts, vocabulary(tokenizer), rate=self.mask_rate, whole_words=self.whole_words, seed=seed
        )

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        M = pretraining.n_slots(self.length, self.mask_rate)
        tokens, masked, each = (rows, self.length), (rows, M), (rows,)
        names = {
            **dict.fromkeys(("input_ids", "attention_mask"), (tokens, jnp.int32)),
            **dict.fromkeys(("masked_positions", "labels"), (masked, jnp.int32)),
            "weights": (masked, jnp.float32),
        }
        if self.next_sentence:
            names["token_type_ids"] = tokens, jnp.int32
            names |= {"next_sentence_labels": (each, jnp.int32), "next_sentence_weights": (each, jnp.float32)}
        return {name: jax.ShapeDtypeStruct(*one) for name, one in names.items()}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        out = apply(**read(batch), masked_positions=batch["masked_positions"], logits=False)
        words: Unembedding = out["unembedding"]
        labels, weights = batch["labels"], batch["weights"]
        loss, weight = blocked_cross_entropy(
            words.hidden, words.table, labels, weights, bias=words.bias, vocab_size=words.vocab_size
        )
        sums = {"mlm_loss": (loss, weight)}
        if not training:  # it takes a second product with the vocabulary
            sums["mlm_accuracy"] = jnp.sum(weights * (_best(words) == labels)), weight
        if self.next_sentence:
            logits = out["seq_relationship_logits"]
            labels, weights = batch["next_sentence_labels"], batch["next_sentence_weights"]
            sums["nsp_loss"] = cross_entropy(logits, labels, weights)
            sums["nsp_accuracy"] = jnp.sum(weights * (logits.argmax(-1) == labels)), jnp.sum(weights)
        return sums

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        loss = sum(means[name] for name in self.losses)
        return {"loss": loss, **means, "perplexity": math.exp(min(means["mlm_loss"], 700.0))}

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """{"filled", "masks": [[{"token", "score"}, …], …]} for each text, as "Paris is in [MASK].": with its masks'
        likeliest words in their place, and for each mask the `top` likeliest, best first.

        The mask is written as the tokenizer names it, [MASK] or <mask>.
        """
        name = tokenizer.token(mask_id(tokenizer))
        texts = [parts(item, (self.text,))[0].split(name) for item in items]
        records = [self._cloze(text, tokenizer) for text in texts]
        results = []
        for text, (scores, ids) in zip(texts, self._guess(model, params, tokenizer, records), strict=True):
            scores, ids = finite(scores[: len(text) - 1], name.join(text)), ids[: len(text) - 1]
            masks = [
                [{"token": tokenizer.spell(i), "score": score} for score, i in zip(*row, strict=True)]
                for row in zip(scores.tolist(), ids.tolist(), strict=True)
            ]
            filled = text[0] + "".join(mask[0]["token"] + rest for mask, rest in zip(masks, text[1:], strict=True))
            results.append({"filled": filled, "masks": masks})
        return results

    def _cloze(self, text: Sequence[str], tokenizer: Tokenizer) -> Record:
        """What lies between the masks of a text, as the model reads it; a mask takes the white space before it in."""
        name, form = tokenizer.token(mask_id(tokenizer)), template(tokenizer)
        if len(text) == 1:
            raise ValueError(f"found {text[0]!r} to predict; allowed: a text with {name} in it")
        ids = [i for part in text[:-1] for i in (*tokenizer.encode(part.rstrip()), mask_id(tokenizer))]
        ids += tokenizer.encode(text[-1])
        if len(ids) > (room := form.room(self.length, 1)):
            raise ValueError(f"a text of {len(ids)} tokens to predict; allowed: at most {room} ({self.length=})")
        return form.join(ids)

    def _guess(self, model, params, tokenizer, records: Sequence[Record]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each record's masks, in order, the `top` likeliest tokens: probabilities and ids, [M and more, top]."""

        def run(batch: Batch) -> tuple[Array, Array]:
            masks = batch["input_ids"] == tokenizer.mask_id
            slots = 1 << (int(masks.sum(1).max()) - 1).bit_length()  # few sizes, each of which compiles once
            places = np.argsort(~masks, axis=1, kind="stable")[:, :slots].astype(np.int32)
            return _likeliest(
                model, self.top, tokenizer.vocab_size, params, {**read(batch), "masked_positions": places}
            )

        return by_length(run, records, pad_id=tokenizer.pad_id, max_length=self.length)

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """How many hidden words of unseen texts are guessed, and some of them."""
        hidden = list(self._hidden([examples[i] for i in range(min(SHOWN, len(examples)))], tokenizer))
        if not hidden:
            return ()
        found = self._guess(model, params, tokenizer, [{"input_ids": one.input_ids} for one in hidden])
        guesses = [ids[: len(one.labels)] for one, (_, ids) in zip(hidden, found, strict=True)]
        hits = np.concatenate([ids == one.labels[:, None] for one, ids in zip(hidden, guesses, strict=True)])
        shares = round(float(hits[:, 0].mean()), 4), round(float(hits.any(1).mean()), 4)
        columns = ("hidden words", "guessed", f"among the first {self.top}")
        samples = tuple(_sample(one, ids[:, 0], tokenizer) for one, ids in zip(hidden[:5], guesses))
        table = Table("Words hidden in unseen texts", columns, ((len(hits), *shares),))
        return table, Samples("Guesses of hidden words", samples)

    def _hidden(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Iterator[pretraining.Hidden]:
        """The documents' beginnings with words hidden, all by the mask."""
        form, known = template(tokenizer), vocabulary(tokenizer)
        most = pretraining.n_slots(self.length, self.mask_rate)
        for i, record in enumerate(self.encode(examples, tokenizer)):
            ids = form.fit(record["input_ids"], length=self.length)["input_ids"]
            rng = np.random.default_rng(i)
            found = pretraining.hide(ids, known, rate=self.mask_rate, whole_words=self.whole_words, rng=rng, most=most)
            if len(found.positions):
                ids[found.positions] = known.mask_id
                yield found._replace(input_ids=ids)


def _sample(hidden: pretraining.Hidden, guesses: np.ndarray, tokenizer: Tokenizer) -> tuple[str, str]:
    """The text with its masks, and what was guessed for each."""
    between = np.split(hidden.input_ids, np.sort([*hidden.positions, *(hidden.positions + 1)]))[::2]
    text = f" {tokenizer.token(mask_id(tokenizer))} ".join(tokenizer.decode(part.tolist()) for part in between)
    spell = tokenizer.spell
    both = zip(guesses.tolist(), hidden.labels.tolist(), strict=True)
    return text, ", ".join(spell(i) if i == was else f"{spell(i)} (was {spell(was)})" for i, was in both)


def vocabulary(tokenizer: Tokenizer) -> pretraining.Vocabulary:
    special = np.zeros(tokenizer.vocab_size, bool)
    special[list(tokenizer.special_ids)] = True
    return pretraining.Vocabulary(mask_id(tokenizer), special, tokenizer.begins_word)


def mask_id(tokenizer: Tokenizer) -> int:
    if tokenizer.mask_id is None:
        raise ValueError("the tokenizer has no [MASK] or <mask>; allowed: WordPiece(…), or a file of one that has it")
    return tokenizer.mask_id


def _best(words: Unembedding) -> Int[Array, "B M"]:
    """The likeliest word at each place, from the logits of one place of each row at a time."""
    return jax.lax.map(
        lambda hidden: words._replace(hidden=hidden[:, None]).logits()[:, 0].argmax(-1), words.hidden.swapaxes(0, 1)
    ).T


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _likeliest(
    model: nn.Module, k: int, n_words: int, params: Mapping[str, Any], inputs: Batch
) -> tuple[Float[Array, "B M k"], Int[Array, "B M k"]]:
    """The model may have room for more words than there are."""
    logits = model.apply({"params": params}, **inputs, logits=False)["unembedding"].logits()
    scores, ids = jax.lax.top_k(jax.nn.softmax(logits)[..., :n_words], k)
    return scores, ids
