"""Zero- and few-shot: a language model answers from its prompt alone (Brown et al., 2020, section 2.4 and appendix G).

    description     Translate Korean to English:⏎
    a shot          안녕 => hello⏎                  prompt, joint and answer of one of the pool; `shots` of them
    the question    고마워 =>                       prompt of the example that is evaluated

The answer is the likeliest of the choices, or what is generated greedily up to a stop string. A choice y after x scores

    none             log p(y | x)
    token            log p(y | x) / tokens of y
    byte             log p(y | x) / UTF-8 bytes of y, its joint not counted
    unconditional    log p(y | x) - log p(y | "Answer:")

Every question has shots of its own, as in the paper: the first of a permutation of the pool that is a function of the
seed and of the question's text alone. So a question's shots do not depend on what else is asked, those of a smaller
`shots` are the first of a larger one's, and a question is never among its own shots. Of shots that do not fit the
model's positions the first ones are left out, as the paper takes as many as the window holds; what remained is counted.

Differs from the paper in: greedy decoding instead of a beam of 4.
"""

import bisect
import dataclasses
import itertools
import re
import string
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from flax import linen as nn

from jaxnlp import metrics
from jaxnlp.data.batches import generator
from jaxnlp.data.sources import Examples, open_source
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.tasks import summarization, translation
from jaxnlp.tasks.generation import generate, unrolled
from jaxnlp.tasks.inputs import ROWS, parts
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.scoring import Scored, log_likelihoods
from jaxnlp.tasks.task import number, require, whole

Normalize = Literal["none", "token", "byte", "unconditional"]
Measure = Literal["squad", "bleu", "rouge"]


class Prompt(NamedTuple):
    """What the model reads of a question."""

    text: str
    shots: int  # that are in it


