"""Answers that are spans of a context: where one starts and where it ends (Devlin et al., 2019, sections 4.2 and 4.3).

    row    [CLS] question [SEP] window of the context [SEP]
    loss = - (log p_start(s) + log p_end(e)) / 2           means over rows; p is a softmax over all positions of a row

A long context has several windows, each of which begins with the last `stride` tokens of the one before. In a row that
does not hold the whole answer, s and e are the position of [CLS], or where a tokenizer has no such token, of the row's
end. As in BERT and transformers' BertForQuestionAnswering nothing is masked in the softmax, not even padding: rows are
therefore all of one length, unless `buckets` says otherwise. The logits of padding itself are not theirs, as a padded
query attends to nothing here, and to the row's tokens there.

    score of a span = start logit + end logit            s <= e < s + max_answer_tokens, both tokens of the context

The n best of all windows are kept, each span once, with its best window's score and whatever that window's position
(transformers' run_qa.py; Devlin et al. read a token in the one window where it has most context). Their scores'
softmax is what a prediction calls `score`. Where a question may have no answer, the null span, both of whose ends are
[CLS], is among them, with the lowest of its scores in the windows, and is the answer where

    score of the null span - score of the best span > null_threshold

A whole set is scored as the scripts of SQuAD 1.1 and, with `no_answer`, 2.0 do it (see metrics.py).
"""

import bisect
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxnlp import metrics
from jaxnlp.data import batches
from jaxnlp.data.cache import Cache
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.losses import cross_entropy
from jaxnlp.models import heads
from jaxnlp.tasks.inputs import by_length, chances, finite, listed, parts, read, template
from jaxnlp.tasks.task import Apply, Batch, Record, Samples, Sums, Table, require, whole

ITEMS = 256  # questions whose windows are in memory at a time


