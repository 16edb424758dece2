"""`comve`: 11,997 statements against common sense, each with three reasons, one of them right (Wang et al., 2020).

Source: https://github.com/wangcunxiang/SemEval2020-Task4-Commonsense-Validation-and-Explanation, subtask B of SemEval
2020's task 4, at the commit below. Licence: CC BY-SA 4.0. Splits: train (10,000), validation (997) and test (1,000).
"""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import tensorflow_datasets as tfds

from jaxnlp.data.corpora.downloaded import Downloaded

URL = (
    "https://raw.githubusercontent.com/wangcunxiang/SemEval2020-Task4-Commonsense-Validation-and-Explanation/"
    "c55b1a9e6cb66997675f85073e17a9522cf38c2c/ALL%20data"
)


class ComVE(Downloaded, skip_registration=True):
    """The TFDS builder; `TFDS("comve")` uses it."""

    name = "comve"
    DESCRIPTION = "Statements against common sense, and three reasons why: which is right?"
    HOMEPAGE = "https://github.com/wangcunxiang/SemEval2020-Task4-Commonsense-Validation-and-Explanation"
    LICENSE = "CC BY-SA 4.0"
    PARTS = {  # noqa: RUF012  of each split: the statements with their reasons, and the answers
        "train": ("Training  Data/subtaskB_data_all.csv", "Training  Data/subtaskB_answers_all.csv"),
        "validation": ("Dev Data/subtaskB_dev_data.csv", "Dev Data/subtaskB_gold_answers.csv"),
        "test": ("Test Data/subtaskB_test_data.csv", "Test Data/subtaskB_gold_answers.csv"),
    }
    SHA256 = {  # noqa: RUF012
        "Training  Data/subtaskB_data_all.csv": "12b1434468e6b1accb585d0da8b7f03c00b49540acbae387ceab43715307a998",
        "Training  Data/subtaskB_answers_all.csv": "ad35e57f7a696e16f577771a54951e1ad6c4b529ceba156264b2a936b30354f3",
        "Dev Data/subtaskB_dev_data.csv": "a0b011dc2850c14da249312734ebbc2e09b599fc039778eda11b71934bfe20ea",
        "Dev Data/subtaskB_gold_answers.csv": "6df991c552e2ec20cb4b7e359901d9b9f187a3cbd22b28fc680f1414c041433e",
        "Test Data/subtaskB_test_data.csv": "ab6977ef414cce54c684c8b03c0bab0255c5e23d6e92b116216bd9812184a13d",
        "Test Data/subtaskB_gold_answers.csv": "8dd0bcb627ba429654573f1ed34d2e26d34dee40f8d941c88b59ca064824f0ae",
    }

    def _features(self) -> Mapping[str, Any]:
        text = tfds.features.Text()
        label = tfds.features.ClassLabel(num_classes=3)
        return {"context": text, "choices": tfds.features.Sequence(text), "label": label}

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        found = dl_manager.download({file: f"{URL}/{quote(file)}" for file in self.SHA256})
        return {file: path.read_bytes() for file, path in found.items()}

    def _examples(self, texts: Mapping[str, str]) -> Mapping[str, Iterator[Mapping[str, Any]]]:
        def examples(data: str, answers: str) -> Iterator[Mapping[str, Any]]:
            right = dict(csv.reader(io.StringIO(texts[answers], newline="")))
            rows = csv.reader(io.StringIO(texts[data], newline=""))
            next(rows)  # the columns' names
            for number, statement, *reasons in rows:
                yield {"context": statement, "choices": reasons, "label": "ABC".index(right[number])}

        return {split: examples(*files) for split, files in self.PARTS.items()}
