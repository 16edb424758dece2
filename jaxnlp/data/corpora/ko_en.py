"""`ko_en`: 4,440 Korean sentences with their English: news, and junior high school English (Park et al., 2016).

Source: https://github.com/jungyeul/korean-parallel-corpora, korean-english-news-v1 and korean-english-jhe, at the
commit below. Licence: CC BY-SA 3.0. Splits: train (3,720: the development and test parts of the news, the development
part of jhe) and test (720: the evaluation part of jhe); the news' own training part is not in it. The checksums are
those of the files in the archives.
"""

import tarfile
from collections.abc import Mapping
from typing import Any

from jaxnlp.data.corpora.line_parallel import LineParallel

URL = "https://raw.githubusercontent.com/jungyeul/korean-parallel-corpora/a1fb53dc5216f3a2d07d973456d8921ed23c88c6"


class KoEn(LineParallel, skip_registration=True):
    """The TFDS builder; `TFDS("ko_en")` uses it."""

    name = "ko_en"
    DESCRIPTION = "Korean sentences with their English translations."
    HOMEPAGE = "https://github.com/jungyeul/korean-parallel-corpora"
    LICENSE = "CC BY-SA 3.0"
    LANGUAGES = ("ko", "en")
    PARTS = {  # noqa: RUF012
        "train": ("korean-english-park.test", "korean-english-park.dev", "jhe-koen-dev"),
        "test": ("jhe-koen-eval",),
    }
    SHA256 = {  # noqa: RUF012
        "jhe-koen-dev.en": "ccf0c0ca7601b5cae37891ecf89c72c951ac162a20738ac894e3faf804c4c4af",
        "jhe-koen-dev.ko": "2b02238c122aac40860aebfb191cfcdb46553e6b55b447f8188e04cabe00b828",
        "jhe-koen-eval.en": "dc4c0975092f3cfd5c60e3cea24e6b2a400e4373208cd9f3ed6b0cc44c01cc3b",
        "jhe-koen-eval.ko": "531b18d6640aaf63b86753c631c8ee6d7d23c10b9f9c56cb99c9da086417cb86",
        "korean-english-park.dev.en": "98e0d1284685328701410f9656098d9939ca69ab262bf69a9e1a7f9d716ef1dc",
        "korean-english-park.dev.ko": "248e0dd8e560db90ea7b51e4959a33d67a7bba48872429bc90f416ea8acbac44",
        "korean-english-park.test.en": "76e43f2ed5ce5d20e4187fb7bb167f5771db8d06ec34c66410ea044c35eed77c",
        "korean-english-park.test.ko": "02d1445fcdcd26f99b29a7d5bf692688634571310c1f2d1093cfb2e2d1eb6be4",
    }

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        plain = {file: f"{URL}/korean-english-jhe/{file}" for file in self.SHA256 if file.startswith("jhe")}
        news = [f"{URL}/korean-english-news-v1/korean-english-park.{part}.tar.gz" for part in ("dev", "test")]
        found = {file: path.read_bytes() for file, path in dl_manager.download(plain).items()}
        for path in dl_manager.download(news):
            with tarfile.open(path) as archive:
                members = {member.name.rpartition("/")[2]: member for member in archive if member.isfile()}
                found |= {file: archive.extractfile(members[file]).read() for file in self.SHA256 if file in members}
        return found
