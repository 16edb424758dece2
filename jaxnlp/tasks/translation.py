"""Translation: the target's tokens from the source's and from those before (Sutskever et al., 2014, eq. 1).

    loss = - sum_t w_t log p(y_t | y_<t, x) / sum_t w_t

In training y_<t are the true tokens (teacher forcing), or what the model itself makes of them. A translation is the
best of a beam search; the scores of a whole set are sacreBLEU's (Post, 2018):

    bleu           of detokenised text, 0 to 100 (Papineni et al., 2002)
    chrf           F-score of character n-grams, 0 to 100 (Popović, 2015)
    exact_match    the part of the translations that equal the reference

    form                 the model                                            what it reads
    encoder-decoder      any with `encode` and `decode`: seq2seq, transformer   the source; the target so far
    causal               any language model: gpt                              [source; separator; target so far]
    prefix               gpt                                                  the same, the source seen both ways

In the last two p is taken of the target alone too.
"""

import dataclasses
import functools
import inspect
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Int

from jaxnlp import decoding
from jaxnlp.data import batches
from jaxnlp.data.cache import Cache
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.decoding import Beams, Search, Shared
from jaxnlp.losses import blocked_cross_entropy
from jaxnlp.nn.cache import widened
from jaxnlp.tasks import beams
from jaxnlp.tasks.continuous import continuous_search, room
from jaxnlp.tasks.generation import unrolled
from jaxnlp.tasks.inputs import parts
from jaxnlp.tasks.task import Apply, Batch, Heatmap, Record, Samples, Sums, Table, require, sown

FORMS = {  # what of a batch the model reads
    "encoder-decoder": ("input_ids", "attention_mask", "decoder_input_ids"),
    "causal": ("input_ids",),
    "prefix": ("input_ids", "prefix_lengths"),
}


