"""`python_pairs`: first lines of docstrings, each with what follows it or, half of the time, with what follows another.

Docstrings, splits and licence are those of `python_summaries`. The other docstring is of the same split, drawn by a
hash of the first line.

Features: `text`, the first line; `next`; `label`, follows or random.
"""

import pathlib
import sys
from collections.abc import Iterator
from hashlib import sha256

import tensorflow_datasets as tfds

from jaxnlp.data.corpora import python_docs, python_summaries

LABELS = ("follows", "random")


class PythonPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder; `TFDS("python_pairs")` uses it."""

    name = "python_pairs"
    VERSION = tfds.core.Version(".".join(map(str, sys.version_info[:3])))
    # Of each build of Python and each state of the rules, as of `python_docs`.
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(
            name=sha256(
                sys.version.encode()
                + pathlib.Path(python_docs.__file__).read_bytes()
                + pathlib.Path(python_summaries.__file__).read_bytes()
                + pathlib.Path(__file__).read_bytes()
            ).hexdigest()[:8]
        )
    ]
    url_infos = {}  # noqa: RUF012  nothing is downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"text": text, "next": text, "label": tfds.features.ClassLabel(names=LABELS)}
            ),
            description="First lines of Python's docstrings, with what follows them or another.",
            license="Python Software Foundation License",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(found) for split, found in python_docs.documents().items()}

    def _generate_examples(self, found: list[dict]) -> Iterator[tuple[int, dict]]:
        parts = [python_summaries.taken_apart(one["text"]) for one in found if one["kind"] != "topic"]
        pairs = [(summary, text) for text, summary in filter(None, parts)]
        for i, (summary, text) in enumerate(pairs):
            number = int.from_bytes(sha256(summary.encode()).digest()[:8], "big")
            label, other = number % 2, (i + 1 + number // 2 % (len(pairs) - 1)) % len(pairs)
            yield i, {"text": summary, "next": pairs[other][1] if label else text, "label": label}
