"""`nsmc`: 200,000 Korean reviews of films, each of up to 140 characters, good or bad (Park, 2016).

Source: https://github.com/e9t/nsmc, at the commit below. Licence: CC0 1.0. Splits: train (150,000) and test (50,000),
less the few reviews that are empty; half of each are good, of rating 9 or 10 of 10, and half bad, 1 to 4. The checksums
are those that Hugging Face's `datasets` recorded.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from jaxnlp.data.corpora.downloaded import Downloaded

URL = "https://raw.githubusercontent.com/e9t/nsmc/cc0670e872d4ac27bfe36c87456783004b39ef6c"
LABELS = ("negative", "positive")


class NSMC(Downloaded, skip_registration=True):
    """The TFDS builder; `TFDS("nsmc")` uses it."""

    name = "nsmc"
    DESCRIPTION = "Korean reviews of films, good or bad."
    HOMEPAGE = "https://github.com/e9t/nsmc"
    LICENSE = "CC0 1.0"
    PARTS = {"train": "ratings_train.txt", "test": "ratings_test.txt"}  # noqa: RUF012
    SHA256 = {  # noqa: RUF012
        "ratings_train.txt": "e03b7d14e9e41be8d464a28057cd25d7396c53e67aa7fd5f7e552c59b0ee2940",
        "ratings_test.txt": "8ac9f64052f11dbf6ae0acb5e038f03d90a76f0eda7820cfb3a92d02edfcebda",
    }

    def _features(self) -> Mapping[str, Any]:
        return {"document": tfds.features.Text(), "label": tfds.features.ClassLabel(names=LABELS)}

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        found = dl_manager.download({file: f"{URL}/{file}" for file in self.SHA256})
        return {file: path.read_bytes() for file, path in found.items()}

    def _examples(self, texts: Mapping[str, str]) -> Mapping[str, Iterator[Mapping[str, Any]]]:
        def examples(text: str) -> Iterator[Mapping[str, Any]]:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
            next(rows)  # the columns' names
            for _, review, label in rows:
                if review:
                    yield {"document": review, "label": int(label)}

        return {split: examples(texts[file]) for split, file in self.PARTS.items()}
