"""`swag`: 113,557 beginnings of what a video shows, each with four endings, one of them right (Zellers et al., 2018).

Source: https://github.com/rowanz/swagaf, data. Licence: neither the repository's README nor Hugging Face's copy names
one: look there before you pass the texts on. Splits: train (73,546), validation (20,006) and test (20,005), whose
answers are not public: its labels are -1. The checksums are those that Hugging Face's `datasets` recorded.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from jaxnlp.data.corpora.downloaded import Downloaded

URL = "https://raw.githubusercontent.com/rowanz/swagaf/master/data"
TEXTS = ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3")


class SWAG(Downloaded, skip_registration=True):
    """The TFDS builder; `TFDS("swag")` uses it."""

    name = "swag"
    DESCRIPTION = "A sentence on a video, the beginning of the next, and four endings of it: which is right?"
    HOMEPAGE = "https://rowanzellers.com/swag/"
    LICENSE = "none named"
    PARTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}  # noqa: RUF012
    SHA256 = {  # noqa: RUF012
        "train.csv": "5748b51126ac255c5a6f26e1ba473b51116d6c822aeb25e63ecba282c9d0e610",
        "val.csv": "c0497b2cd7f3e6b7df995524b1853f62285d60d110d659b19545ca80b2903234",
        "test.csv": "a689a1a4e892a65ca625c1f0fcf77bcce004b59ad1caeb134ca5ec080a711cb6",
    }

    def _features(self) -> Mapping[str, Any]:
        label = tfds.features.ClassLabel(num_classes=4)
        return {**dict.fromkeys(TEXTS, tfds.features.Text()), "label": label}

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        found = dl_manager.download({file: f"{URL}/{file}" for file in self.SHA256})
        return {file: path.read_bytes() for file, path in found.items()}

    def _examples(self, texts: Mapping[str, str]) -> Mapping[str, Iterator[Mapping[str, Any]]]:
        def examples(file: str) -> Iterator[Mapping[str, Any]]:
            for row in csv.DictReader(io.StringIO(texts[file], newline="")):
                yield {**{name: row[name] for name in TEXTS}, "label": int(row.get("label", -1))}

        return {split: examples(file) for split, file in self.PARTS.items()}
