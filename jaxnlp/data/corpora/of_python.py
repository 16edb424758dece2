"""TFDS sets that are made from the Python that runs: nothing is downloaded, and each build of Python makes its own."""

import pathlib
import sys
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, ClassVar

import tensorflow_datasets as tfds


def states(*files: str) -> list[tfds.core.BuilderConfig]:
    """The one configuration, named by the build of Python and the state of the rules in `files`: a folder for each.

    (A distribution may add modules to the same build later, such as Tk's: delete the folder then.)
    """
    known = sys.version.encode() + b"".join(pathlib.Path(file).read_bytes() for file in files)
    return [tfds.core.BuilderConfig(name=sha256(known).hexdigest()[:8])]


class OfPython(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A subclass fills in what follows, with a `name` and BUILDER_CONFIGS = states(…), and the two methods."""

    VERSION = tfds.core.Version(".".join(map(str, sys.version_info[:3])))
    url_infos: ClassVar[dict] = {}  # TFDS need not look for checksums beside the file
    DESCRIPTION: ClassVar[str]

    def _features(self) -> Mapping[str, Any]:
        """Of an example."""
        raise NotImplementedError

    def _examples(self) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        """Those of each split."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(dict(self._features())),
            description=self.DESCRIPTION,
            license="Python Software Foundation License",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable]:
        return {split: self._generate_examples(found) for split, found in self._examples().items()}

    def _generate_examples(self, found: Iterable[Mapping[str, Any]]) -> Iterable[tuple[int, Mapping[str, Any]]]:
        return enumerate(found)
