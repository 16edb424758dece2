"""`python_tags`: sentences of `python_docs`, each word with what it is to Python: keyword, builtin, exception, module.

    The "try" statement catches a `ValueError`.
    The  try       statement catches a  ValueError  .
    O    KEYWORD   O         O       O  EXCEPTION   O

A word counts as code where the documentation writes it as such, between quotes or backticks, which are then left out:
what is a keyword and what is English (if, in, is, with) has to be read from the sentence. Exceptions count wherever
they stand. Sentences without such a word are left out, and each is there once; text and licence are those of
`python_docs`, the answers Python's own (`keyword`, `builtins`, `sys.stdlib_module_names`).

A sentence's split is drawn by a hash of its words, as most of them are of the topics, which are in one split of
`python_docs`: what was pretrained on that set has read them, with their quotes.

Features: `tokens`, the words and signs; `tags`, as many classes.
"""

import builtins
import keyword
import re
import sys
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import tensorflow_datasets as tfds

from jaxnlp.data.corpora import python_docs
from jaxnlp.data.corpora.of_python import OfPython, states

TAGS = ("O", "KEYWORD", "BUILTIN", "EXCEPTION", "MODULE")
EXCEPTIONS = {name for name, x in vars(builtins).items() if isinstance(x, type) and issubclass(x, BaseException)}
TOKEN = re.compile(r"""(``|`|"|')([A-Za-z_][\w.]*)(?:\(\))?\1|\w+(?:'\w+)?|[^\w\s]""")
SENTENCE = re.compile(r"(?<=[.!?])\s+|\s*\n\s*\n\s*")
HELD_OUT = 10  # one in so many sentences goes to validation, and as many to test
LONGEST = 100  # words and signs of a sentence: what is longer is a table or a grammar


def tag(name: str) -> str:
    """What Python has under that name."""
    if name in EXCEPTIONS:
        return "EXCEPTION"
    if keyword.iskeyword(name):
        return "KEYWORD"
    if hasattr(builtins, name):
        return "BUILTIN"
    return "MODULE" if name in sys.stdlib_module_names else "O"


def split_of(words: str) -> str:
    number = int.from_bytes(sha256(words.encode()).digest()[:8], "big") % HELD_OUT
    return {0: "validation", 1: "test"}.get(number, "train")


def tagged(sentence: str) -> list[tuple[str, str]]:
    """(word, tag) of each word and sign."""
    found = []
    for match in TOKEN.finditer(sentence):
        code = match.group(2)
        word = match.group() if code is None else code
        found.append((word, tag(word) if code is not None or word in EXCEPTIONS else "O"))
    return found


class PythonTags(OfPython, skip_registration=True):
    """The TFDS builder; `TFDS("python_tags")` uses it."""

    name = "python_tags"
    BUILDER_CONFIGS = states(python_docs.__file__, __file__)
    DESCRIPTION = "Words of Python's documentation, and which of them are Python."

    def _features(self) -> Mapping[str, Any]:
        words = tfds.features.Sequence(tfds.features.Text())
        return {"tokens": words, "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=TAGS))}

    def _examples(self) -> Mapping[str, list[dict]]:
        parts: dict[str, dict[str, dict]] = {"train": {}, "validation": {}, "test": {}}
        for document in (one for found in python_docs.documents().values() for one in found):
            for pairs in map(tagged, SENTENCE.split(document["text"])):
                if len(pairs) <= LONGEST and any(tag != "O" for _, tag in pairs):
                    words, tags = zip(*pairs, strict=True)
                    example = {"tokens": list(words), "tags": list(tags)}
                    parts[split_of(" ".join(words))].setdefault(" ".join(words), example)
        return {split: list(found.values()) for split, found in parts.items()}
