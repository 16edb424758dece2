"""Where text comes from: sets of TensorFlow Datasets (TFDS), or any object with `__len__` and `__getitem__`.

A source gives examples by number, each a dict of plain values, text as `str`:

    >>> open_source([{"text": "to be"}, {"text": "or not"}])[1]
    {'text': 'or not'}

TFDS sets are read as ArrayRecord files, at random and without TensorFlow. A set is looked for in this order: our own
(`jaxnlp.data.corpora`), which are made when absent, three of them without a download; a folder that
lies prepared in the data directory, whoever wrote it (`jaxnlp.data.corpora.text_files` writes one of a user's own
files); the public catalogue, which TFDS downloads. Of our own sets, too, a prepared folder serves, if it is of the
builder's version, and of `python_docs` if it is of this very Python. The data directory may lie in Google Cloud
Storage, gs://bucket/path; what is read there was prepared here and copied.
"""

import concurrent.futures
import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

from jaxnlp.data import corpora
from jaxnlp.files import StorageError, explained, is_remote, locate

SHARDS_AT_ONCE = 16  # that are opened in the store to be counted: each waits for two answers


@runtime_checkable
class Examples(Protocol):
    """What every source is read as."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A split of a set of TensorFlow Datasets."""

    name: str  # as TFDS writes it: "glue/sst2", "tiny_shakespeare", "mine:1.0.0"
    split: str = "train"  # as TFDS writes it: "validation", "train[:10%]", "validation+test"
    # None: the directory given on opening, else TFDS's own (TFDS_DATA_DIR, ~/tensorflow_datasets)
    data_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class Joined:
    """Several sets as one: the first one's examples, then the next one's."""

    parts: tuple[TFDS, ...]

    def __post_init__(self):
        if not self.parts:
            raise ValueError("Joined: found no parts; allowed: one or more")


Source = TFDS | Joined | Examples


def open_source(source: Any, data_dir: str | None = None) -> Examples:
    """Examples by number. Any other object with `__len__` and `__getitem__` is returned as it is.

    ValueError for what cannot be found or read; StorageError for a set in the store with a file missing or cut off.
    """
    if isinstance(source, Joined):
        return _Chain(tuple(open_source(part, data_dir) for part in source.parts))
    if not isinstance(source, TFDS):
        if not isinstance(source, Examples):
            found = type(source).__name__
            raise TypeError(f"source: found {found}; allowed: TFDS(...), Joined(...), or __len__ and __getitem__")
        if len(source) == 0:
            raise ValueError("source: found no examples; allowed: one or more")
        return source
    with explained(source.data_dir or data_dir or ""):
        return _open_tfds(source, data_dir)


def _open_tfds(source: TFDS, data_dir: str | None) -> Examples:
    builder = _builder(source, data_dir)
    where = f"{source.name!r} in {builder.data_path}"
    splits = ", ".join(f"{name} ({info.num_examples})" for name, info in builder.info.splits.items())
    if "array_record" not in [f.value for f in builder.info.available_file_formats()]:
        raise ValueError(
            f"{where}: found files of format {builder.info.file_format.value}; allowed: array_record, which is read"
            " without TensorFlow. Delete the folder, or give another data_dir, and it is prepared anew."
        )
    try:
        empty = builder.info.splits[source.split].num_examples == 0
    except (KeyError, ValueError) as error:
        raise ValueError(f"split {source.split!r} of {where}: not found; there are {splits}") from error
    if empty:
        raise ValueError(f"split {source.split!r} of {where}: found no examples; there are {splits}")
    if is_remote(builder.data_path):
        _check_shards(builder.info.splits[source.split].file_instructions)
    return _Examples(builder.as_data_source(split=source.split))


def _check_shards(instructions: list[Any]) -> None:
    """ArrayRecord takes an object that is missing from the store for an empty one, so each is opened and counted."""
    from array_record.python.array_record_module import ArrayRecordReader

    def wrong(instruction: Any) -> str | None:
        path, expected = os.fspath(instruction.filename), instruction.examples_in_shard
        found = ArrayRecordReader(path).num_records()
        if found == expected:
            return None
        return (
            f"{path}: "
            + (f"found {found}" if epath.Path(path).exists() else "missing")
            + f", expected {expected} records"
        )

    with concurrent.futures.ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        if problems := [problem for problem in pool.map(wrong, instructions) if problem is not None]:
            raise StorageError("the data set is not whole; copy it again:\n  " + "\n  ".join(problems))


def fingerprint(source: Source, data_dir: str | None = None) -> str:
    """A hash that changes when the examples do.

    Of a TFDS set it is that of the split's name and the set's own description on disk: version, features, shard sizes,
    and a hash by which `text_files` tells its texts and `python_docs` its rules and its Python. Of joined sets it is
    that of their hashes, of any other object that of every example.
    """
    digest = hashlib.sha256()
    if isinstance(source, Joined):
        for part in source.parts:
            digest.update(fingerprint(part, data_dir).encode())
    elif isinstance(source, TFDS):
        with explained(source.data_dir or data_dir or ""):
            path = _builder(source, data_dir).data_path
            for part in (
                source.split.encode(),
                (path / "dataset_info.json").read_bytes(),
                (path / "features.json").read_bytes(),
            ):
                digest.update(part)
    else:
        examples = open_source(source)
        for i in range(len(examples)):
            digest.update(json.dumps(examples[i], sort_keys=True, default=lambda value: value.tolist()).encode())
    return digest.hexdigest()


