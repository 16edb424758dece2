"""TFDS sets whose texts lie in files of equal lines, one file a language."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import tensorflow_datasets as tfds

from jaxnlp.data.corpora.downloaded import Downloaded


class LineParallel(Downloaded, skip_registration=True):
    """A subclass fills in what follows beside what `Downloaded` asks for."""

    LANGUAGES: ClassVar[tuple[str, ...]]
    PARTS: ClassVar[Mapping[str, tuple[str, ...]]]  # of each split: the files, without the language's ending

    def _features(self) -> Mapping[str, tfds.features.Text]:
        return dict.fromkeys(self.LANGUAGES, tfds.features.Text())

    def _examples(self, texts: Mapping[str, str]) -> Mapping[str, Iterator[Mapping[str, str]]]:
        lines = {file: text.splitlines() for file, text in texts.items()}

        def examples(parts: tuple[str, ...]) -> Iterator[Mapping[str, str]]:
            for part in parts:
                for row in zip(*(lines[f"{part}.{language}"] for language in self.LANGUAGES), strict=True):
                    yield dict(zip(self.LANGUAGES, row, strict=True))

        return {split: examples(parts) for split, parts in self.PARTS.items()}