class _Formatter(string.Formatter):
    """As str.format, of what a person would write down: not of None, nor of bytes."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None or isinstance(value, bytes):
            raise ValueError(f"found {value!r} for a text; allowed: a str, or a number")
        return super().format_field(value, format_spec)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompting:
    """A task that is only evaluated: `run.predict(items, task=…)`, `evaluate(run, task=…, source=…)`."""

    prompt: str  # of an example's features, as str.format reads it: "Review: {sentence}\nSentiment:"
    label: str = "label"  # the right choice's number, -1: unlabelled; without choices the answer, or a list of them
    choices: str | tuple[str, ...] | None = None  # what classes are called, or a feature that lists; None: generated
    joint: str = " "  # between prompt and answer; the model reads it as the answer's beginning
    description: str = ""  # before all, with the white space that ends it
    separator: str = "\n\n"  # after each shot
    shots: int = 0
    pool: Any = dataclasses.field(default=None, metadata={"named": True})  # the source that shots are drawn from
    seed: int = 0
    normalize: Normalize = "token"  # the paper's for most of its sets
    answer_context: str = "Answer:"  # of "unconditional"
    stop: tuple[str, ...] = ("\n",)  # what ends a generated answer
    max_new_tokens: int = 32  # of a generated answer
    measure: Measure = "squad"  # of generated answers; BLEU and ROUGE take the first of several references

    heads: ClassVar[tuple[()]] = ()

    def __post_init__(self):
        for name, low in (("shots", 0), ("seed", 0), ("max_new_tokens", 1)):
            whole(f"task.{name}", getattr(self, name), low)
        for name, allowed in (("normalize", get_args(Normalize)), ("measure", get_args(Measure))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"task.{name}={getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.shots and self.pool is None:
            raise ValueError(f"task.shots={self.shots} without a pool to draw from; allowed: 0, or a pool")
        if self.choices == ():
            raise ValueError("task.choices=(); allowed: None, a feature that holds a list, or one and more")
        if isinstance(self.choices, tuple) and len(set(self.choices)) < len(self.choices):
            raise ValueError(f"task.choices={self.choices}; allowed: each once")
        try:
            if not all(name and not name.isdigit() for name in self._names()):
                raise ValueError("a feature without a name")
        except ValueError as error:
            raise ValueError(f"task.prompt={self.prompt!r}: {error}; allowed: what str.format reads") from error

    # ------------------------------------------------------------------------------------------------- an example

    def question(self, example: Mapping[str, Any]) -> str:
        """{"sentence": "Good."} -> "Review: Good.\\nSentiment:"."""
        try:
            return _Formatter().vformat(self.prompt, (), example)
        except KeyError as error:
            raise ValueError(
                f"task.prompt={self.prompt!r} asks for {error}, which the example has not; allowed:"
                f" {', '.join(sorted(example))}"
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"task.prompt={self.prompt!r} of the example {dict(example)!r}: {error}") from error

    def options(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        """The choices' texts; ValueError of what is no list of texts, an empty one, or none."""
        given = require(example, self.choices, "choices") if isinstance(self.choices, str) else self.choices
        listed = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
        if not listed or not all(isinstance(choice, str) for choice in given):
            raise ValueError(f"{self.choices}={given!r} in the data; allowed: a list of texts")
        for i, choice in enumerate(given):
            if not choice.strip():
                raise ValueError(f"choice {i} of {self.question(example)[-80:]!r} is empty; allowed: a text")
        if not len(given):
            raise ValueError(f"{self.question(example)[-80:]!r} has no choices; allowed: one and more")
        return tuple(given)

    def references(self, example: Mapping[str, Any]) -> list[str]:
        """The right answers' texts, the first of which a shot shows; none of an unlabelled example."""
        if self.choices is not None:
            right = self.right(example)
            return [self.options(example)[right]] if right >= 0 else []
        value = self._labelled(example)
        texts = list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{self.label}={value!r} in the data; allowed: an answer's text, or a list of such")
        return texts

    def right(self, example: Mapping[str, Any]) -> int:
        """The right choice's number; -1 of an unlabelled example."""
        value, n = self._labelled(example), len(self.options(example))
        if not -1 <= number(value) < n or number(value) % 1:
            raise ValueError(f"{self.label}={value!r} in the data; allowed: -1 … {n - 1}, a choice's number")
        return int(value)

    def _labelled(self, example: Mapping[str, Any]) -> Any:
        """The label; "answers/text" lies within another feature."""
        value: Any = example
        for name in self.label.split("/"):
            value = require(value, name, "label")
        return value

    def drawn(self, question: str, pool: Examples | None) -> list[str]:
        """The shots of a question, prompt and answer each."""
        if not self.shots:
            return []
        if self.shots > len(pool):
            raise ValueError(f"task.shots={self.shots} from a pool of {len(pool)}; allowed: at most {len(pool)}")
        shots: list[str] = []
        for i in generator(self.seed, zlib.crc32(question.encode())).permutation(len(pool)).tolist():
            prompt, right = self.question(pool[i]), self.references(pool[i])
            if right and prompt != question:
                shots.append(prompt + self.joint + right[0])
            if len(shots) == self.shots:
                return shots
        raise ValueError(
            f"task.shots={self.shots}, but of the pool's {len(pool)} only {len(shots)} have an answer and are not the"
            f" question {question[-80:]!r}; allowed: at most {len(shots)}"
        )

    def prompted(
        self, example: Mapping[str, Any], pool: Examples | None, tokenizer: Tokenizer, n_positions: int
    ) -> Prompt:
        """The prompt, with as many of the shots, the last of them, as leave room for the answer."""
        question = self.question(example)
        shots = self.drawn(question, pool)
        room = n_positions - self._answer_tokens(example, tokenizer)
        if room < 1:
            raise ValueError(
                f"the answer to {question[-80:]!r} has up to {n_positions - room} tokens; allowed: fewer than the"
                f" model's {n_positions} positions"
            )

        def text(n_dropped: int) -> str:
            return self.description + "".join(shot + self.separator for shot in shots[n_dropped:]) + question

        def fits(n_dropped: int) -> bool:
            return len(tokenizer.encode(text(n_dropped))) <= room

        n_dropped = 0 if fits(0) else bisect.bisect_left(range(len(shots) + 1), True, key=fits)
        if n_dropped > len(shots):
            raise ValueError(
                f"{question[-80:]!r} has {len(tokenizer.encode(text(len(shots))))} tokens without any shot; allowed:"
                f" at most {room} of the model's {n_positions} positions, the rest being its answer's"
            )
        return Prompt(text(n_dropped), len(shots) - n_dropped)

    def _answer_tokens(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> int:
        if self.choices is None:
            return self.max_new_tokens
        return max(map(len, tokenizer.encode_batch([self.joint + choice for choice in self.options(example)])))

    # ------------------------------------------------------------------------------------------------------ a model

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """{"choice", "text", "score", "scores", "shots"} of each item, or {"answer", "shots"} where it is generated.

        "scores" are the normalised log likelihoods of all choices, "shots" says how many the prompt had room for. Items
        are examples without labels, {"sentence": "…"} by the features' names, or the prompt's texts in order.
        """
        LanguageModeling().check(model)
        examples = [self._item(item) for item in items]
        pool = None if self.pool is None else open_source(self.pool)
        prompts = [self.prompted(example, pool, tokenizer, model.config.n_positions) for example in examples]
        if self.choices is None:
            answers = self._generated(model, params, tokenizer, [prompt.text for prompt in prompts])
            return [{"answer": text, "shots": prompt.shots} for text, prompt in zip(answers, prompts, strict=True)]
        options = [self.options(example) for example in examples]
        results = []
        for texts, scores, prompt in zip(
            options, self._scores(model, params, tokenizer, prompts, options), prompts, strict=True
        ):
            best = int(np.argmax(scores))
            found = {"choice": best, "text": texts[best], "score": scores[best], "scores": scores}
            results.append({**found, "shots": prompt.shots})
        return results

    def score(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """accuracy over all labelled examples, or the `measure` of what is generated, and the mean of `shots`.

        accuracy_low and accuracy_high, or exact_match_low and exact_match_high, bound Wilson's interval of 95 %.
        """
        examples = [examples[i] for i in range(len(examples))]
        references = [self.references(example) for example in examples]
        kept = [i for i, right in enumerate(references) if right]
        if not kept:
            raise ValueError(f"{len(examples)} examples, none with an answer; allowed: one and more that have one")
        references = [references[i] for i in kept]
        found = self.predict(model, params, tokenizer, [examples[i] for i in kept])
        shots = {"shots": sum(one["shots"] for one in found) / len(found)}
        if self.choices is not None:
            right = sum(one["choice"] == self.right(examples[i]) for one, i in zip(found, kept, strict=True))
            low, high = metrics.interval(right, len(found))
            return {"accuracy": right / len(found), "accuracy_low": low, "accuracy_high": high, **shots}
        answers, first = [one["answer"] for one in found], [texts[0] for texts in references]
        if self.measure == "bleu":
            return translation.scores(answers, first)[0] | shots
        if self.measure == "rouge":
            return summarization.rouge(answers, first)[0] | shots
        scores = metrics.squad(answers, references)
        low, high = metrics.interval(round(scores["exact_match"] * len(found) / 100), len(found))
        return scores | {"exact_match_low": 100 * low, "exact_match_high": 100 * high} | shots

    def _scores(
        self,
        model: nn.Module,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        options: Sequence[tuple[str, ...]],
    ) -> list[list[float]]:
        """The normalised log likelihood of every choice."""
        answers = [[self.joint + text for text in texts] for texts in options]
        pairs = [(prompt.text, texts) for prompt, texts in zip(prompts, answers, strict=True)]
        found = log_likelihoods(model, params, tokenizer, pairs)
        alone: dict[str, float] = {}
        if self.normalize == "unconditional":
            texts = list(dict.fromkeys(itertools.chain(*answers)))
            pairs = [(self.answer_context, texts[i : i + ROWS]) for i in range(0, len(texts), ROWS)]
            scored = itertools.chain(*log_likelihoods(model, params, tokenizer, pairs))
            alone = {text: one.log_prob for text, one in zip(texts, scored, strict=True)}

        def value(one: Scored, text: str) -> float:
            if self.normalize == "token":
                return one.log_prob / one.n_tokens
            if self.normalize == "byte":
                return one.log_prob / len(text.encode())
            return one.log_prob - alone.get(self.joint + text, 0.0)

        return [[value(*pair) for pair in zip(*each, strict=True)] for each in zip(found, options, strict=True)]

    def _generated(self, model: nn.Module, params: Any, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
        """What follows each prompt, without the white space around it; prompts of like lengths go together."""
        lengths = [len(ids) for ids in tokenizer.encode_batch(prompts)]
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        answers = [""] * len(prompts)
        options = {"max_new_tokens": self.max_new_tokens, "temperature": 0, "stop": self.stop}
        model, params = unrolled(model, params)
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            texts = generate(model, params, tokenizer, [prompts[i] for i in rows], **options)
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text.strip()
        return answers

    def _item(self, item: Any) -> Mapping[str, Any]:
        """Something to predict under the features' names."""
        names = list(dict.fromkeys(self._names()))
        return item if isinstance(item, Mapping) else dict(zip(names, parts(item, names), strict=True))

    def _names(self) -> Iterator[str]:
        """The features that the prompt names."""
        named = [name for _, name, _, _ in string.Formatter().parse(self.prompt) if name is not None]
        return (re.split(r"[.\[]", name)[0] for name in named)


EXAMPLES = {  # templates to begin with; `shots` and `pool` make them few-shot
    "ko_en": Prompting(prompt="Translate Korean to English: {ko} =>", label="en", separator="\n", measure="bleu"),
    # Radford et al., 2019, section 3.6, which takes 100 tokens
    "summary": Prompting(prompt="{text}\nTL;DR:", label="summary", max_new_tokens=100, measure="rouge"),
    # Brown et al., 2020, appendix G, of SQuAD
    "squad": Prompting(prompt="Title: {title}\n\nBackground: {context}\n\nQ: {question}\n\nA:", label="answers/text"),
}
