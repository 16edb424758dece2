"""Scores of whole sets, as the field counts them.

F1    of the last of two classes, as GLUE has it; of more, the mean (macro) of those that occur among true or found
MCC   Matthews' correlation of true and found classes, -1 to 1 (Matthews, 1975)

Answers to questions as the scripts of SQuAD 1.1 and 2.0 compare them (Rajpurkar et al., 2016, 2018): lower case, no
punctuation, no articles. The best of several references counts.

exact match    the part that equals a reference
F1             of the words of an answer and its reference, the mean over all questions
"""

import collections
import math
import re
import string
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def classification(true: Int[np.ndarray, " N"], found: Int[np.ndarray, " N"], n_labels: int) -> dict[str, float]:
    """accuracy, f1 and mcc, each at most 1; nan of an empty set."""
    from sklearn.metrics import f1_score, matthews_corrcoef

    if not len(true):
        return dict.fromkeys(("accuracy", "f1", "mcc"), math.nan)
    classes = {"labels": [1], "average": "micro"} if n_labels == 2 else {"average": "macro"}
    return {
        "accuracy": float(np.mean(true == found)),
        "f1": float(f1_score(true, found, zero_division=0.0, **classes)),
        "mcc": float(matthews_corrcoef(true, found)),
    }


def interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, right / n, between 0 and 1 (Wilson, 1927)."""
    from scipy.stats import binomtest

    found = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def confusion(true: Int[np.ndarray, " N"], found: Int[np.ndarray, " N"], n_labels: int) -> Int[np.ndarray, "n n"]:
    """How often a true class, the row, was taken for a class, the column."""
    counts = np.zeros((n_labels, n_labels), int)
    np.add.at(counts, (true, found), 1)
    return counts


def correlation(true: Float[np.ndarray, " N"], found: Float[np.ndarray, " N"]) -> dict[str, float]:
    """pearson and spearman, -1 to 1; nan where all values are the same."""
    from scipy.stats import pearsonr, spearmanr

    if len(true) < 2 or np.ptp(true) == 0 or np.ptp(found) == 0:
        return dict.fromkeys(("pearson", "spearman"), math.nan)
    return {
        "pearson": float(pearsonr(true, found).statistic),
        "spearman": float(spearmanr(true, found).statistic),
    }


def spans(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 of whole spans, as conlleval and seqeval count them, and the words' accuracy."""
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    kinds = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds that nobody found: they count as 0
        scores = {name: float(score(true, found)) for name, score in kinds.items()}
    return {"accuracy": float(accuracy_score(true, found)), **scores}


def labels(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """The words' accuracy, and precision, recall and f1 of all words whose label is not O."""
    a, b = (np.array([label for one in side for label in one]) for side in (true, found))
    right, wanted, given = np.sum((a == b) & (a != "O")), np.sum(a != "O"), np.sum(b != "O")
    precision, recall = right / max(given, 1), right / max(wanted, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-12)
    scores = {"accuracy": np.mean(a == b), "precision": precision, "recall": recall, "f1": f1}
    return {name: float(score) for name, score in scores.items()}


def by_kind(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, tuple[float, float, float]]:
    """precision, recall and f1 of each kind of span, or of each label where they mark no spans."""
    marked = any(label.startswith("B-") for one in true for label in one)
    score, kind_of = (spans, lambda label: label.partition("-")[2]) if marked else (labels, str)
    scores = {}
    for kind in sorted({kind_of(label) for one in true for label in one} - {"", "O"}):
        only = [[[tag if kind_of(tag) == kind else "O" for tag in one] for one in side] for side in (true, found)]
        measured = score(*only)
        scores[kind] = measured["precision"], measured["recall"], measured["f1"]
    return scores


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The spans of a sentence's labels, (kind, first word, last word), as seqeval reads them."""
    from seqeval.metrics.sequence_labeling import get_entities

    return get_entities(list(tags))


def squad(found: Sequence[str], references: Sequence[Sequence[str]], *, no_answer: bool = False) -> dict[str, float]:
    """exact_match and f1, 0 to 100, of answers and of each one's references; nan of an empty set.

    With `no_answer` as version 2.0 has it: a question without references has the answer "". Version 1.1 knows no such
    question, and gives an answer of no words, such as "the", the F1 0.
    """
    exact, f1 = _matches(found, references, no_answer)
    means = (100.0 * sum(each) / len(each) if each else math.nan for each in (exact, f1))
    return dict(zip(("exact_match", "f1"), means, strict=True))


def squad_thresholds(
    found: Sequence[str], references: Sequence[Sequence[str]], no_answer_scores: Sequence[float]
) -> dict[str, float]:
    """What the scores of version 2.0 would be if the answer were "" wherever its score is above the best threshold.

    best_exact and best_exact_thresh, best_f1 and best_f1_thresh; `found` are the answers if there must be one. As in
    the script, 0 is the threshold where no answer at all is best.
    """
    exact, f1 = _matches(found, references, no_answer=True)
    answerable = np.array([len(texts) > 0 for texts in references])
    order = np.argsort(no_answer_scores, kind="stable")
    best = {}
    for name, right in (("exact", exact), ("f1", f1)):
        gains = np.where(answerable, right, [-float(text != "") for text in found])
        totals = np.cumsum([float(np.sum(~answerable)), *gains[order]])  # after the first n are answered
        n = int(totals.argmax())
        best[f"best_{name}"] = 100.0 * float(totals[n]) / len(found)
        best[f"best_{name}_thresh"] = float(no_answer_scores[order[n - 1]]) if n else 0.0
    return best


def _matches(
    found: Sequence[str], references: Sequence[Sequence[str]], no_answer: bool
) -> tuple[list[float], list[float]]:
    """Each answer's exact match and F1, 0 to 1, with the reference that is nearest."""
    if len(found) != len(references):
        raise ValueError(f"{len(found)} answers to {len(references)} questions; allowed: one each")
    exact, f1 = [], []
    for i, (text, others) in enumerate(zip(found, references, strict=True)):
        others = [_normalised(other) for other in others]
        if no_answer:
            others = [other for other in others if other] or [""]
        if not others:
            raise ValueError(f"question {i} has no reference; allowed: one and more, or none with no_answer")
        text = _normalised(text)
        exact.append(float(text in others))
        f1.append(max(_word_f1(text.split(), other.split(), no_answer) for other in others))
    return exact, f1


def _normalised(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(found: list[str], true: list[str], no_answer: bool) -> float:
    if no_answer and not (found and true):
        return float(found == true)
    common = sum((collections.Counter(found) & collections.Counter(true)).values())
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(true)
    return 2 * precision * recall / (precision + recall)
