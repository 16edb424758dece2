"""Our own TFDS builders: `python_docs`, which needs no download, and `text_files`, which reads a user's own files."""

import contextlib
import importlib
import io
from collections.abc import Iterator

BUILDERS = {"python_docs": "PythonDocs"}  # the sets that are made here when absent: module name -> class


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
