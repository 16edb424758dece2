"""Answers to questions are scored as SQuAD's scripts score them, and classes by the formulas.

The figures are those of transformers 4.57's squad_metrics (version 2.0) and of the script of version 1.1.
"""

import functools
import math

import numpy as np
import pytest

from jaxnlp.metrics import classification, confusion, squad, squad_thresholds

CASES = [  # answer, references, how sure it is that there is none; exact match and F1 of version 2.0
    ("The Eiffel Tower.", ["Eiffel Tower", "the tower"], -3.5, 1, 1.0),
    ("an  apple, a pear", ["apple pear", "apples"], 1.25, 1, 1.0),
    ("in 1889", ["1889", "March 1889"], -0.5, 0, 0.6666666666666666),
    ("", ["Denver Broncos"], 2.0, 0, 0),
    ("the", ["a"], -1.0, 1, 1),
    ("", [], 4.0, 1, 1),
    ("Paris", [], 0.75, 0, 0),
    ("New York", [], -2.0, 0, 0),
    ("서울 특별시", ["서울"], -0.5, 0, 0.6666666666666666),
    ("École Polytechnique", ["école polytechnique", "the Polytechnique"], -4.0, 1, 1.0),
    ("two of the two", ["two two three"], 0.0, 0, 0.6666666666666666),
    ("blue", ["red", "green"], 3.0, 0, 0),
    ("a.b-c", ["abc"], -2.0, 1, 1.0),
]

near = functools.partial(pytest.approx, rel=1e-12)  # the order of a sum


@pytest.mark.parametrize(("found", "references", "_", "exact", "f1"), CASES)
def test_an_answer(found, references, _, exact, f1):
    assert squad([found], [references], no_answer=True) == {"exact_match": 100.0 * exact, "f1": 100.0 * f1}


def test_a_whole_set_of_version_2():
    found, references, scores, _, _ = zip(*CASES, strict=True)
    assert squad(found, references, no_answer=True) == near({"exact_match": 46.15384615384615, "f1": 61.53846153846154})
    best = {"best_exact": 46.15384615384615, "best_exact_thresh": -1.0, "best_f1": 61.53846153846154}
    assert squad_thresholds(found, references, scores) == near(best | {"best_f1_thresh": 0.0})


def test_a_whole_set_of_version_1():
    found, references, scores, _, _ = zip(*(case for case in CASES if case[1]), strict=True)
    assert squad(found, references) == near({"exact_match": 50.0, "f1": 60.0})
    best = {"best_exact": 50.0, "best_exact_thresh": 1.25, "best_f1": 70.0, "best_f1_thresh": 1.25}
    assert squad_thresholds(found, references, scores) == near(best)


def test_where_no_answer_is_best_the_threshold_is_zero():
    expected = {"best_exact": 50.0, "best_exact_thresh": 0.0, "best_f1": 50.0, "best_f1_thresh": 0.0}
    assert squad_thresholds(["x", "y"], [[], ["z"]], [1.0, 0.0]) == expected


def test_what_cannot_be_scored():
    assert all(math.isnan(value) for value in squad([], []).values())
    with pytest.raises(ValueError, match="2 answers to 1 questions; allowed: one each"):
        squad(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="question 1 has no reference; allowed: one and more, or none with no_answer"):
        squad(["a", "b"], [["a"], []])


@pytest.mark.parametrize(
    ("true", "found"),
    [([0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 1]), ([0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 0, 2, 0, 1])],
)
def test_classes(true, found):
    """From the confusion matrix C: F1 = 2 C_ii / (row + column), and Matthews' correlation in Gorodkin's form."""
    n_labels, true, found = max(true) + 1, np.array(true), np.array(found)
    matrix = np.array([[np.sum((true == i) & (found == j)) for j in range(n_labels)] for i in range(n_labels)])
    np.testing.assert_array_equal(confusion(true, found, n_labels), matrix)
    rows, columns, n = matrix.sum(1), matrix.sum(0), matrix.sum()
    each = 2 * np.diag(matrix) / (rows + columns)
    f1 = each[1] if n_labels == 2 else each.mean()
    mcc = (n * np.trace(matrix) - rows @ columns) / np.sqrt((n**2 - columns @ columns) * (n**2 - rows @ rows))
    assert classification(true, found, n_labels) == near({"accuracy": np.trace(matrix) / n, "f1": f1, "mcc": mcc})