def class_names(source: Source, feature: str, data_dir: str | None = None) -> tuple[str, ...] | None:
    """The names of a feature's classes; None where the source names none. ValueError where joined sets differ."""
    if isinstance(source, Joined):
        names = [class_names(part, feature, data_dir) for part in source.parts]
        if len({*names}) > 1:
            found = "; ".join(f"{part.name}: {of_part}" for part, of_part in zip(source.parts, names, strict=True))
            raise ValueError(
                f"the parts differ in the classes of feature {feature!r}: {found}; allowed: the same in all"
            )
        return names[0]
    if not isinstance(source, TFDS):
        return None
    features = _builder(source, data_dir).info.features
    if feature not in features:
        raise ValueError(f"feature {feature!r} of {source.name!r}: not found; there are {', '.join(sorted(features))}")
    connector = getattr(features[feature], "feature", features[feature])  # a sequence of labels names them inside
    names = getattr(connector, "names", None)
    return tuple(names) if names else None


@dataclasses.dataclass(frozen=True)
class _Examples:
    """TFDS's data source with its bytes read as text."""

    records: Examples

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict:
        return _plain(self.records[range(len(self))[i]])  # IndexError past the end, so that a for loop ends


@dataclasses.dataclass(frozen=True)
class _Chain:
    """Examples of several sources, one after the other."""

    parts: tuple[Examples, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        i = range(len(self))[i]
        for part in self.parts:
            if i < len(part):
                break
            i -= len(part)
        return part[i]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if isinstance(value, np.generic) else value


def _builder(source: TFDS, data_dir: str | None):
    """The prepared TFDS builder of a set."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    root = os.fspath(locate(source.data_dir or data_dir or tfds.core.constants.DATA_DIR))
    if source.name in corpora.BUILDERS:
        return _made_here(source.name, root)
    # A prepared folder comes before the catalogue's code, which would look for its own version alone.
    with contextlib.suppress(tfds.core.DatasetNotFoundError), corpora.quiet():
        return read_only_builder.builder_from_files(source.name, data_dir=root)
    _check_here(source.name, root)
    builder = _from_catalogue(source.name, root)
    print(f"preparing {builder.info.full_name} in {root}: TFDS downloads it", file=sys.stderr)
    builder.download_and_prepare()
    return builder


def _made_here(name: str, root: str):
    with corpora.quiet():
        builder = corpora.builder(name, root)
        prepared = builder.is_prepared()
    if not prepared:
        _check_here(name, root)
        print(f"preparing {builder.info.full_name} in {root}", file=sys.stderr)
        with corpora.quiet():
            try:
                builder.download_and_prepare()
            except OSError:
                builder = corpora.builder(name, root)
                if not builder.is_prepared():  # else another process was faster
                    raise
    return builder


def _check_here(name: str, root: str) -> None:
    """ValueError for the store: what writes ArrayRecord files knows only this machine's."""
    if is_remote(root):
        folder = re.split("[/:]", name)[0]
        raise ValueError(
            f"set {name!r}: not in {root}, and sets are prepared on a machine's own disk. Open it once with a data_dir"
            f" here, then copy its folder: gcloud storage cp -r DIR/{folder} {root}/"
        )


def _from_catalogue(name: str, root: str):
    import tensorflow_datasets as tfds

    for module in (None, "text", "translate", "question_answering", "summarization"):
        if module:  # TFDS knows these modules' sets only once they are imported; some of them want TensorFlow
            with contextlib.suppress(ImportError), corpora.quiet():
                importlib.import_module(f"tensorflow_datasets.{module}")
        try:
            with corpora.quiet():
                return tfds.builder(name, data_dir=root, file_format="array_record")
        except tfds.core.DatasetNotFoundError:
            continue
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"set {name!r}: not in {root}, and TFDS's own code for it says: {str(error).strip()}"
            ) from error
    prepared = sorted({p.parent.name for p in epath.Path(root).glob("*/*") if p.is_dir()} - {"downloads"})
    known = {*tfds.list_builders(with_community_datasets=False), *prepared, *corpora.BUILDERS}
    near = difflib.get_close_matches(name.split("/")[0], known, n=3)
    raise ValueError(
        f"set {name!r}: not in {root} and not in the TFDS catalogue; prepared there: {', '.join(prepared) or 'none'};"
        f" made here: {', '.join(corpora.BUILDERS)}" + (f"; near: {', '.join(near)}" if near else "") + ". Your own"
        f" files: python -m jaxnlp.data.corpora.text_files --name {name.split('/')[0]} --train FILE --data-dir {root}"
    )
