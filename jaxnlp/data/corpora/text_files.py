"""A TFDS set of your own .txt, .jsonl or .tsv files, or of line-parallel ones.

    python -m jaxnlp.data.corpora.text_files --name mine --train a.txt 'books/*.txt' --validation b.txt
    python -m jaxnlp.data.corpora.text_files --name ours --train de=train.de en=train.en --test de=test.de en=test.en

    >>> prepare("reviews", {"train": ["train.tsv"], "test": ["test.tsv"]}, label="sentiment")
    >>> open_source(TFDS("reviews"))[0]
    {'sentiment': 1, 'text': 'a thriller that thrills'}

Of a .txt file every file, paragraph (blank lines between) or line is a document, with the feature `text`. Of .jsonl
and .tsv files (with a header) every line is one, and columns are features: texts, but for the label's, whose classes
are the names found in train, sorted. Files as FEATURE=FILE are line-parallel, whatever their endings: line 7 of
each is a text of example 7, blank or not. Files are UTF-8. Order is kept.

All files are read and checked before anything is written; what was there under the name is then replaced at once.
"""

import argparse
import dataclasses
import glob
import hashlib
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from jaxnlp.data import corpora

KINDS = (".txt", ".jsonl", ".tsv")
PARALLEL = "FEATURE=FILE"
UNITS = ("file", "paragraph", "line")
Line = tuple[str, dict[str, str]]  # where it stands, for errors; its columns
File = pathlib.Path | dict[str, pathlib.Path]  # one, or line-parallel ones by feature


