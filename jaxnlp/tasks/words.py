"""What a model has learnt of words: neighbours and maps of embeddings, and the gates of a recurrent layer.

    cos(u, v) = u'v / |u| |v|                                   Mikolov et al., 2013: likeness of two words
    X = U S V',  places = U S, the first two columns            principal components of the words' rows, centred

A word of several tokens stands where the mean of their rows does.

Letters: V vocabulary, D width, N words.
"""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.nn.cells import CELLS
from jaxnlp.nn.recurrent import DIRECTIONS
from jaxnlp.tasks.task import Heatmap, Points

Table = Float[Array | np.ndarray, "V D"]

WORD = re.compile(r"[^\W\d_]+")  # letters of any script
GATES = [name for cell in CELLS.values() for name in cell.NAMES]
WRITTEN = ("target", "output")  # tables of the tokens that a model writes, where it reads others


def neighbours(table: Table, tokenizer: Tokenizer, word: str, k: int = 10) -> tuple[tuple[str, float], ...]:
    """The k tokens nearest to the word, (text, cosine), nearest first; of tokens that look alike the nearest one.

    Special tokens, padding rows and the word itself are left out. ValueError for a word that the vocabulary lacks.
    """
    if k < 1:
        raise ValueError(f"k: found {k}; allowed: 1 and more")
    rows = _normal(np.asarray(table, np.float32)[: tokenizer.vocab_size])
    cosines = rows @ _vectors(table, tokenizer, [word])[0]
    itself = _ids(tokenizer, word)
    special = {*tokenizer.backend.get_added_tokens_decoder(), tokenizer.unk_id, *(itself if len(itself) == 1 else ())}
    own = {word, "".join(map(tokenizer.spell, itself))}
    found: dict[str, float] = {}
    for i in np.argsort(-cosines, kind="stable").tolist():
        name = tokenizer.spell(i)
        if i not in special and name not in own and name not in found:
            found[name] = float(cosines[i])
        if len(found) == k:
            break
    return tuple(found.items())


def word_map(table: Table, tokenizer: Tokenizer, words: Sequence[str], title: str = "Words") -> Points:
    """The words by the first two principal components of their normalised embeddings; the same each time.

    A component has no sign of its own: the largest of its weights is made positive.
    """
    if len(words) < 3:
        raise ValueError(f"word_map: found {len(words)} words; allowed: 3 and more")
    x = _vectors(table, tokenizer, words)
    u, s, v = np.linalg.svd(x - x.mean(0, keepdims=True), full_matrices=False)
    signs = np.sign(np.take_along_axis(v, np.abs(v).argmax(1, keepdims=True), 1)[:2, 0])
    places = u[:, :2] * (s[:2] * signs)[None]
    return Points(title, tuple(words), tuple((float(a), float(b)) for a, b in places))


def frequent(texts: Iterable[str], tokenizer: Tokenizer, n: int) -> tuple[str, ...]:
    """The n most frequent words of the texts that the vocabulary can spell, most frequent first, then by the alphabet.

    Spellings that have the same tokens (The, the) are one word, shown as it is written most often.
    """
    counts = collections.Counter(word for text in texts for word in WORD.findall(text))
    spellings: dict[tuple[int, ...], list[str]] = {}
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        ids = _ids(tokenizer, word)
        if ids and tokenizer.unk_id not in ids:
            spellings.setdefault(tuple(ids), []).append(word)
    ranked = sorted(spellings.values(), key=lambda same: (-sum(counts[word] for word in same), same[0]))
    return tuple(same[0] for same in ranked[:n])


def table_of(params: Mapping[str, Any], name: str | None = None) -> Table:
    """The embeddings among a model's parameters, by the name of their module: "source", "target", "output", …

    None: the only table that is looked up, not the output's own. ValueError, with the names, if there is no such one.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    tables = {"/".join(key.key for key in path): leaf for path, leaf in paths if path[-1].key == "tokens"}
    tables = {path.removesuffix("/tokens"): leaf for path, leaf in tables.items()}
    found = [path for path in tables if (path != "output" if name is None else path == name)]
    if len(found) != 1:
        raise ValueError(f"table: found {name!r}; allowed: one of {', '.join(sorted(tables)) or 'none'}")
    return tables[found[0]]


def gate_heatmaps(
    layers: Sequence[Mapping[str, Mapping[str, Float[Array | np.ndarray, "B T D"]]]],
    tokens: Sequence[str],
    n_units: int = 32,
) -> tuple[Heatmap, ...]:
    """The gates of the first units over a sentence, one picture for each layer, direction and gate.

    `layers` is `run.apply(…, outputs=("gates",))["gates"]`, of which the first row is drawn, and `tokens` its names.
    """

    def draw() -> Iterator[Heatmap]:
        for i, directions in enumerate(layers):
            for direction in sorted(directions, key=DIRECTIONS.index):
                for gate in sorted(directions[direction], key=GATES.index):
                    units = np.asarray(directions[direction][gate][0], np.float64)[: len(tokens), :n_units].T
                    yield Heatmap(
                        title=f"Layer {i + 1}, {direction}: {gate}",
                        rows=tuple(f"unit {j + 1}" for j in range(len(units))),
                        columns=tuple(tokens),
                        values=tuple(map(tuple, units.tolist())),
                    )

    return tuple(draw())


def _ids(tokenizer: Tokenizer, word: str) -> list[int]:
    """The word's tokens as they are inside a text: after a space, where that is a part of the first one."""
    alone, inside = tokenizer.encode(word), tokenizer.encode(f" {word}")
    return inside if len(inside) <= len(alone) else alone


def _vectors(table: Table, tokenizer: Tokenizer, words: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """A row of length 1 for each word."""
    table = np.asarray(table, np.float32)
    if len(table) < tokenizer.vocab_size:
        raise ValueError(f"table: found {len(table)} rows; allowed: one for each of {tokenizer.vocab_size} tokens")
    means = []
    for word in words:
        ids = _ids(tokenizer, word)
        if not word.strip() or not ids or tokenizer.unk_id in ids:
            raise ValueError(f"word: found {word!r}, which the vocabulary lacks; allowed: words of its tokens")
        means.append(table[ids].mean(0))
    return _normal(np.stack(means))


def _normal(rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
