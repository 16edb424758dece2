"""`python_pairs`: first lines of docstrings, each with what follows it or, half of the time, with what follows another.

Docstrings, splits and licence are those of `python_summaries`. The other docstring is of the same split, drawn by a
hash of the first line.

Features: `text`, the first line; `next`; `label`, follows or random.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import tensorflow_datasets as tfds

from jaxnlp.data.corpora import python_docs, python_summaries
from jaxnlp.data.corpora.of_python import OfPython, states

LABELS = ("follows", "random")


class PythonPairs(OfPython, skip_registration=True):
    """The TFDS builder; `TFDS("python_pairs")` uses it."""

    name = "python_pairs"
    BUILDER_CONFIGS = states(python_docs.__file__, python_summaries.__file__, __file__)
    DESCRIPTION = "First lines of Python's docstrings, with what follows them or another."

    def _features(self) -> Mapping[str, Any]:
        text = tfds.features.Text()
        return {"text": text, "next": text, "label": tfds.features.ClassLabel(names=LABELS)}

    def _examples(self) -> Mapping[str, Iterator[dict]]:
        return {split: _paired(found) for split, found in python_docs.documents().items()}


def _paired(found: list[dict]) -> Iterator[dict]:
    pairs = list(python_summaries.pairs(found))
    for i, pair in enumerate(pairs):
        number = int.from_bytes(sha256(pair["summary"].encode()).digest()[:8], "big")
        label, other = number % 2, (i + 1 + number // 2 % (len(pairs) - 1)) % len(pairs)
        yield {"text": pair["summary"], "next": pairs[other if label else i]["text"], "label": label}
