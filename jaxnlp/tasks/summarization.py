"""Summaries: translation from a text to a shorter one, counted by ROUGE (Lin, 2004).

    rouge_1, rouge_2     F-score of the words, and of the pairs of words, that summary and reference share, 0 to 100
    rouge_l              F-score of the longest common subsequence of words, 0 to 100

each the mean over the summaries, of lower-cased words with Porter's stemmer, as rouge-score has them, but that letters
are those of any script: there all but a to z part words. Of a text that is too long the beginning is read, in training
as in use. Without an encoder and with `separator="\\nTL;DR:"` it is the form of Radford et al., 2019, 3.6.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

from jaxnlp.tasks.task import Table
from jaxnlp.tasks.translation import Translation

KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


@dataclasses.dataclass(frozen=True)
class Summarization(Translation):
    """From one of an example's texts to a shorter one."""

    source: str = "text"
    target: str = "summary"

    answer: ClassVar[str] = "summary"
    cuts: ClassVar[bool] = True

    def scores(self, found: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], Table]:
        return rouge(found, references)


class _Words:
    """rouge-score's words, of which one of more than three letters is stemmed."""

    def __init__(self):
        from nltk.stem.porter import PorterStemmer

        self.stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        words = re.findall(r"[^\W_]+", text.lower())
        return [self.stem(word) if len(word) > 3 else word for word in words]


def rouge(found: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], Table]:
    """ROUGE-1, 2 and L, and exact matches; ValueError unless there is a reference for each."""
    from rouge_score.rouge_scorer import RougeScorer

    if len(found) != len(references) or not found:
        raise ValueError(f"{len(found)} summaries for {len(references)} references; allowed: one each, 1 or more")
    scorer = RougeScorer(list(KINDS.values()), tokenizer=_Words())
    pairs = list(zip(found, references, strict=True))
    each = [scorer.score(reference, summary) for summary, reference in pairs]
    values = {name: 100 * sum(one[kind].fmeasure for one in each) / len(each) for name, kind in KINDS.items()}
    values["exact_match"] = sum(a == b for a, b in pairs) / len(pairs)
    rows = tuple((name, round(value, 4)) for name, value in values.items())
    return values, Table("Scores", ("metric", "value"), rows)
