"""Choosing among several texts the one that a context goes with (Radford et al., 2018, section 3.3 and figure 1).

    s_c = w' h(context, choice_c)          one number a choice, from the body's state of the two as a pair
    p(c | x) = exp(s_c) / sum_d exp(s_d)   over the example's own choices, however many there are
    loss = - sum_b w_b log p(y_b | x_b) / sum_b w_b

As BERT reads SWAG (Devlin et al., 2019, section 4.4) and transformers' BertForMultipleChoice, each choice is a row of
its own: a batch of B examples is B C rows for the body.

Letters: B batch, C choices, T length.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import hits
from jaxnlp.models import heads
from jaxnlp.tasks.inputs import chances, fitted, listed, several, stacked, template
from jaxnlp.tasks.labelled import Labelled
from jaxnlp.tasks.task import Apply, Batch, Record, Samples, Sums, Table, number, require, whole

ABSENT = float(np.finfo(np.float32).min)  # a choice's logit that is as good as -inf, and no NaN where all are absent


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(Labelled):
    """Which of an example's choices is right."""

    context: str = "context"  # the feature that holds what all choices go with
    choices: str | tuple[str, ...] = "choices"  # the feature that holds the list of them, or a feature for each
    question: str | None = None  # the feature whose text every choice begins with, as SWAG's second sentence
    label: str = "label"  # the right choice's number, from 0; -1: unlabelled
    n_choices: int = 4  # in a list to learn from at most: fewer are filled up, at the same cost; `predict` takes any
    length: int = 128  # tokens of the context with a choice at most, special ones too
    n_shown: int = 8  # examples in the report

    def __post_init__(self):
        super().__post_init__()
        for name, low in (("n_choices", 1), ("length", 5), ("n_shown", 0)):
            whole(f"task.{name}", getattr(self, name), low)
        if not self.choices:
            raise ValueError(f"task.choices={self.choices!r}; allowed: a feature that holds a list, or one and more")

    @property
    def head(self) -> heads.Choice:
        return heads.Choice()

    @property
    def rows(self) -> int:
        """C of every batch."""
        return self.n_choices if isinstance(self.choices, str) else len(self.choices)

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.rows,)

    @property
    def key(self) -> dict[str, Any]:
        fields = ("context", "choices", "question", "label", "length")
        return {"task": "multiple_choice", "rows": self.rows} | {name: getattr(self, name) for name in fields}

    def texts(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        context, choices = self._sides(example)
        return (context, *choices)

    def options(self, example: Mapping[str, Any]) -> list[str]:
        """The choices, without the question."""
        if isinstance(self.choices, str):
            found = several(example, self.choices, "choices")
        else:
            found = [require(example, feature, "choices") for feature in self.choices]
        if other := [text for text in found if not isinstance(text, str)]:
            raise ValueError(f"found {other[0]!r} among the choices; allowed: texts")
        return found

    def _sides(self, example: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The context, and the choices with the question before each."""
        context, options = require(example, self.context, "context"), self.options(example)
        if not options:
            raise ValueError(f"{_name(context)}: no choices; allowed: 1 and more")
        if self.question is not None:
            question = require(example, self.question, "question")
            options = [f"{question} {option}" for option in options]
        return context, options

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """{"context": "a", "choices": ["b c", "d"], "label": 1}, of three choices at most, [CLS] being 2, [SEP] 3:

        input_ids  2 5 3 6 7 3      token_type_ids  0 0 0 1 1 1      attention_mask  1 1 1 1 1 1      label  1
                   2 5 3 8 3 0                      0 0 0 1 1 0                      1 1 1 1 1 0
                   0 0 0 0 0 0                      0 0 0 0 0 0                      0 0 0 0 0 0
        """
        labels, sides = [self.index(example) for example in examples], [self._sides(example) for example in examples]
        for context, choices in sides:
            if len(choices) > self.rows:
                raise ValueError(
                    f"{_name(context)}: {len(choices)} choices; allowed: at most task.n_choices={self.rows}"
                )
        found = zip(self._records(sides, tokenizer, quiet=True), labels, strict=True)
        return [
            {**stacked(records, self.rows, tokenizer.pad_id), "label": np.int32(label)}
            for records, label in found
            if label >= 0
        ]

    def index(self, example: Mapping[str, Any]) -> int:
        """The right choice's number, or -1 of an example without, as TFDS marks it: such examples are left out."""
        value, n = require(example, self.label, "label", none=True), len(self.options(example))
        if not -1 <= number(value) < n or number(value) % 1:
            name = _name(require(example, self.context, "context"))
            raise ValueError(f"{name}: {self.label}={value!r}; allowed: -1 … {n - 1}, as it has {n} choices")
        return int(value)

    def _records(
        self, sides: Sequence[tuple[str, list[str]]], tokenizer: Tokenizer, *, quiet: bool = False
    ) -> list[list[Record]]:
        """Of each context and its choices: what the model reads of each choice."""
        contexts = tokenizer.encode_batch([context for context, _ in sides])
        choices = iter(tokenizer.encode_batch([choice for _, choices in sides for choice in choices]))
        pairs = [(context, next(choices)) for context, (_, texts) in zip(contexts, sides, strict=True) for _ in texts]
        records = iter(fitted(pairs, template(tokenizer), self.length, quiet=quiet))
        return [[next(records) for _ in texts] for _, texts in sides]

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        return super().shapes(rows) | {"labels": jax.ShapeDtypeStruct((rows,), jnp.int32)}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        each, beside = self.measured(apply, batch)
        logits = jnp.where(batch["attention_mask"].any(-1), each, ABSENT)
        return hits(logits, batch["labels"], batch["weights"]) | beside

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """The accuracy, and the first choices."""
        known = [(e, y) for e in map(examples.__getitem__, range(len(examples))) if (y := self.index(e)) >= 0]
        if not known:
            return ()
        found = self.predict(model, params, tokenizer, [example for example, _ in known])
        accuracy = np.mean([one["choice"] == y for one, (_, y) in zip(found, known, strict=True)])
        shown = zip(known[: self.n_shown], found, strict=False)
        texts = tuple((e[self.context], f"{one['text']}\n({self.options(e)[y]})") for (e, y), one in shown)
        table = Table("Scores", ("metric", "value"), (("accuracy", round(float(accuracy), 4)),))
        return table, Samples("Choices (and the right ones)", texts)

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """{"choice", "text", "score", "scores"} for each item: the likeliest choice, and the probability of each.

        Items are examples without labels, {"context": "…", "choices": ["…", "…"]} by the features' names, or what these
        hold in order, ("…", ["…", "…"]), with a question between them where there is one. There may be any number of
        choices.
        """
        items = [self._item(item) for item in items]
        records = self._records([self._sides(item) for item in items], tokenizer)
        results = []
        for item, logits in zip(items, self.logits(model, params, tokenizer, records), strict=True):
            scores = chances(logits, item)
            best = int(scores.argmax())
            text = self.options(item)[best]
            results.append({"choice": best, "text": text, "score": float(scores[best]), "scores": scores.tolist()})
        return results

    def _item(self, item: Any) -> Mapping[str, Any]:
        """Something to predict under the features' names."""
        if isinstance(item, Mapping):
            return item
        names = [self.context, *([] if self.question is None else [self.question])]
        given = list(item) if listed(item) else []
        if len(given) != len(names) + 1 or not listed(given[-1]):
            raise ValueError(
                f"found {item!r} to predict; allowed: {', '.join(names)} and a list of choices, or by name"
            )
        *texts, choices = given
        if isinstance(self.choices, str):
            return dict(zip(names, texts, strict=True)) | {self.choices: choices}
        if len(choices) != len(self.choices):
            raise ValueError(f"{_name(texts[0])}: {len(choices)} choices; allowed: {len(self.choices)}")
        return dict(zip((*names, *self.choices), (*texts, *choices), strict=True))


def _name(context: str) -> str:
    return f"the example with context {context[:80]!r}"
