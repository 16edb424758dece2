"""`sick`: 9,927 pairs of English sentences, how alike they are (1 to 5) and whether one entails the other.

Marelli et al., 2014. Source: https://github.com/brmson/dataset-sts, data/sts/sick2014, at the commit below. Licence:
CC BY-NC-SA 3.0. Splits: train (4,500), validation (500) and test (4,927).
"""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxnlp.data.corpora.downloaded import Downloaded

URL = "https://raw.githubusercontent.com/brmson/dataset-sts/e1d3375f5b3bc24f21aa4e46f96eb379e9fc1081/data/sts/sick2014"
LABELS = ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")


class SICK(Downloaded, skip_registration=True):
    """The TFDS builder; `TFDS("sick")` uses it."""

    name = "sick"
    DESCRIPTION = "Pairs of sentences: how alike they are, and whether one entails the other."
    HOMEPAGE = "https://github.com/brmson/dataset-sts"
    LICENSE = "CC BY-NC-SA 3.0"
    PARTS = {  # noqa: RUF012
        "train": "SICK_train.txt",
        "validation": "SICK_trial.txt",
        "test": "SICK_test_annotated.txt",
    }
    SHA256 = {  # noqa: RUF012
        "SICK_train.txt": "266cf8047149bd1d68138dd30439f3122bff30069740ac6705bb6197d9f1b48e",
        "SICK_trial.txt": "5a88cfb62f8c6bd2a3cce0f2421ba2cb8c2be5ab4a800f6f01e2c64aafb7db56",
        "SICK_test_annotated.txt": "2b8aa806658d6fc23c6824c83776c2d4fee7556000817b5ec0f982861413b7d0",
    }

    def _features(self) -> Mapping[str, Any]:
        return {
            "sentence_A": tfds.features.Text(),
            "sentence_B": tfds.features.Text(),
            "relatedness_score": tfds.features.Scalar(np.float32),
            "entailment_label": tfds.features.ClassLabel(names=LABELS),
        }

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        return {
            file: path.read_bytes()
            for file, path in dl_manager.download({file: f"{URL}/{file}" for file in self.SHA256}).items()
        }

    def _examples(self, texts: Mapping[str, str]) -> Mapping[str, Iterator[Mapping[str, Any]]]:
        def examples(text: str) -> Iterator[Mapping[str, Any]]:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
            next(rows)  # the columns' names
            for _, a, b, score, label in rows:
                scored = {"relatedness_score": float(score), "entailment_label": label}
                yield {"sentence_A": a, "sentence_B": b, **scored}

        return {split: examples(texts[file]) for split, file in self.PARTS.items()}
