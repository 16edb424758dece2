"""`python_docs`: the English that lies on every machine with Python, about 2 MB, without a download.

The language reference (`pydoc_data.topics`) and the docstrings of the standard library's modules, classes and
functions, read with `ast` from the library's source files; nothing is imported. The text is that of
the Python that makes it: each makes a set of its own. Licence: the Python Software Foundation's.

Features: `text`; `title`, "collections.OrderedDict.move_to_end"; `kind`, topic, module, class or function; `module`,
"collections.abc"; `group`, the field that the module serves (`GROUPS`), -1 where it is in none.

Text that occurs twice is kept once. A module lies in one split as a whole, chosen by a hash of its name. The topics
repeat one another's paragraphs: they are all in train.
"""

import ast
import inspect
import pathlib
import sysconfig
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import tensorflow_datasets as tfds

from jaxnlp.data.corpora.of_python import OfPython, states

KINDS = ("topic", "module", "class", "function")
OMITTED = {"__pycache__", "_bundled", "dist-packages", "idle_test", "lib2to3", "site-packages", "test", "tests"}

GROUPS = {  # after the chapters of the library reference; a module's name without leading underscores
    "concurrency": "asyncio concurrent contextvars multiprocessing queue sched selectors subprocess threading"
    " threading_local",
    "data_formats": "aifc base64 binhex chunk colorsys configparser copyreg csv dbm imghdr json netrc pickle plistlib"
    " quopri shelve sndhdr sqlite3 struct sunau tomllib uu wave xdrlib",
    "data_types": "bisect calendar collections collections_abc copy datetime decimal enum fractions functools graphlib"
    " heapq numbers operator pydatetime pydecimal random statistics strptime types typing weakref weakrefset zoneinfo",
    "development": "bdb cProfile distutils doctest ensurepip pdb profile pstats pydoc timeit trace tracemalloc unittest"
    " venv zipapp",
    "files": "bz2 compression filecmp fileinput fnmatch genericpath glob gzip io linecache lzma ntpath nturl2path"
    " pathlib posixpath pyio shutil stat tarfile tempfile zipfile",
    "gui": "idlelib tkinter turtle turtledemo",
    "language": "ast compileall dis keyword modulefinder opcode pickletools py_compile pyclbr symtable tabnanny token"
    " tokenize",
    "mail_and_markup": "email html mailbox mailcap markupbase mimetypes xml",
    "networking": "asynchat asyncore cgi cgitb ftplib http imaplib ipaddress nntplib poplib smtpd smtplib socket"
    " socketserver ssl telnetlib urllib uuid webbrowser wsgiref xmlrpc",
    "runtime": "abc atexit bootlocale code codeop contextlib dataclasses imp importlib inspect pkgutil py_abc runpy"
    " site sitebuiltins sysconfig traceback warnings zipimport",
    "system": "aix_support argparse bootsubprocess cmd crypt ctypes curses getopt getpass logging optparse os"
    " osx_support pipes platform pty signal tty",
    "text": "codecs difflib encodings gettext locale pprint re readline reprlib rlcompleter shlex sre string stringprep"
    " textwrap",
}
GROUP_OF = {module: group for group, modules in GROUPS.items() for module in modules.split()}

HELD_OUT = 10  # one in so many modules goes to validation, and as many to test


def split_of(document: Mapping[str, str]) -> str:
    """By a hash of the module's name, the same on every machine. The topics are all in train."""
    if document["kind"] == "topic":
        return "train"
    number = int.from_bytes(sha256(document["module"].encode()).digest()[:8], "big") % HELD_OUT
    return {0: "validation", 1: "test"}.get(number, "train")


def group_of(top_level_module: str) -> str | None:
    return GROUP_OF.get(top_level_module.lstrip("_"))


def documents() -> dict[str, list[dict]]:
    """By split, every document once, in the order of the modules' paths; the topics last."""
    unique = {}
    for document in (*_docstrings(), *_topics()):
        unique.setdefault(document["text"], document)
    splits = {name: [] for name in ("train", "validation", "test")}
    for document in unique.values():
        splits[split_of(document)].append(document)
    return splits


def _topics() -> Iterator[dict]:
    from pydoc_data.topics import topics

    for title, text in sorted(topics.items()):
        yield _document(text, title, "topic", "pydoc_data.topics")


def _docstrings() -> Iterator[dict]:
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    files = (path.relative_to(library) for path in library.rglob("*.py"))
    for file in sorted(path for path in files if not OMITTED.intersection(path.parts)):
        module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        yield from _within(ast.parse((library / file).read_bytes()), module, module)


def _within(node: ast.AST, title: str, module: str) -> Iterator[dict]:
    """The docstrings of a module, class or function and of all that is defined inside."""
    kinds = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
    if type(node) in kinds and (text := ast.get_docstring(node, clean=False)) and text.strip():
        yield _document(text, title, kinds[type(node)], module)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _within(child, f"{title}.{child.name}" if type(child) in kinds else title, module)


def _document(text: str, title: str, kind: str, module: str) -> dict:
    group = group_of(module.split(".")[0]) or -1  # TFDS's mark of an example without a label
    return {"text": inspect.cleandoc(text).strip(), "title": title, "kind": kind, "module": module, "group": group}


class PythonDocs(OfPython, skip_registration=True):
    """The TFDS builder; `TFDS("python_docs")` uses it."""

    name = "python_docs"
    BUILDER_CONFIGS = states(__file__)
    DESCRIPTION = "The docstrings of Python's standard library and the topics of its language reference."

    def _features(self) -> Mapping[str, Any]:
        text, classes = tfds.features.Text(), tfds.features.ClassLabel
        kinds = {"kind": classes(names=KINDS), "module": text, "group": classes(names=list(GROUPS))}
        return {"text": text, "title": text, **kinds}

    def _examples(self) -> Mapping[str, list[dict]]:
        return documents()
