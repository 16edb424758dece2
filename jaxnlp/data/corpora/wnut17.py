"""`wnut17`: 5,690 posts of social media with the names in them, many of them rare (Derczynski et al., 2017).

Source: https://github.com/davidsbatista/NER-datasets, at the commit below; the shared task's own repository is
https://github.com/leondz/emerging_entities_17, CC BY 4.0. Splits: train (3,394), validation (1,009) and test (1,287).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from jaxnlp.data.corpora.downloaded import Downloaded

URL = "https://raw.githubusercontent.com/davidsbatista/NER-datasets/db7ff3ca4ba1df39907f8bdc036a556fed5ecde7/WNUT17"
KINDS = ("corporation", "creative-work", "group", "location", "person", "product")
TAGS = ("O", *(f"{begin}-{kind}" for kind in KINDS for begin in "BI"))


class WNUT17(Downloaded, skip_registration=True):
    """The TFDS builder; `TFDS("wnut17")` uses it."""

    name = "wnut17"
    DESCRIPTION = "Posts of social media, and the names in them."
    HOMEPAGE = "https://github.com/leondz/emerging_entities_17"
    LICENSE = "CC BY 4.0"
    PARTS = {  # noqa: RUF012
        "train": "wnut17train.conll",
        "validation": "emerging.dev.conll",
        "test": "emerging.test.annotated",
    }
    SHA256 = {  # noqa: RUF012
        "wnut17train.conll": "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5",
        "emerging.dev.conll": "eddb4c7250f563f3746df0bfd00057cde948dfbb75140a753cdb2c27f82f0f66",
        "emerging.test.annotated": "2aa79b764e56ec9264a1b30fdd9b70195bd00ff400b62edd8f399d5f13c178f0",
    }

    def _features(self) -> Mapping[str, Any]:
        tags = tfds.features.Sequence(tfds.features.ClassLabel(names=TAGS))
        return {"tokens": tfds.features.Sequence(tfds.features.Text()), "ner": tags}

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        return {
            file: path.read_bytes()
            for file, path in dl_manager.download({file: f"{URL}/{file}" for file in self.SHA256}).items()
        }

    def _examples(self, texts: Mapping[str, str]) -> Mapping[str, Iterator[Mapping[str, Any]]]:
        return {split: _posts(texts[file]) for split, file in self.PARTS.items()}


def _posts(text: str) -> Iterator[Mapping[str, Any]]:
    """Posts are parted by lines without a tag; the first of several tags counts, as in the shared task."""
    words: list[str] = []
    tags: list[str] = []
    for line in [*text.splitlines(), ""]:
        word, _, tag = line.strip().partition("\t")
        if tag:
            words.append(word)
            tags.append(tag.split("\t")[0].split(",")[0])
        elif words:
            yield {"tokens": words, "ner": tags}
            words, tags = [], []