@dataclasses.dataclass(frozen=True)
class Translation:
    """From one of an example's texts to another."""

    source: str = "en"  # the feature that holds the text to translate
    target: str = "de"  # the feature that holds its translation
    # Tokens of a text with its end, of both together where there is no encoder: longer pairs are left out of training
    # (of a summary the source is cut), longer sources cut
    length: int = 128
    # Of a translation; None: twice its source's with padding, at most length, or half of it where there is no encoder
    max_new_tokens: int | None = None
    buckets: tuple[int, ...] | None = None  # lengths that batches are padded to; None: `length` and parts of it
    label_smoothing: float = 0.0
    teacher_forcing: bool = True  # False: the decoder goes on from its own best tokens, in training too
    form: Literal["encoder-decoder", "causal", "prefix"] = "encoder-decoder"
    # Text between source and target where there is no encoder; None: the target's first token
    separator: str | None = None
    n_beams: int = 5
    length_penalty: float = 1.0  # alpha of Wu et al., 2016, eq. 14
    n_shown: int = 8  # translations in the report

    answer: ClassVar[str] = "translation"  # what a prediction calls its text
    cuts: ClassVar[bool] = False  # in training too, a long source keeps its beginning

    def __post_init__(self):
        for name, low in (("length", 2), ("n_beams", 1), ("n_shown", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"task.{name}={value}; allowed: {low} and more")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"task.label_smoothing={self.label_smoothing}; allowed: 0 <= label_smoothing < 1")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"task.length_penalty={self.length_penalty}; allowed: a finite number")
        if self.form not in FORMS:
            raise ValueError(f"task.form={self.form!r}; allowed: {', '.join(FORMS)}")
        if self.form != "encoder-decoder" and not self.teacher_forcing:
            raise ValueError(f"task.teacher_forcing=False with task.form={self.form!r}; allowed: encoder-decoder")
        if self.form == "encoder-decoder" and self.separator is not None:
            raise ValueError(f"task.separator={self.separator!r} with task.form={self.form!r}; allowed: None")

    def check(self, model: nn.Module) -> None:
        """ValueError unless the model is one of the form's, with a vocabulary as wide as the beam."""
        name, ways = type(model).__name__, [way for way in ("encode", "init_cache") if hasattr(model, way)]
        whole = self.form == "encoder-decoder"
        if ("encode" if whole else "init_cache") not in ways:
            allowed = "encoder-decoder" if "encode" in ways else "causal, prefix"
            raise ValueError(f"task.form={self.form!r} with the model {name}; allowed: {allowed}")
        if self.form == "prefix" and "prefix_lengths" not in inspect.signature(type(model).__call__).parameters:
            raise ValueError(f"task.form='prefix' with the model {name}, which reads one way alone; allowed: causal")
        words = getattr(model.config, "output_vocab_size", model.config.vocab_size)
        if self.n_beams > words:
            raise ValueError(f"task.n_beams={self.n_beams}; allowed: at most the {words} words of the vocabulary")

    @property
    def heads(self) -> tuple[()]:
        return ()

    @property
    def key(self) -> dict[str, Any]:
        own = {} if self.form == "encoder-decoder" else {"form": self.form, "separator": self.separator}
        own |= {"length": self.length} if self.cuts else {}
        return {"task": self.answer, "source": self.source, "target": self.target, **own}

    def texts(self, example: Mapping[str, Any]) -> Sequence[str]:
        return require(example, self.source, "source"), require(example, self.target, "target")

    def encode(self, examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Record]:
        """ "ab", "c" -> {"input_ids": [5, 6, 0], "labels": [7, 0]}, 0 being the end; nothing if either is empty.

        Without an encoder: {"input_ids": [5, 6, 0, 7], "labels": [6, 0, 7, 0], "weights": [0, 0, 1, 1]} and, of the
        form prefix, "prefix_lengths": 2.
        """
        pairs = [self.texts(example) for example in examples]
        sources = tokenizer.encode_batch([source for source, _ in pairs])
        targets = tokenizer.target.encode_batch([target for _, target in pairs])
        pairs = [(x, y) for x, y in zip(sources, targets, strict=True) if x and y]
        ids = lambda tokens: np.asarray(tokens, np.int32)  # noqa: E731
        whole = self.form == "encoder-decoder"
        if not whole and tokenizer.target is not tokenizer:
            raise ValueError(f"task.form={self.form!r} with a vocabulary for each language; allowed: one for both")
        separator = [] if whole else self._separator(tokenizer)
        if self.cuts:
            beside = lambda y: 1 if whole else len(separator) + len(y)  # noqa: E731
            pairs = [(x[: max(self.length - beside(y), 1)], y) for x, y in pairs]
        if whole:
            end, last = tokenizer.eos_id, tokenizer.target.eos_id
            return [{"input_ids": ids([*x, end]), "labels": ids([*y, last])} for x, y in pairs]
        records = []
        for x, y in pairs:
            both = ids([*x, *separator, *y, tokenizer.eos_id])
            prefix = len(x) + len(separator) - 1  # the separator's last token begins the target
            weights = np.float32(np.arange(len(both) - 1) >= prefix)
            record = {"input_ids": both[:-1], "labels": both[1:], "weights": weights}
            records.append(record | ({"prefix_lengths": np.int32(prefix)} if self.form == "prefix" else {}))
        return records

    def _separator(self, tokenizer: Tokenizer) -> list[int]:
        if self.separator is None:
            return [tokenizer.target.bos_id]
        found = tokenizer.encode(self.separator)
        if not found:
            raise ValueError(f"task.separator={self.separator!r} has no token; allowed: None, or a text")
        return list(found)

    def batches(self, cache: Cache, tokenizer: Tokenizer, *, batch_size: int, seed: int | None) -> batches.Batches:
        given = {"batch_size": batch_size, "max_length": self.length, "seed": seed, "buckets": self.buckets}
        if self.form == "encoder-decoder":
            return batches.pairs(cache, pad_id=tokenizer.pad_id, bos_id=tokenizer.target.bos_id, **given)
        return batches.joined(cache, pad_id=tokenizer.pad_id, **given)

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        tokens = jax.ShapeDtypeStruct((rows, self.length), jnp.int32)
        found = dict.fromkeys((*FORMS[self.form], "labels"), tokens)
        if "prefix_lengths" in found:
            found["prefix_lengths"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
        return found | {"weights": jax.ShapeDtypeStruct((rows, self.length), jnp.float32)}

    def sums(self, apply: Apply, batch: Batch, *, training: bool) -> Sums:
        """Label smoothing and the model's own tokens are for training alone."""
        inputs = {name: batch[name] for name in FORMS[self.form]}
        if training and not self.teacher_forcing:
            inputs["decoder_input_ids"] = _own_tokens(apply, batch)
        hidden, table, bias, vocab_size = apply(**inputs, logits=False)["unembedding"]
        loss, weight = blocked_cross_entropy(
            hidden,
            table,
            batch["labels"],
            batch["weights"],
            bias=bias,
            vocab_size=vocab_size,
            label_smoothing=self.label_smoothing if training else 0.0,
        )
        return {"loss": (loss, weight)}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {**means, "perplexity": float(np.exp(min(means["loss"], 700.0)))}

    def score(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """BLEU, chrF and exact matches of the translations of all examples."""
        pairs = [self.texts(examples[i]) for i in range(len(examples))]
        found = self.translate(model, params, tokenizer, [source for source, _ in pairs])
        return self.scores([best[self.answer] for best in found], [target for _, target in pairs])[0]

    def scores(self, found: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], Table]:
        """The figures of a whole set, and a table of them."""
        return scores(found, references)

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, texts: Sequence[Any], n_best: int = 1
    ) -> list[dict[str, Any]]:
        """{"translation", "score"} of each text, and with n_best > 1 up to as many of them, best first, as "n_best".

        A text comes as it is, or under the source's name.

        Raises:
            ValueError: of a text no translation has a score that is a number, as where parameters are NaN.
        """
        return self.translate(model, params, tokenizer, texts, n_best=n_best)

    def translate(
        self,
        model: nn.Module,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        texts: Sequence[Any],
        *,
        n_best: int = 1,
        rows: int = 64,
    ) -> list[dict[str, Any]]:
        """See `predict`; `rows` texts of a bucket at a time. A text without tokens becomes one without words.

        What a text becomes does not depend on the others. Of sources that are cut, a message gives the number.
        """
        if rows < 1:
            raise ValueError(f"rows={rows}; allowed: 1 and more")
        if self.form == "encoder-decoder":
            first, end, room = tokenizer.target.bos_id, [tokenizer.eos_id], self.length
            longest = self.max_new_tokens or self.length
        else:
            *end, first = self._separator(tokenizer)
            longest = self.max_new_tokens or self.length // 2
            room = self.length - longest
        if room <= len(end):
            raise ValueError(
                f"task.length={self.length} leaves {room} tokens for a source; allowed: {len(end) + 1} and more beside "
                f"the {longest} for its {self.answer}"
            )
        texts = [parts(text, (self.source,))[0] for text in texts]
        sources = [list(x) for x in tokenizer.encode_batch(texts)]
        if cut := sum(len(x) + len(end) > room for x in sources):
            message = f"{cut} of {len(sources)} sources are longer than {room - len(end)} tokens and cut"
            print(f"{self.answer}: {message}", file=sys.stderr)
        ids = [[*x[: room - len(end)], *end] if x else [] for x in sources]
        empty = {self.answer: "", "score": 0.0}
        results = [{**empty, "n_best": [empty]} if n_best > 1 else dict(empty) for _ in ids]
        model, params = unrolled(model, params)
        ends = {"end_id": tokenizer.target.eos_id, "pad_id": tokenizer.target.pad_id}
        extend = functools.partial(_extend, model, params, length_penalty=self.length_penalty, **ends)
        for S, height, filled in _buckets(ids, pad_id=tokenizer.pad_id, max_length=room, rows=rows):
            sizes = {"n_beams": self.n_beams, "max_new_tokens": self.max_new_tokens or min(2 * S, longest)}
            options = {"form": self.form, "bos_id": first, "pad_id": ends["pad_id"], "n_best": n_best, **sizes}
            begun = ((numbers, _start(model, params, **inputs, **options)) for numbers, inputs in filled)
            slots = 0 if self.form == "encoder-decoder" else S
            for i, found in continuous_search(begun, extend, rows=height, slots=slots, **sizes):
                best = []
                for tokens, score, length in zip(found.tokens, found.scores, found.lengths, strict=True):
                    if length:  # else there are fewer texts than n_best
                        text = tokenizer.target.decode(t for t in tokens[:length] if t != ends["end_id"])
                        best.append({self.answer: text, "score": float(score)})
                if not best:
                    raise ValueError(f"no {self.answer} of {texts[i]!r} has a finite score: the model's logits are NaN")
                results[i] = {**best[0], "n_best": best} if n_best > 1 else best[0]
        return results

    def show(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """Scores of all, the first translations, and where the decoder looked for the first three."""
        if not len(examples):
            return ()
        pairs = [self.texts(examples[i]) for i in range(len(examples))]
        best = self.translate(model, params, tokenizer, [source for source, _ in pairs])
        found = [one[self.answer] for one in best]
        _, table = self.scores(found, [target for _, target in pairs])
        texts = [(source, f"{text}\n({target})") for (source, target), text in zip(pairs, found, strict=True)]
        shown = (table, Samples("Outputs (and references)", tuple(texts[: self.n_shown])))
        maps = (self.heatmap(model, params, tokenizer, pairs[i][0], found[i]) for i in range(min(3, len(pairs))))
        return (*shown, *(picture for picture in maps if picture is not None))

    def heatmap(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, source: str, target: str
    ) -> Heatmap | None:
        """The decoder's attention on the source while the target is read, a row a token; None where there is none.

        Of a Transformer, the mean over heads and layers.
        """
        if self.form != "encoder-decoder":
            return None
        x = [*tokenizer.encode(source)[: self.length - 1], tokenizer.eos_id]
        y = [*tokenizer.target.encode(target)[: self.length - 1], tokenizer.target.eos_id]
        ids = {"input_ids": jnp.array([x]), "decoder_input_ids": jnp.array([[tokenizer.target.bos_id, *y[:-1]]])}
        layers = list(sown(_intermediates(model, params, ids), "cross_attentions"))
        if not layers:
            return None
        weights = layers[-1] if layers[-1].ndim == 3 else jnp.mean(jnp.stack(layers), axis=(0, 2))
        return Heatmap(
            title=f"Attention: {source}",
            rows=tuple(tokenizer.target.spell(t) for t in y),
            columns=tuple(tokenizer.spell(t) for t in x),
            values=tuple(map(tuple, np.asarray(weights[0], np.float64).tolist())),
        )


def scores(found: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], Table]:
    """BLEU and chrF of sacreBLEU with their signatures, and exact matches."""
    import sacrebleu

    if len(found) != len(references) or not found:
        raise ValueError(f"{len(found)} translations for {len(references)} references; allowed: one each, 1 or more")
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    values = {
        "bleu": bleu.corpus_score(found, [references]).score,
        "chrf": chrf.corpus_score(found, [references]).score,
        "exact_match": sum(a == b for a, b in zip(found, references, strict=True)) / len(found),
    }
    signatures = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature()), "exact_match": ""}
    rows = tuple((name, round(value, 4), signatures[name]) for name, value in values.items())
    return values, Table("Scores", ("metric", "value", "signature"), rows)