class Window(NamedTuple):
    """A row, and which tokens of the context stand in it."""

    record: Record
    first: int  # token of the context
    size: int  # tokens of the context
    at: int  # position in the row of the first
    null: int  # position in the row that stands for no answer here


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanQA:
    """A question, a context, and the context's span that answers it."""

    question: str = "question"  # the feature that holds the question
    context: str = "context"  # the feature that holds the text to look in
    # The feature that holds {"text": [...], "answer_start": [...]}, in characters; of several, the first is learned
    answers: str = "answers"
    length: int = 384  # tokens of a row, special ones too; as all numbers here, BERT's for SQuAD
    stride: int = 128  # tokens that two windows have in common, as in transformers; BERT's is from start to start
    max_question_tokens: int = 64  # a longer question keeps its beginning
    max_answer_tokens: int = 30  # of what is predicted
    n_best: int = 20
    no_answer: bool = False  # whether a question may have none, as in SQuAD 2.0
    null_threshold: float = 0.0  # higher: more questions are answered
    buckets: tuple[int, ...] | None = None  # lengths that rows are padded to; None: `length` alone
    n_shown: int = 8  # answers in the report

    def __post_init__(self):
        lows = {"length": 5, "stride": 0, "max_question_tokens": 0, "max_answer_tokens": 1, "n_best": 1, "n_shown": 0}
        for name, low in lows.items():
            whole(f"task.{name}", getattr(self, name), low)
        if self.no_answer and self.n_best == 1:
            raise ValueError("task.n_best=1 with task.no_answer; allowed: 2 and more, no answer being one of them")

    @property
    def heads(self) -> tuple[heads.Span]:
        return (heads.Span(),)

    @property
    def key(self) -> dict[str, Any]:
        fields = ("question", "context", "answers", "length", "stride", "max_question_tokens", "no_answer")
        return {"task": "span_qa"} | {name: getattr(self, name) for name in fields}

    def texts(self, example: Mapping[str, Any]) -> tuple[str, str]:
        return require(example, self.question, "question"), require(example, self.context, "context")

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """A record for each window: what the model reads, start_positions and end_positions.

        {"question": "q", "context": "a b c", "answers": {"text": ["b"], "answer_start": [2]}} in rows of 6 tokens, 1 of
        them the question's, with stride 0, [CLS] being 2 and [SEP] 3:

            input_ids  2 9 3 5 6 3    start_positions  4    end_positions  4
                       2 9 3 7 3                       0                   0
        """
        places = [self.places(example) for example in examples]
        encoded = self._encoded([self.texts(example) for example in examples], tokenizer)
        records = []
        for given, (_, offsets, windows) in zip(places, encoded, strict=True):
            first, last = _tokens(offsets, *given[0]) if given else (0, -1)
            for window in windows:
                inside = window.first <= first <= last < window.first + window.size
                start, end = (window.at + t - window.first if inside else window.null for t in (first, last))
                records.append({**window.record, "start_positions": np.int32(start), "end_positions": np.int32(end)})
        return records

    def places(self, example: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Where in the context each answer starts and ends, in characters.

        Raises:
            ValueError: an answer is not there, or there is none and `no_answer` is false.
        """
        context, answers = self.texts(example)[1], require(example, self.answers, "answers")
        sides = ("text", "answer_start")
        if not isinstance(answers, Mapping) or not all(listed(answers.get(side)) for side in sides):
            allowed = "{'text': […], 'answer_start': […]}"
            raise ValueError(f"{self._name(example)}: {self.answers}={answers!r}; allowed: {allowed}")
        texts, starts = [_text(text) for text in answers["text"]], [int(start) for start in answers["answer_start"]]
        if len(texts) != len(starts):
            raise ValueError(f"{self._name(example)}: {len(texts)} answers at {len(starts)} places; allowed: one each")
        for text, start in zip(texts, starts, strict=True):
            there = context[start : start + len(text)] if start >= 0 else ""
            if there != text:
                raise ValueError(
                    f"{self._name(example)}: the answer {text!r} is not at {start} of the context, where {there!r} is; "
                    "allowed: the context's own text from answer_start on"
                )
        places = [(start, start + len(text)) for text, start in zip(texts, starts, strict=True) if text]
        if not places and not self.no_answer:
            raise ValueError(f"{self._name(example)}: no answer; allowed with task.no_answer=True")
        return places

    def _name(self, example: Mapping[str, Any]) -> str:
        return f"example {example['id']!r}" if "id" in example else f"question {example[self.question]!r}"

    def _encoded(
        self, items: Sequence[tuple[str, str]], tokenizer: Tokenizer
    ) -> Iterator[tuple[str, list[tuple[int, int]], list[Window]]]:
        """Of questions with their contexts: the context, the places of its tokens, and its windows."""
        form = template(tokenizer)
        room = form.room(self.length, 2)
        if room - self.max_question_tokens <= self.stride:
            raise ValueError(
                f"task.length={self.length} leaves {room - self.max_question_tokens} tokens of context beside "
                f"{self.max_question_tokens} of the question; allowed: more than task.stride={self.stride}"
            )
        questions = tokenizer.encode_batch([question for question, _ in items])
        if cut := sum(len(question) > self.max_question_tokens for question in questions):
            most = f"{self.max_question_tokens} tokens"
            print(f"{cut} of {len(items)} questions are longer than {most} and cut", file=sys.stderr)
        contexts = tokenizer.offsets([context for _, context in items])
        for (_, context), question, (ids, offsets) in zip(items, questions, contexts, strict=True):
            question = question[: self.max_question_tokens]
            size, at = room - len(question), len(form.start) + len(question) + len(form.between)
            windows = []
            for first in range(0, max(len(ids) - self.stride, 1), size - self.stride):
                part = ids[first : first + size]
                record = form.join(question, part)
                null = 0 if form.start else len(record["input_ids"]) - 1
                windows.append(Window(record, first, len(part), at, null))
            yield context, offsets, windows

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        return batches.padded(
            cache,
            batch_size=batch_size,
            max_length=self.length,
            pad_id=tokenizer.pad_id,
            seed=seed,
            buckets=self.buckets or (self.length,),
        )

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        tokens = dict.fromkeys(("input_ids", "attention_mask"), jax.ShapeDtypeStruct((rows, self.length), jnp.int32))
        places = dict.fromkeys(("start_positions", "end_positions"), jax.ShapeDtypeStruct((rows,), jnp.int32))
        return tokens | places | {"weights": jax.ShapeDtypeStruct((rows,), jnp.float32)}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        """Of rows; "accuracy" is of those whose start and end are both the likeliest."""
        out = apply(**read(batch))
        total, right = jnp.zeros(()), batch["weights"]
        for side in ("start", "end"):
            logits, places = out[f"{side}_logits"], batch[f"{side}_positions"]
            loss, weight = cross_entropy(logits, places, batch["weights"])
            total, right = total + loss / 2, right * (logits.argmax(-1) == places)
        return {"loss": (total, weight), "accuracy": (right.sum(), weight)}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)

    def score(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """exact_match and f1 over all examples, and with `no_answer` the best thresholds (see metrics.py)."""
        examples = [examples[i] for i in range(len(examples))]
        return self._scores(examples, self._answers(model, params, tokenizer, examples))

    def _answers(self, model, params, tokenizer, examples) -> list[dict[str, Any]]:
        return self.predict(model, params, tokenizer, [self.texts(example) for example in examples])

    def _scores(self, examples: list[Mapping[str, Any]], found: list[dict[str, Any]]) -> dict[str, float]:
        true = [[self.texts(example)[1][s:e] for s, e in self.places(example)] for example in examples]
        scores = metrics.squad([one["answer"] for one in found], true, no_answer=self.no_answer)
        if self.no_answer and found:
            spans = [next((one["answer"] for one in all["n_best"] if one["answer"]), "") for all in found]
            scores |= metrics.squad_thresholds(spans, true, [one["no_answer_score"] for one in found])
        return scores

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """The scores, and the first answers."""
        examples = [examples[i] for i in range(len(examples))]
        if not examples:
            return ()
        found = self._answers(model, params, tokenizer, examples)
        rows = tuple((name, round(value, 4)) for name, value in self._scores(examples, found).items())
        texts = []
        for example, one in zip(examples[: self.n_shown], found, strict=False):
            question, context = self.texts(example)
            true = " | ".join(dict.fromkeys(context[s:e] for s, e in self.places(example))) or "no answer"
            texts.append((question, f"{one['answer'] or 'no answer'}\n({true})"))
        return Table("Scores", ("metric", "value"), rows), Samples("Answers (and references)", tuple(texts))

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """{"answer", "start", "end", "score", "n_best"} for each question with its context, in order or by name.

        "answer" is context[start:end] and "n_best" a list of such, best first, with their scores. With `no_answer`
        also "no_answer_score", which is compared with `null_threshold`. A context without tokens has the answer "".

        Raises:
            ValueError: the model's logits are not finite.
        """
        items = [parts(item, (self.question, self.context)) for item in items]
        results = []
        for start in range(0, len(items), ITEMS):
            encoded = list(self._encoded(items[start : start + ITEMS], tokenizer))
            rows = [_marked(window, offsets, context) for context, offsets, all in encoded for window in all]
            run = functools.partial(_best_spans, model, params, n_best=self.n_best, longest=self.max_answer_tokens)
            found = iter(by_length(run, rows, pad_id=tokenizer.pad_id, max_length=self.length))
            for context, offsets, all in encoded:
                results.append(self._result(context, offsets, [(window, next(found)) for window in all]))
        return results

    def _result(
        self, context: str, offsets: list[tuple[int, int]], windows: list[tuple[Window, "Spans"]]
    ) -> dict[str, Any]:
        """The prediction for a context, from the best spans of its windows."""
        for _, spans in windows:
            finite([*spans.scores, spans.null], context)
        spans = _merged(windows, self.n_best)
        found = [(score, *_slice(context, offsets, first, last)) for score, first, last in spans]
        result, no_span = {}, (0.0, 0, 0)
        if self.no_answer:
            null = min(float(spans.null) for _, spans in windows)
            result["no_answer_score"] = null - max(found, default=no_span)[0]
            rank = sum(score >= null for score, _, _ in found)
            kept = found[: self.n_best - 1] if rank < self.n_best else found
            found = [*kept[:rank], (null, 0, 0), *kept[rank:]]
        scores = chances([score for score, _, _ in found], context).tolist() if found else []
        places = [{"answer": context[a:b], "start": a, "end": b} for _, a, b in found]
        n_best = [place | {"score": score} for place, score in zip(places, scores, strict=True)]
        if not self.no_answer:
            best = n_best[0] if n_best else {"answer": "", "start": 0, "end": 0, "score": 0.0}
        else:
            none = len(n_best) == 1 or result["no_answer_score"] > self.null_threshold
            best = next(one for one in n_best if (one["answer"] == "") == none)
        return {**best, **result, "n_best": n_best}


def _text(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


def _tokens(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The first and last token of what stands between two characters; last < first where there is none."""
    first = bisect.bisect_right(offsets, start, key=lambda place: place[1])
    return first, bisect.bisect_left(offsets, end, key=lambda place: place[0]) - 1


def _slice(context: str, offsets: list[tuple[int, int]], first: int, last: int) -> tuple[int, int]:
    """Between which characters the tokens stand, without white space around them."""
    start, end = offsets[first][0], offsets[last][1]
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def _marked(window: Window, offsets: list[tuple[int, int]], context: str) -> Record:
    """The window's record with `inside`: 1 at tokens of the context but for white space, 2 at the null's position."""
    inside = np.zeros(len(window.record["input_ids"]), np.int32)
    here = offsets[window.first : window.first + window.size]
    inside[window.at : window.at + window.size] = [bool(context[start:end].strip()) for start, end in here]
    inside[window.null] = 2
    return {**window.record, "inside": inside}


def _merged(windows: list[tuple[Window, "Spans"]], n_best: int) -> list[tuple[float, int, int]]:
    """(score, first and last token of the context) of the best spans of all windows, each once, best first."""
    scores: dict[tuple[int, int], float] = {}
    for window, spans in windows:
        shift = window.first - window.at
        for score, first, last in zip(*(x.tolist() for x in spans[:3]), strict=True):
            if score > -np.inf:
                span = first + shift, last + shift
                scores[span] = max(score, scores.get(span, -np.inf))
    best = sorted(scores, key=lambda span: (-scores[span], span))[:n_best]
    return [(scores[span], *span) for span in best]


class Spans(NamedTuple):
    """Of each row the best spans, best first; of equal ones the earlier, and of these the shorter."""

    scores: Float[Array | np.ndarray, "*B n"]  # -inf where there are fewer
    first: Int[Array | np.ndarray, "*B n"]  # positions in the row
    last: Int[Array | np.ndarray, "*B n"]
    null: Float[Array | np.ndarray, "*B"]  # the score of the null span


@functools.partial(jax.jit, static_argnames=("model", "n_best", "longest"))
def _best_spans(model: nn.Module, params: Mapping[str, Any], batch: Batch, *, n_best: int, longest: int) -> Spans:
    """`batch` holds, beside what the model reads, `inside` [B, T]: 1 where a span may start and end, 2 at the null."""
    out = model.apply({"params": params}, **read(batch))
    logits = [out[f"{side}_logits"].astype(jnp.float32) for side in ("start", "end")]
    starts, ends = (jnp.where(batch["inside"] == 1, x, -jnp.inf) for x in logits)
    B, T = starts.shape
    K = min(longest, T)
    last = jnp.arange(T)[:, None] + jnp.arange(K)[None]
    ends = jnp.pad(ends, ((0, 0), (0, K)), constant_values=-jnp.inf)[:, last]
    scores, at = jax.lax.top_k((starts[:, :, None] + ends).reshape(B, T * K), min(n_best, T * K))
    null = jnp.where(batch["inside"] == 2, sum(logits), 0.0).sum(1)
    return Spans(scores, at // K, at // K + at % K, null)
