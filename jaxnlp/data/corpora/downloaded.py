"""TFDS sets that are made from files of others, each checked against its sha256.

Downloaded archives are not checked but what is in them: the same text packed anew is the same text. They are unpacked
by the subclass, since TFDS's own way wants TensorFlow.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.util import DownloadError


class Downloaded(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A subclass fills in what follows, with a `name`, and the three methods."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar[dict] = {}  # TFDS's own checksums: see above
    DESCRIPTION: ClassVar[str]
    HOMEPAGE: ClassVar[str]
    LICENSE: ClassVar[str]
    SHA256: ClassVar[Mapping[str, str]]  # of each file

    def _features(self) -> Mapping[str, Any]:
        """Of an example."""
        raise NotImplementedError

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        """What is in each file of SHA256."""
        raise NotImplementedError

    def _examples(self, texts: Mapping[str, str]) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        """The examples of each split, from what is in each file."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(dict(self._features())),
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable]:
        try:
            files = self._download(dl_manager)
        except (OSError, DownloadError) as error:
            raise ValueError(
                f"set {self.name!r} cannot be downloaded: {error}. Where there is no network, a folder that was"
                f" prepared elsewhere serves: copy it to {self.data_path.parent}"
            ) from error
        texts = {file: self._checked(file, data).decode("utf-8") for file, data in files.items()}
        return {split: self._generate_examples(found) for split, found in self._examples(texts).items()}

    def _generate_examples(self, found: Iterable[Mapping[str, Any]]) -> Iterable[tuple[int, Mapping[str, Any]]]:
        return enumerate(found)

    def _checked(self, file: str, data: bytes) -> bytes:
        found = hashlib.sha256(data).hexdigest()
        if found != self.SHA256[file]:
            raise ValueError(f"{file} of set {self.name!r}: found sha256 {found}; allowed: {self.SHA256[file]}")
        return data
