"""TFDS sets whose texts lie in files of equal lines, one file a language, checked against their sha256.

Downloaded archives are not checked but what is in them: the same text packed anew is the same text. They are unpacked
by the subclass, since TFDS's own way wants TensorFlow.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.util import DownloadError


class LineParallel(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A subclass fills in what follows, with a `name`, and `_download`."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar[dict] = {}  # see above
    DESCRIPTION: ClassVar[str]
    HOMEPAGE: ClassVar[str]
    LICENSE: ClassVar[str]
    LANGUAGES: ClassVar[tuple[str, ...]]
    PARTS: ClassVar[Mapping[str, tuple[str, ...]]]  # of each split: the files, without the language's ending
    SHA256: ClassVar[Mapping[str, str]]  # of each file

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        """What is in each file of SHA256."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(dict.fromkeys(self.LANGUAGES, tfds.features.Text())),
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        try:
            files = self._download(dl_manager)
        except (OSError, DownloadError) as error:
            raise ValueError(
                f"set {self.name!r} cannot be downloaded: {error}. Where there is no network, a folder that was"
                f" prepared elsewhere serves: copy it to {self.data_path.parent}"
            ) from error
        lines = {file: self._checked(file, data).decode("utf-8").splitlines() for file, data in files.items()}

        def examples(parts: tuple[str, ...]) -> Iterator[dict[str, str]]:
            for part in parts:
                for texts in zip(*(lines[f"{part}.{language}"] for language in self.LANGUAGES), strict=True):
                    yield dict(zip(self.LANGUAGES, texts, strict=True))

        return {split: self._generate_examples(examples(parts)) for split, parts in self.PARTS.items()}

    def _generate_examples(self, found: Iterator[dict[str, str]]) -> Iterator[tuple[int, dict[str, str]]]:
        return enumerate(found)

    def _checked(self, file: str, data: bytes) -> bytes:
        found = hashlib.sha256(data).hexdigest()
        if found != self.SHA256[file]:
            raise ValueError(f"{file} of set {self.name!r}: found sha256 {found}; allowed: {self.SHA256[file]}")
        return data
