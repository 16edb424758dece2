"""`python_summaries`: docstrings of `python_docs` taken apart, what follows the first line and that line, its summary.

A docstring counts if its first line is a sentence of its own: followed by an empty line, of at least three words, and
ending in a full stop. Splits, text and licence are those of `python_docs`.

Features: `text`, all after the first line; `summary`, that line; `title`, "collections.OrderedDict.move_to_end".
"""

from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from jaxnlp.data.corpora import python_docs
from jaxnlp.data.corpora.of_python import OfPython, states


def taken_apart(text: str) -> tuple[str, str] | None:
    """(text, summary), or None of a docstring that does not count."""
    summary, _, rest = text.partition("\n\n")
    summary, rest = summary.strip(), rest.strip()
    if "\n" in summary or not summary.endswith(".") or len(summary.split()) < 3 or not rest:
        return None
    return rest, summary


def pairs(found: list[dict]) -> Iterator[dict]:
    """{"text", "summary", "title"} of the documents that count."""
    for document in found:
        if document["kind"] != "topic" and (parts := taken_apart(document["text"])) is not None:
            yield {"text": parts[0], "summary": parts[1], "title": document["title"]}


class PythonSummaries(OfPython, skip_registration=True):
    """The TFDS builder; `TFDS("python_summaries")` uses it."""

    name = "python_summaries"
    BUILDER_CONFIGS = states(python_docs.__file__, __file__)
    DESCRIPTION = "What docstrings of Python's standard library say, and their first lines."

    def _features(self) -> Mapping[str, Any]:
        return dict.fromkeys(("text", "summary", "title"), tfds.features.Text())

    def _examples(self) -> Mapping[str, Iterator[dict]]:
        return {split: pairs(found) for split, found in python_docs.documents().items()}
