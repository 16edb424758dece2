"""Texts as a body reads them: with the tokens that begin, part and end them, and cut to a length.

    tokenizer of    one text                a pair                                 token_type_ids
    BERT            [CLS] a [SEP]           [CLS] a [SEP] b [SEP]                  0 of a, 1 of b, each with its [SEP]
    RoBERTa         <s> a </s>              <s> a </s> </s> b </s>                 none
    GPT             a <|endoftext|>         a <|endoftext|> b <|endoftext|>        none
      with MARKS    _start_ a _classify_    _start_ a _delimiter_ b _classify_     none

MARKS are GPT-1's tokens, which its vocabulary gets at fine-tuning: init=Pretrained(…, tokens=MARKS) (Radford et al.,
2018, section 3.3 and figure 1). A pair that is too long loses the end of its longer text (Devlin et al., 2019; as
`longest_first` of transformers).
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from flax import linen as nn
from jaxtyping import Float

from jaxnlp.data import batches
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.tasks.task import Batch, Record, require

ROWS = 32  # of a batch of predictions
PARTS = 2  # widths of such batches from a power of two to the next: a program each, and less padding
Tokens = Sequence[int] | np.ndarray
MARKS = ("_start_", "_delimiter_", "_classify_")  # start, delimiter and extract: names of the authors' code
READ = ("input_ids", "attention_mask", "token_type_ids")  # what of a batch the model reads


class Template(NamedTuple):
    """The special tokens of one text, or of two."""

    start: tuple[int, ...]
    between: tuple[int, ...]
    end: tuple[int, ...]
    segments: bool  # whether a second text has token_type_ids of its own

    def room(self, length: int, n_texts: int) -> int:
        """Tokens that are left to the texts; ValueError if there is none for each."""
        special = len(self.start) + len(self.end) + (len(self.between) if n_texts == 2 else 0)
        if length < special + n_texts:
            raise ValueError(f"task.length={length}; allowed: {special + n_texts} and more, {special} of them special")
        return length - special

    def join(self, a: Tokens, b: Tokens | None = None) -> Record:
        """{"input_ids"} of one text; of a pair {"input_ids", "token_type_ids"}, the latter where there are segments."""
        first = [*self.start, *a, *(self.end if b is None else self.between)]
        if b is None:
            return {"input_ids": np.asarray(first, np.int32)}
        ids = np.asarray([*first, *b, *self.end], np.int32)
        kinds = {"token_type_ids": np.int32(np.arange(len(ids)) >= len(first))} if self.segments else {}
        return {"input_ids": ids, **kinds}

    def fit(self, a: Tokens, b: Tokens | None = None, *, length: int) -> Record:
        """As `join`, cut to `length` tokens."""
        if b is None:
            return self.join(a[: self.room(length, 1)])
        room = self.room(length, 2)
        if len(a) + len(b) > room:
            short = min(len(a), len(b), room // 2)
            a, b = (a[:short], b[: room - short]) if len(a) <= len(b) else (a[: room - short], b[:short])
        return self.join(a, b)


BARE = Template((), (), (), segments=False)  # nothing round a text: what transformers' GPT reads


def template(tokenizer: Tokenizer) -> Template:
    marks = {tokenizer.token(id): (id,) for id in tokenizer.special_ids}
    if lacking := [name for name in MARKS if name not in marks]:
        if len(lacking) < len(MARKS):
            raise ValueError(f"the tokenizer has no {', '.join(lacking)}; allowed: {', '.join(MARKS)}, or none of them")
    else:
        return Template(*(marks[name] for name in MARKS), segments=False)
    end = (tokenizer.eos_id,)
    begins = tokenizer.token(tokenizer.bos_id) in ("[CLS]", "<s>")
    between = end * 2 if tokenizer.token(tokenizer.bos_id) == "<s>" else end
    return Template((tokenizer.bos_id,) if begins else (), between, end, tokenizer.token(end[0]) == "[SEP]")


def fitted(items: Sequence[Sequence[Tokens]], form: Template, length: int, *, quiet: bool = False) -> list[Record]:
    """What the model reads of texts, or pairs of them, at most `length` tokens; a message says how many are cut.

    ValueError for what has no token.
    """
    if not (form.start or form.end) and not all(any(map(len, item)) for item in items):
        raise ValueError("a text without a token; allowed: one with a word, as nothing is put round it")
    cut = sum(sum(map(len, item)) > form.room(length, len(item)) for item in items)
    if cut and not quiet:
        print(f"{cut} of {len(items)} inputs are longer than {length} tokens and cut", file=sys.stderr)
    return [form.fit(*item, length=length) for item in items]


def parts(item: Any, features: Sequence[str]) -> tuple[str, ...]:
    """The texts of something to predict: a text alone, several in order, or under the features' names.

    >>> parts({"question": "Who?", "context": "Ada."}, ("question", "context"))
    ('Who?', 'Ada.')
    """
    if isinstance(item, Mapping):
        found = tuple(item.get(feature) for feature in features)
    else:
        found = tuple(item) if listed(item) else (item,)
    if len(found) != len(features) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"found {item!r} to predict; allowed: the texts {', '.join(features)}, in order or by name")
    return found


def listed(value: Any) -> bool:
    """Whether it is several values in order, and no text, whose letters nobody means."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def several(example: Mapping[str, Any], feature: str, field: str) -> list[Any]:
    """The list that the example has under the feature, as `require`; ValueError of anything else."""
    if not listed(found := require(example, feature, field)):
        raise ValueError(f"task.{field}={feature!r} is {found!r} in an example; allowed: a list")
    return list(found)