def _own_tokens(apply: Apply, batch: Batch) -> Int[Array, "B T"]:
    """The decoder's inputs if it goes on from its own best tokens: no gradient passes a choice."""
    length = batch["decoder_input_ids"].shape[1]
    source = batch["input_ids"], batch["attention_mask"]
    memory, cache = apply(*source, method="encode", length=length, deterministic=True)

    def step(carry, _):
        token, cache = carry
        out = apply(token[:, None], memory, cache, method="decode", deterministic=True)
        return (out["logits"][:, 0].argmax(-1).astype(token.dtype), out["cache"]), token

    first = batch["decoder_input_ids"][:, 0]
    _, tokens = jax.lax.scan(step, (first, cache), length=length)
    return jax.lax.stop_gradient(tokens.T)


def _buckets(
    ids: Sequence[Sequence[int]], *, pad_id: int, max_length: int, rows: int
) -> Iterator[tuple[int, int, list[tuple[list[int], Batch]]]]:
    """(tokens, rows, batches: numbers and inputs) of each width of the sources that have tokens, short ones first."""
    order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))
    for S, bucket in itertools.groupby(order, key=lambda i: batches.width(len(ids[i]), max_length)):
        numbers = list(bucket)
        height = batches.height(min(len(numbers), rows), len(order), rows)
        parts = [numbers[start : start + height] for start in range(0, len(numbers), height)]
        filled = [[ids[i] for i in part] + [ids[part[-1]]] * (height - len(part)) for part in parts]
        inputs = [batches.pad(part, pad_id=pad_id, max_length=max_length) for part in filled]
        yield S, height, list(zip(parts, inputs, strict=True))


