"""What config.json says of the labels of a head, and the task that is made of them."""

from collections.abc import Mapping
from typing import Any

from jaxnlp.models import heads
from jaxnlp.tasks.classification import Classification, NextSentence
from jaxnlp.tasks.multiple_choice import MultipleChoice
from jaxnlp.tasks.regression import Regression
from jaxnlp.tasks.span_qa import SpanQA
from jaxnlp.tasks.tagging import Tagging


def task_of(head: type, settings: Mapping[str, Any], length: int) -> Any:
    """The task whose head that is; ValueError for several labels a text, or labels without a name."""
    n = 2 if settings.get("num_labels") is None else settings["num_labels"]
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"num_labels={n!r}; allowed: 1 and more")
    labels = settings.get("id2label") or {str(i): f"LABEL_{i}" for i in range(n)}
    if set(labels) != set(map(str, range(len(labels)))):
        raise ValueError(f"id2label={labels}; allowed: a name for each of 0 … {len(labels) - 1}")
    labels = tuple(str(labels[str(i)]) for i in range(len(labels)))
    if len(set(labels)) < len(labels):
        raise ValueError(f"id2label={labels}; allowed: names that differ")
    if head is heads.Tagging:
        return Tagging(labels=labels, length=length, overlap=min(32, length // 4))
    if head is heads.NextSentence:
        return NextSentence(length=length)
    if head is heads.Classification:
        if settings.get("problem_type") == "multi_label_classification":
            raise ValueError("problem_type='multi_label_classification'; allowed: one label a text, or regression")
        regression = settings.get("problem_type") == "regression" or len(labels) == 1
        return Regression(length=length) if regression else Classification(labels=labels, length=length)
    if head is heads.Span:
        length = min(length, SpanQA.length)
        return SpanQA(length=length, stride=length // 3, max_question_tokens=length // 6)
    return MultipleChoice(length=length)


def settings_of(task: Any) -> dict[str, Any]:
    """Of the task's labels, where they have names, and that they are numbers."""
    if isinstance(task, Regression):
        return _named(("score",)) | {"problem_type": "regression"}
    named = not isinstance(task, NextSentence) and getattr(task, "labels", None)
    return _named(task.labels) if named else {}


def _named(labels: tuple[str, ...]) -> dict[str, Any]:
    by_id = {str(i): label for i, label in enumerate(labels)}
    return {"id2label": by_id, "label2id": {label: int(i) for i, label in by_id.items()}}
