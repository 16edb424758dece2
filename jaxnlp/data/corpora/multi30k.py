"""`multi30k`: 31,014 captions of Flickr30k images in English, German and French (Elliott et al., 2016, 2017).

Source: https://github.com/multi30k/dataset, data/task1/raw, at the commit below. Licence: the repository gives none;
the WMT task's page had CC BY-NC-SA 4.0 for the texts: look there before you pass them on. Splits: train (29,000),
validation (1,014) and test_2016 (1,000). The checksums are those of the files after gunzip.
"""

import gzip
from collections.abc import Mapping
from typing import Any

from jaxnlp.data.corpora.line_parallel import LineParallel

URL = "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"


class Multi30k(LineParallel, skip_registration=True):
    """The TFDS builder; `TFDS("multi30k")` uses it."""

    name = "multi30k"
    DESCRIPTION = "Captions of images in English, German and French."
    HOMEPAGE = "https://github.com/multi30k/dataset"
    LICENSE = "CC BY-NC-SA 4.0, by the page of the WMT task"
    LANGUAGES = ("en", "de", "fr")
    PARTS = {"train": ("train",), "validation": ("val",), "test_2016": ("test_2016_flickr",)}  # noqa: RUF012
    SHA256 = {  # noqa: RUF012
        "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
        "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
        "train.fr": "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
        "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
        "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
        "val.fr": "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
        "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
        "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
        "test_2016_flickr.fr": "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
    }

    def _download(self, dl_manager: Any) -> Mapping[str, bytes]:
        archives = dl_manager.download({file: f"{URL}/{file}.gz" for file in self.SHA256})
        return {file: gzip.decompress(path.read_bytes()) for file, path in archives.items()}