@functools.partial(jax.jit, static_argnames=("model", "form", "n_beams", "n_best", "max_new_tokens"))
def _start(
    model: nn.Module,
    params: Mapping[str, Any],
    input_ids: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"],
    *,
    form: str,
    bos_id: Any,
    n_beams: int,
    max_new_tokens: int,
    **options: Any,
) -> Search:
    """A search about to begin, the source read."""
    apply = functools.partial(model.apply, {"params": params})
    B, S = input_ids.shape
    slots = n_beams * room(1, max_new_tokens)
    if form == "encoder-decoder":
        memory, cache = apply(input_ids, attention_mask, method="encode", length=slots)
        state = {"memory": Shared(memory)}
    else:
        right = jnp.arange(S)[None] + attention_mask.sum(1, keepdims=True)  # all sources end in the last slot
        ids, mask = (jnp.take_along_axis(x, right % S, axis=1) for x in (input_ids, attention_mask))
        prefix = {"prefix_lengths": jnp.full(B, S)} if form == "prefix" else {}
        cache = apply(ids, mask, cache=model.init_cache(B, S), logits=False, **prefix)["cache"]
        cache = widened(cache, S + slots) if "layers" in cache else cache
        state = {}
    state["cache"] = beams.shared(cache)
    first = jnp.full(B, bos_id, jnp.int32)
    return decoding.start_search(state, first, n_beams=n_beams, max_new_tokens=max_new_tokens, **options)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="search")
