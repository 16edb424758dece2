"""Our own TFDS builders: `python_docs`, which needs no download, and `text_files`, which reads a user's own files."""

import importlib

BUILDERS = {"python_docs": "PythonDocs"}  # the sets that are made here when absent: module name -> class


def builder(name: str, data_dir: str):
    """The builder of one of `BUILDERS`, writing ArrayRecord files, which are read without TensorFlow."""
    module = importlib.import_module(f"jaxnlp.data.corpora.{name}")
    return getattr(module, BUILDERS[name])(data_dir=data_dir, file_format="array_record")
