"""Our own TFDS builders: of sets that need no download, of some that the catalogue lacks, and of a user's own files.

    python_docs      English: the docstrings of this Python          number_words    numbers in four languages
    python_summaries their first lines, and what follows             python_tags     their words that are Python
    python_pairs     what follows a first line, or does not
    multi30k         captions in English, German, French             ko_en           Korean and English sentences
    comve            reasons to choose from                          swag            endings to choose from
    sick             pairs, alike or entailed                        wnut17          posts with names
    nsmc             Korean reviews of films
    text_files       a user's own .txt, .jsonl, .tsv or line-parallel files

The first three rows are made without a download.
"""

import contextlib
import importlib
import io
from collections.abc import Iterator

BUILDERS = {  # the sets that are made here when absent: module name -> class
    "comve": "ComVE",
    "ko_en": "KoEn",
    "multi30k": "Multi30k",
    "nsmc": "NSMC",
    "number_words": "NumberWords",
    "python_docs": "PythonDocs",
    "python_pairs": "PythonPairs",
    "python_summaries": "PythonSummaries",
    "python_tags": "PythonTags",
    "sick": "SICK",
    "swag": "SWAG",
    "wnut17": "WNUT17",
}


def builder(name: str, data_dir: str):
    """The builder of one of `BUILDERS`, writing ArrayRecord files, which are read without TensorFlow."""
    module = importlib.import_module(f"jaxnlp.data.corpora.{name}")
    return getattr(module, BUILDERS[name])(data_dir=data_dir, file_format="array_record")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS's bars, lines and warnings from the terminal; errors come through."""
    from absl import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