def _extend(
    model: nn.Module, params: Mapping[str, Any], search: Search, n_new: Any, *, end_id: Any, pad_id: Any, **options: Any
) -> tuple[Search, Beams, Bool[Array, " B"]]:
    """The search with n_new tokens, its texts, and which rows are unfinished."""
    never = jnp.where(pad_id == end_id, -1, pad_id)  # padding of its own is no word

    def step(tokens, state):
        memory = {"memory": state["memory"].tree, "method": "decode"} if "memory" in state else {}
        out = model.apply({"params": params}, tokens[:, None], cache=beams.own(state["cache"]), **memory)
        logits = out["logits"][:, 0]
        logits = jnp.where(jnp.arange(logits.shape[1])[None] == never, -jnp.inf, logits)
        return logits, {**state, "cache": beams.shared(out["cache"])}

    search = decoding.extend_search(step, search, n_new, end_id=end_id, **options)
    return search, decoding.best_beams(search, **options), decoding.unfinished_rows(search, **options)


@functools.partial(jax.jit, static_argnums=0)
def _intermediates(model: nn.Module, params: Mapping[str, Any], inputs: Mapping[str, Array]) -> Mapping[str, Any]:
    _, seen = model.apply({"params": params}, **inputs, logits=False, mutable=["intermediates"])
    return seen.get("intermediates", {})
