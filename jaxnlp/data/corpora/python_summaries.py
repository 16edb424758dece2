"""`python_summaries`: docstrings of `python_docs` taken apart, what follows the first line and that line, its summary.

A docstring counts if its first line is a sentence of its own: followed by an empty line, of at least three words, and
ending in a full stop. Splits, text and licence are those of `python_docs`.

Features: `text`, all after the first line; `summary`, that line; `title`, "collections.OrderedDict.move_to_end".
"""

import pathlib
import sys
from collections.abc import Iterator
from hashlib import sha256

import tensorflow_datasets as tfds

from jaxnlp.data.corpora import python_docs


def taken_apart(text: str) -> tuple[str, str] | None:
    """(text, summary), or None of a docstring that does not count."""
    summary, _, rest = text.partition("\n\n")
    summary, rest = summary.strip(), rest.strip()
    if "\n" in summary or not summary.endswith(".") or len(summary.split()) < 3 or not rest:
        return None
    return rest, summary


class PythonSummaries(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder; `TFDS("python_summaries")` uses it."""

    name = "python_summaries"
    VERSION = tfds.core.Version(".".join(map(str, sys.version_info[:3])))
    # Of each build of Python and each state of the rules, as of `python_docs`.
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(
            name=sha256(
                sys.version.encode()
                + pathlib.Path(python_docs.__file__).read_bytes()
                + pathlib.Path(__file__).read_bytes()
            ).hexdigest()[:8]
        )
    ]
    url_infos = {}  # noqa: RUF012  nothing is downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("text", "summary", "title")}),
            description="What docstrings of Python's standard library say, and their first lines.",
            license="Python Software Foundation License",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(found) for split, found in python_docs.documents().items()}

    def _generate_examples(self, found: list[dict]) -> Iterator[tuple[int, dict]]:
        pairs = (
            (document["title"], taken_apart(document["text"])) for document in found if document["kind"] != "topic"
        )
        for i, (title, (text, summary)) in enumerate((title, pair) for title, pair in pairs if pair is not None):
            yield i, {"text": text, "summary": summary, "title": title}