def prepare(
    name: str,
    splits: Mapping[str, Sequence[str]],
    *,
    data_dir: str | None = None,
    unit: str = "file",
    columns: Sequence[str] | None = None,
    label: str | None = None,
) -> dict[str, int]:
    """Writes the set and returns the number of documents in each split; `TFDS(name)` reads it back.

    `splits` gives each split's files, or patterns such as "books/*.txt", or of line-parallel files "de=a/*.de" and
    "en=a/*.en". `columns` are the text columns of .jsonl and .tsv files; None: all those of the first line but the
    label's.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"name: found {name!r}; allowed: lower-case letters, digits and _, a letter first")
    if unit not in UNITS:
        raise ValueError(f"unit: found {unit!r}; allowed: {', '.join(UNITS)}")
    files = {split: _files(split, patterns) for split, patterns in splits.items()}
    if not files.get("train"):
        raise ValueError(f"splits: found {', '.join(files) or 'none'}; allowed: train, and any others")
    if len(kinds := {_kind(file) for found in files.values() for file in found}) > 1 or not kinds <= {*KINDS, PARALLEL}:
        allowed = f"one kind of {', '.join(KINDS)}, or {PARALLEL} alone"
        raise ValueError(f"files: found {', '.join(sorted(kinds))}; allowed: {allowed}")
    if kinds <= {".txt", PARALLEL} and (columns or label):
        (kind,) = kinds
        raise ValueError(f"columns={columns}, label={label}: found {kind} files; allowed: with .jsonl and .tsv files")

    first = next(_lines(files["train"][0], unit), ("", {}))[1]
    columns = tuple(columns or (column for column in first if column != label))
    lines = _Lines(files, unit, columns, label)
    names = sorted({columns[label] for _, columns in lines.of("train")}) if label else []
    digest, counts = hashlib.sha256(), {}
    for split in files:
        counts[split] = 0
        for where, line in lines.of(split):
            if label and line[label] not in names:
                raise ValueError(f"{where}: {label}={line[label]!r}; allowed, as in train: {', '.join(names)}")
            digest.update(json.dumps(line).encode())
            counts[split] += 1
        if not counts[split]:
            raise ValueError(f"split {split!r}: found no documents in {', '.join(splits[split])}")

    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=root) as folder, corpora.quiet():
        builder = _builder(name, lines, names, f"sha256 {digest.hexdigest()}")
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
        shutil.rmtree(root / name, ignore_errors=True)
        (pathlib.Path(folder) / name).rename(root / name)
    return counts


@dataclasses.dataclass(frozen=True)
class _Lines:
    """The chosen columns of all files, checked."""

    files: dict[str, list[File]]
    unit: str
    columns: tuple[str, ...]
    label: str | None

    def of(self, split: str) -> Iterator[Line]:
        wanted = (*self.columns, self.label) if self.label else self.columns
        for path in self.files[split]:
            for where, found in _lines(path, self.unit):
                if missing := [column for column in wanted if column not in found]:
                    raise ValueError(f"{where}: no column {', '.join(missing)}; there are {', '.join(found)}")
                line = {column: found[column] for column in wanted}
                if self.label:
                    line[self.label] = str(line[self.label])
                if wrong := [column for column, value in line.items() if not isinstance(value, str)]:
                    raise ValueError(f"{where}: {wrong[0]}={line[wrong[0]]!r}; allowed: a string")
                yield where, line


def _builder(name: str, lines: _Lines, names: list[str], description: str) -> type[tfds.core.GeneratorBasedBuilder]:
    class TextFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {}  # noqa: RUF012  nothing is downloaded

        def _info(self) -> tfds.core.DatasetInfo:
            features = dict.fromkeys(lines.columns, tfds.features.Text())
            if lines.label:
                features[lines.label] = tfds.features.ClassLabel(names=names)
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                description=description,  # the text's hash, by which a cache of another text under this name is told
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager) -> dict[str, Iterator]:
            return {split: self._generate_examples(split) for split in lines.files}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
            return ((i, line) for i, (_, line) in enumerate(lines.of(split)))

    TextFiles.name = name
    return TextFiles


def _files(split: str, patterns: Sequence[str]) -> list[File]:
    """The files of a split; of line-parallel ones the first of every feature, the second of every feature, …"""
    if not all(re.match("[A-Za-z_][A-Za-z0-9_]*=", p) and not pathlib.Path(p).exists() for p in patterns):
        return _matching(split, patterns)
    features: dict[str, list[str]] = {}
    for pattern in patterns:
        feature, _, file = pattern.partition("=")
        features.setdefault(feature, []).append(file)
    found = {feature: _matching(split, files) for feature, files in features.items()}
    if len(found) < 2 or len({*map(len, found.values())}) > 1:
        counts = ", ".join(f"{len(paths)} of {feature}" for feature, paths in found.items())
        raise ValueError(f"split {split!r}: found files {counts}; allowed: as many of each of two features or more")
    return [dict(zip(found, paths, strict=True)) for paths in zip(*found.values(), strict=True)]


def _kind(file: File) -> str:
    return PARALLEL if isinstance(file, dict) else file.suffix


def _matching(split: str, patterns: Sequence[str]) -> list[pathlib.Path]:
    found = []
    for pattern in patterns:
        paths = [pattern] if pathlib.Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise FileNotFoundError(f"split {split!r}: found no file {pattern} in {pathlib.Path.cwd()}")
        found += map(pathlib.Path, paths)
    return found


def _lines(path: File, unit: str) -> Iterator[Line]:
    """The documents of a file, each with the place to name in an error."""
    if isinstance(path, dict):
        yield from _parallel(path)
    elif path.suffix == ".txt":
        yield from ((str(path), {"text": text}) for text in _split(path, unit) if text.strip())
    elif path.suffix == ".jsonl":
        for number, text in _decoded(path):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(line, dict):
                raise ValueError(f"{path}, line {number}: found {type(line).__name__}; allowed: an object, {{…}}")
            yield f"{path}, line {number}", line
    else:
        header: list[str] = []
        for number, text in _decoded(path):
            cells = text.rstrip("\r\n").split("\t")
            header = header or cells
            if len(cells) != len(header):
                raise ValueError(f"{path}, line {number}: found {len(cells)} columns; the header has {len(header)}")
            if number > 1:
                yield f"{path}, line {number}", dict(zip(header, cells, strict=True))


def _parallel(files: dict[str, pathlib.Path]) -> Iterator[Line]:
    counts = {path: sum(1 for _ in _decoded(path, blank=True)) for path in files.values()}
    fewest, longest = min(counts.values()), max(counts, key=counts.__getitem__)
    if fewest < counts[longest]:
        found = ", ".join(f"{n} lines in {path}" for path, n in counts.items())
        raise ValueError(f"{longest}, line {fewest + 1}: no partner; found {found}; allowed: as many in each")
    for lines in zip(*(_decoded(path, blank=True) for path in files.values()), strict=True):
        where = f"{', '.join(map(str, files.values()))}, line {lines[0][0]}"
        yield where, {feature: text.rstrip("\r\n") for feature, (_, text) in zip(files, lines, strict=True)}


def _split(path: pathlib.Path, unit: str) -> Iterator[str]:
    if unit == "line":
        yield from (text.rstrip("\r\n") for _, text in _decoded(path, blank=True))
        return
    text = "".join(text for _, text in _decoded(path, blank=True))
    yield from [text] if unit == "file" else (part.strip("\r\n") for part in re.split(r"\n\s*\n", text))


def _decoded(path: pathlib.Path, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, or all, with their numbers from 1; a byte order mark is dropped."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + error.start
                raise ValueError(f"{path}: not UTF-8: byte {line[error.start]:#04x} at offset {at}") from error
            offset += len(line)
            text = text.removeprefix("\ufeff") if number == 1 else text
            if blank or text.strip():
                yield number, text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxnlp.data.corpora.text_files",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", required=True, help="the set's name: TFDS(NAME) reads it")
    for split in ("train", "validation", "test"):
        help_ = f"files, patterns, or {PARALLEL} for line-parallel ones"
        parser.add_argument(f"--{split}", nargs="+", metavar="FILE", required=split == "train", help=help_)
    parser.add_argument("--data-dir", help="default: TFDS_DATA_DIR, else ~/tensorflow_datasets")
    parser.add_argument("--unit", choices=UNITS, default="file", help="what a document of a .txt file is")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="text columns; default: all but the label's")
    parser.add_argument("--label", metavar="NAME", help="the column of the class")
    given = vars(parser.parse_args(arguments))
    splits = {split: given.pop(split) for split in ("train", "validation", "test")}
    try:
        counts = prepare(given.pop("name"), {split: files for split, files in splits.items() if files}, **given)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(", ".join(f"{split}: {n} documents" for split, n in counts.items()))


if __name__ == "__main__":
    main()
