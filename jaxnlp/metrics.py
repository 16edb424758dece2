"""Scores of whole sets, as the field counts them.

F1    of the last of two classes, as GLUE has it; of more, the mean of all classes' (macro)
MCC   Matthews' correlation of true and found classes, -1 to 1 (Matthews, 1975)
"""

import math

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
