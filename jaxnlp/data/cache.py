"""The tokenised cache: every example of a source encoded once, kept in ArrayRecord shards, read at random.

A cache is a folder named by the hash of what it was made from (the source's fingerprint, and the key that the caller
gives: the tokenizer's fingerprint, the task's key):

    CACHE_DIR/3f6c…/manifest.json      what it was made from, and the sha256 of every file
                    lengths.npy        int64, tokens per record: its longest array of one axis, or input_ids
                    00000.array_record, 00001.array_record, …

A record is a dict of numpy arrays with `input_ids` [length] among them, or [choices, length]. It is stored in pieces of
PIECE tokens, each the bytes of a safetensors file, so that a window of a book is read without the book: an array of one
axis is cut, and is in as many pieces as its own length asks for; any other is in the first piece.

The folder is written beside under another name and then renamed, so it is whole or absent. `build` checks every byte
of it against the manifest, once a call, a file a thread (1.1 GB/s a core, measured); one that fails is built anew,
with a message. What is damaged later, ArrayRecord's own checksums refuse on reading.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Int
from rich.console import Console
from rich.progress import Progress

from jaxnlp.data import sources

FORMAT = 1  # of the folder; part of its name
PIECE = 4096  # tokens; a window reads one or two pieces
SHARD_BYTES = 64 << 20  # a shard is closed above this size
WRITERS = 2  # threads that write shards, and shards that may wait in memory
EXAMPLES_PER_CALL = 256  # of `encode`: enough to keep the tokenizer's threads busy

Record = dict[str, np.ndarray]
Encode = Callable[[list[Mapping[str, Any]]], Iterable[Mapping[str, npt.ArrayLike]]]


class Cache:
    """Records by number. Reading is safe from several threads."""

    def __init__(self, path: pathlib.Path):
        """Checks every byte; ValueError says what is damaged."""
        manifest = _verify(path)
        self.lengths: Int[np.ndarray, " N"] = np.load(path / "lengths.npy")
        pieces = -(-self.lengths // PIECE)
        self._first_piece = np.concatenate([[0], np.cumsum(pieces)])
        self._shard_start = np.concatenate([[0], np.cumsum(manifest["shard_pieces"])])
        random_access = "readahead_buffer_size:0,max_parallelism:0"
        self._readers = [ArrayRecordReader(str(file), random_access) for file in sorted(path.glob("*.array_record"))]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Record:
        return self.read([range(len(self))[i]])[0]

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """`self[i]` of each number, 0 <= i < len(self); together they are read several times as fast."""
        ranges = [range(*self._first_piece[i : i + 2].tolist()) for i in numbers]
        wanted = np.array([piece for pieces in ranges for piece in pieces], np.int64)
        shards = np.searchsorted(self._shard_start, wanted, side="right") - 1
        found: dict[int, Record] = {}
        for shard in np.unique(shards).tolist():
            here = wanted[shards == shard].tolist()
            found.update(zip(here, self._load(shard, here), strict=True))
        return [_whole([found[piece] for piece in pieces]) for pieces in ranges]

    def slice(self, i: int, start: int, stop: int) -> Record:
        """`self[i]`, of each array that runs along the tokens [start:stop], reading only the pieces that hold it.

        0 <= start < stop <= length.
        """
        first = self._first_piece[i]
        pieces = range(first + start // PIECE, first + (stop - 1) // PIECE + 1)
        shard = int(np.searchsorted(self._shard_start, pieces.start, side="right")) - 1  # a record lies in one shard
        found, offset = _whole(self._load(shard, pieces)), start // PIECE * PIECE
        return {name: a[start - offset : stop - offset] for name, a in found.items() if a.ndim == 1}

    def _load(self, shard: int, pieces: Iterable[int]) -> list[Record]:
        raw = self._readers[shard].read([int(n - self._shard_start[shard]) for n in pieces])
        return [safetensors.numpy.load(piece) for piece in raw]


def _whole(pieces: list[Record]) -> Record:
    first, *rest = pieces
    return {name: _joined([value, *(p[name] for p in rest if name in p)]) for name, value in first.items()}


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def build(
    source: sources.Source,
    encode: Encode,
    *,
    key: Mapping[str, object],
    cache_dir: str | os.PathLike,
    progress: bool = True,
    data_dir: str | None = None,
) -> Cache:
    """The cache of a source's examples, from disk where it is there and whole.

    `encode` gets lists of examples and may give more or fewer records than it got; a record without tokens is left
    out. `key` (plain values) names whatever else the records depend on. Several processes may build at once: one
    does, the others wait for it.
    """
    identity = {"format": FORMAT, "source": sources.fingerprint(source, data_dir), "key": dict(key)}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = pathlib.Path(cache_dir).expanduser().absolute() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        if path.exists():
            try:
                return Cache(path)
            except ValueError as error:
                print(f"tokenised cache {path}: {error}; building it anew", file=sys.stderr)
                shutil.rmtree(path)
        partial = path.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir()
        try:
            _write(partial, identity, sources.open_source(source, data_dir), encode, progress)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return Cache(path)


def _write(path: pathlib.Path, identity: dict, examples: sources.Examples, encode: Encode, progress: bool) -> None:
    """Encodes in this thread (the tokenizer has threads of its own) while others write the shards."""
    lengths: list[int] = []
    shard: list[bytes] = []
    size = 0
    written: list[concurrent.futures.Future] = []
    with (
        concurrent.futures.ThreadPoolExecutor(WRITERS) as pool,
        Progress(console=Console(stderr=True), disable=not progress) as bar,
    ):
        task = bar.add_task("tokenising", total=len(examples))
        for record in _encoded(examples, encode, lambda n: bar.advance(task, n)):
            lengths.append(_length(record))
            pieces = list(_cut(record))
            shard += pieces
            size += sum(map(len, pieces))
            if size >= SHARD_BYTES:
                if len(written) >= WRITERS:
                    written[-WRITERS].result()  # so that few shards wait in memory
                written.append(pool.submit(_write_shard, path / f"{len(written):05}.array_record", shard))
                shard, size = [], 0
        if shard:
            written.append(pool.submit(_write_shard, path / f"{len(written):05}.array_record", shard))
    if not lengths:
        raise ValueError(
            f"source: found no tokens in its {len(examples)} examples, or none that has a label (-1: unlabelled); "
            "allowed: one example and more with text, and with a label where one is learned"
        )
    np.save(path / "lengths.npy", np.array(lengths, np.int64))
    _write_manifest(path, identity | {"shard_pieces": [future.result() for future in written]})


def _encoded(examples: sources.Examples, encode: Encode, advance: Callable[[int], None]) -> Iterator[Record]:
    for start in range(0, len(examples), EXAMPLES_PER_CALL):
        batch = [examples[i] for i in range(start, min(start + EXAMPLES_PER_CALL, len(examples)))]
        for record in encode(batch):
            if len(record["input_ids"]):
                yield {name: np.asarray(value, order="C") for name, value in record.items()}
        advance(len(batch))


def _length(record: Record) -> int:
    return max([record["input_ids"].shape[-1], *(len(a) for a in record.values() if a.ndim == 1)])


def _cut(record: Record) -> Iterator[bytes]:
    """The record's pieces, as safetensors bytes."""
    for start in range(0, _length(record), PIECE):
        piece = {name: a[start : start + PIECE] for name, a in record.items() if a.ndim == 1 and len(a) > start}
        yield safetensors.numpy.save(piece if start else record | piece)


def _write_shard(file: pathlib.Path, pieces: list[bytes]) -> int:
    """Uncompressed, one piece a chunk: made for reading at random."""
    writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for piece in pieces:
        writer.write(piece)
    writer.close()
    return len(pieces)


def _write_manifest(path: pathlib.Path, content: dict) -> None:
    manifest = content | {"files": _checksums(path)}
    manifest["sha256"] = _checksum_of(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _verify(path: pathlib.Path) -> dict:
    """The manifest of a cache in which every byte is as it was written."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        whole = manifest.pop("sha256") == _checksum_of(manifest)
    except (OSError, ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise ValueError("manifest.json is missing or damaged")
    found = _checksums(path)
    if damaged := sorted(file for file, checksum in manifest["files"].items() if found.get(file) != checksum):
        raise ValueError(f"{', '.join(damaged)}: missing or damaged")
    return manifest


def _checksums(path: pathlib.Path) -> dict[str, str]:
    def checksum(file: pathlib.Path) -> str:
        with open(file, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    files = sorted(file for file in path.iterdir() if file.name != "manifest.json")
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return dict(zip([file.name for file in files], pool.map(checksum, files), strict=True))


def _checksum_of(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