def distinct(labels: Sequence[str]) -> None:
    """ValueError of two that are the same: a prediction names one."""
    if len(set(labels)) < len(labels):
        raise ValueError(f"task.labels={labels}; allowed: names that differ")


def finite(values: npt.ArrayLike, item: Any) -> np.ndarray:
    """The values, some of which may be -inf; ValueError that names the item if the largest is not finite."""
    if not np.isfinite(largest := np.max(values)):
        raise ValueError(f"the model's logits are {largest} for {str(item)[:80]!r}; allowed: finite numbers")
    return np.asarray(values)


def chances(logits: npt.ArrayLike, item: Any) -> Float[np.ndarray, " n"]:
    """Their softmax, in float64; ValueError as `finite`."""
    weights = np.exp(finite(logits, item).astype(np.float64) - np.max(logits))
    return weights / weights.sum()


def read(batch: Batch) -> Batch:
    """What of a batch the model reads."""
    return {name: batch[name] for name in READ if name in batch}


@functools.partial(jax.jit, static_argnums=0)
def outputs(model: nn.Module, params: Mapping[str, Any], inputs: Batch) -> dict[str, Any]:
    """What the model says of a batch, without dropout."""
    return model.apply({"params": params}, **inputs)


def stacked(records: Sequence[Record], rows: int, pad_id: int) -> Record:
    """Records as rows of one, [C, T], with attention_mask; what lacks of `rows` is padding."""
    T = max(len(record["input_ids"]) for record in records)
    stacked = {name: np.zeros((rows, T), np.int32) for name in (*records[0], "attention_mask")}
    stacked["input_ids"][:] = pad_id
    for i, record in enumerate(records):
        for name, value in (record | {"attention_mask": np.ones_like(record["input_ids"])}).items():
            stacked[name][i, : len(value)] = value
    return stacked


def by_length(
    function: Callable[[Batch], Any], records: Sequence[Record], *, pad_id: int, max_length: int
) -> list[Any]:
    """What `function` gives for each record, those of like lengths together in padded batches of `ROWS`.

    `function` takes what the records hold and attention_mask, [B, T], and gives a tree of arrays [B, …].
    """
    order = sorted(range(len(records)), key=lambda i: len(records[i]["input_ids"]))
    found: list[Any] = [None] * len(records)
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        filled = rows + rows[-1:] * (batches.height(len(rows), len(order), ROWS) - len(rows))
        made = jax.device_get(function(batches.collate([records[i] for i in filled], pad_id, max_length, PARTS)))
        for row, i in enumerate(rows):
            found[i] = jax.tree.map(lambda x: x[row], made)  # noqa: B023
    return found
