"""BERT, RoBERTa and DistilBERT of transformers: one model of ours, three dialects of names.

    BertModel, BertForPreTraining, -MaskedLM, -NextSentencePrediction, -SequenceClassification, -TokenClassification,
    -QuestionAnswering, -MultipleChoice; and those of them that the other two have

What stands between body and classifier, `classifier.dense` of RoBERTa and `pre_classifier` of DistilBERT, is the pooler
here. RoBERTa counts positions from 2: the first two rows of its table, which no text reaches, come back as zeros; where
padding stands on the left, transformers leaves it out of that count: here `position_ids` says so. The published files
may hold more than their class asks for (a pooler, the next sentence), or norms as gamma and beta.
"""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.interop.labels import settings_of, task_of
from jaxnlp.interop.tables import Row, fields, from_heads, norm, product
from jaxnlp.models import bert, heads
from jaxnlp.tasks.embedding import Embedding
from jaxnlp.tasks.masked_lm import MaskedLM

Heads = tuple[heads.Head, ...]

HEADS = {  # the ends of the names of classes, and the heads of each
    "Model": (),
    "ForPreTraining": (heads.MaskedLM, heads.NextSentence),
    "ForMaskedLM": (heads.MaskedLM,),
    "ForNextSentencePrediction": (heads.NextSentence,),
    "ForSequenceClassification": (heads.Classification,),
    "ForTokenClassification": (heads.Tagging,),
    "ForQuestionAnswering": (heads.Span,),
    "ForMultipleChoice": (heads.Choice,),
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
DEFAULTS = {  # of transformers, for settings that the first published files lack
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "classifier_dropout": None,
    "seq_classif_dropout": 0.2,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a family calls its settings and tensors."""

    kind: str  # the model_type, and the stem of the names of tensors
    name: str  # of its classes
    same: Mapping[str, str]  # settings and the fields that say the same
    fixed: Mapping[str, tuple[Any, Any]]  # settings of one form here: (that form, what is meant where they are absent)
    body: Mapping[str, str]  # parts of the body and their tensors, after the stem, without .weight and .bias
    tops: Mapping[str, str]  # parts of the heads and their tensors
    pooler: tuple[str, str] | None  # the pooler's activation and tensor
    poolers: Mapping[type, tuple[str, str]] = dataclasses.field(default_factory=dict)  # that of some heads
    skip: int = 0  # rows of the table of positions before the first
    free: tuple[str, ...] = ("pad_token_id",)  # settings on which no output depends, whatever the tokenizer has

    ENDS = True  # the tokenizer puts special tokens round a text

    @property
    def ARCHITECTURES(self) -> dict[str, tuple[type, ...]]:
        """And the heads of each."""
        none = () if "next_sentence" in self.tops else (heads.NextSentence,)
        return {f"{self.name}{end}": types for end, types in HEADS.items() if not set(types) & set(none)}

    def writes(self, c: Any, tokenizer: Tokenizer) -> bool:
        if not isinstance(c, bert.Config):
            return False
        kind = "roberta" if tokenizer.token(tokenizer.bos_id) == "<s>" else "bert"
        return self.kind == (kind if c.n_segments else "distilbert")

    def config(self, settings: Mapping[str, Any], names: Container[str]) -> bert.Config:
        activation = settings.get("hidden_act", settings.get("activation", "gelu"))
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
        types, fixed = self._types(settings, names), dict(self.fixed)
        self._check_activation(types, ACTIVATIONS[activation])
        if heads.MaskedLM not in types:  # nothing could be tied
            del fixed["tie_word_embeddings"]
        made = fields(bert.Config, settings, self._same(types), fixed, DEFAULTS)
        made["n_positions"] -= self.skip
        made |= {} if "segments" in self.body else {"n_segments": 0}
        kind, tensor = self._pooler(types) or (None, "")
        there = any(f"{stem}{tensor}.weight" in names for stem in ("", f"{self.kind}."))
        there |= bool(types) and types[-1] in POOLED  # else it is missing
        return bert.Config(**made, activation=ACTIVATIONS[activation], pooler=kind if there else None)

    def settings(self, c: bert.Config, task: Any) -> dict[str, Any]:
        types = tuple(map(type, task.heads))
        kind, _ = self._pooler(types) or (None, "")
        if c.pooler != kind and ((kind and c.pooler) or (types and types[-1] in POOLED)):
            name = next(name for name, found in self.ARCHITECTURES.items() if found == types)
            raise ValueError(f"model.pooler={c.pooler!r}; allowed in a {name}: {kind}")
        if c.d_head not in (None, c.d_model // c.n_heads):
            raise ValueError(f"model.d_head={c.d_head}; {self.name} allows: None")
        if "epsilon" not in self.same.values() and c.epsilon != DEFAULTS["layer_norm_eps"]:
            raise ValueError(f"model.epsilon={c.epsilon}; {self.name} allows: {DEFAULTS['layer_norm_eps']}")
        self._check_activation(types, c.activation)
        same = self._same(types)
        values = {theirs: getattr(c, ours) for theirs, ours in same.items()}
        if values.get("seq_classif_dropout", 0) is None:
            values["seq_classif_dropout"] = c.dropout
        width = next(theirs for theirs, ours in same.items() if ours == "d_ff")
        activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == c.activation)
        fixed = {theirs: allowed for theirs, (allowed, _) in self.fixed.items()}
        values |= {width: c.ff_width, "max_position_embeddings": c.n_positions + self.skip}
        acts = "activation" if self.kind == "distilbert" else "hidden_act"
        return values | fixed | {acts: activation} | settings_of(task)

    def rows(self, c: bert.Config, found: Heads) -> list[Row]:
        stem = f"{self.kind}." if found else ""
        at = {part: stem + name for part, name in self.body.items()}
        rows = [
            Row("embed/tokens", "v d", f"{at['tokens']}.weight", "v d"),
            Row("embed/positions", "p d", f"{at['positions']}.weight", "p d", skip=self.skip),
            *norm("embed/norm", at["norm"]),
        ]
        if c.n_segments:
            rows.append(Row("embed/segments", "s d", f"{at['segments']}.weight", "s d"))
        for i in range(c.n_layers):
            ours, layer = f"blocks/{i}", {part: name.replace("#", str(i)) for part, name in at.items()}
            three = product(f"{ours}/attention/qkv", layer["qkv"], "h c k", "(h k)")
            rows += [
                row._replace(stacked={"c": ("query", "key", "value") if "self" in row.theirs else "qkv"})
                for row in three
            ]
            rows += from_heads(f"{ours}/attention/out", layer["out"])
            rows += norm(f"{ours}/norm_1", layer["norm_1"])
            rows += product(f"{ours}/mlp/in", layer["in"]) + product(f"{ours}/mlp/out", layer["mlp"])
            rows += norm(f"{ours}/norm_2", layer["norm_2"])
        types = tuple(map(type, found))
        if c.pooler is not None:
            _, tensor = self._pooler(types)
            rows += _dense("pooler", tensor if types and types[0] in self.poolers else stem + tensor)
        for head in found:
            ours = f"heads/{head.name}"
            if isinstance(head, heads.MaskedLM):
                rows += _dense(f"{ours}/transform", self.tops["transform"])
                rows += norm(f"{ours}/norm", self.tops["transform_norm"])
                rows.append(Row(f"{ours}/output_bias", "v", f"{self.tops['words']}.bias", "v"))
            else:
                own = isinstance(head, heads.Classification) and self.kind == "roberta"
                name = {heads.Span: "qa_outputs", heads.NextSentence: self.tops.get("next_sentence")}
                rows += _dense(ours, name.get(type(head), "classifier.out_proj" if own else "classifier"))
        return rows

    def complete(
        self, c: bert.Config, params: Mapping[str, Any], found: Heads
    ) -> tuple[bert.Config, Mapping[str, Any]]:
        """Without a pooler that the class has not."""
        kind, _ = self._pooler(tuple(map(type, found))) or (None, "")
        return dataclasses.replace(c, pooler=c.pooler and kind), params

    def ids(self, tokenizer: Tokenizer) -> dict[str, int]:
        """Settings that the tokenizer gives."""
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id} if self.kind == "roberta" else {}
        return ends | {"pad_token_id": tokenizer.pad_id}

    def files(self, tokenizer: Tokenizer, task: Any) -> None:
        """None of its own: tokenizer.json is what transformers reads."""
        return None

    def copies(self, c: bert.Config, found: Heads) -> dict[str, str]:
        """Names under which a tensor may stand a second time, or instead."""
        stem, made = f"{self.kind}.", {}
        for row in self.rows(c, found):
            for name in row.names:
                other = name.removeprefix(stem) if name.startswith(stem) else stem + name
                for one in (name, other):
                    old = one.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                    made |= {alias: name for alias in (one, old) if alias != name}
        if any(isinstance(head, heads.MaskedLM) for head in found):
            words, table = self.tops["words"], f"{stem}{self.body['tokens']}.weight"
            made |= {f"{place}.weight": table for place in (words, self.tops["decoder"])}
            made |= {f"{self.tops['decoder']}.bias": f"{words}.bias"}
        return made

    def constants(self, c: bert.Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray | None]:
        """Of the tensors that are there, those that are no parameters, with the values that they must have.

        None: any, as in the pooler of a body whose head has its own.
        """
        n, unread = c.n_positions + self.skip, {f"pooler.dense.{name}": None for name in ("weight", "bias")}
        whole = {"embeddings.position_ids": np.arange(n)[None], "embeddings.token_type_ids": np.zeros((1, n))}
        names = {f"{stem}{name}": x for name, x in (whole | unread).items() for stem in ("", f"{self.kind}.")}
        return {name: x for name, x in names.items() if name in shapes}

    def task(self, settings: Mapping[str, Any], names: Container[str]) -> Any:
        types = self._types(settings, names)
        length = (DEFAULTS | settings)["max_position_embeddings"] - self.skip
        if types == ():
            return Embedding(length=length)  # of sentence-transformers more is known: see sentences.py
        if types[0] is heads.MaskedLM:
            return MaskedLM(length=length, next_sentence=len(types) > 1)
        return task_of(types[0], settings, length)

    def _types(self, settings: Mapping[str, Any], names: Container[str]) -> tuple[type, ...]:
        """Of the heads; files of a masked language model may hold the next sentence's head as well."""
        types = self.ARCHITECTURES[settings["architectures"]]
        if types == (heads.MaskedLM,) and f"{self.tops.get('next_sentence')}.weight" in names:
            return (heads.MaskedLM, heads.NextSentence)
        return types

    def _same(self, types: tuple[type, ...]) -> Mapping[str, str]:
        """Settings and fields of a class; not each class has a dropout of its own before the head."""
        if self.kind == "distilbert":
            own = "seq_classif_dropout" if set(types) & set(self.poolers) else None
        else:
            own = None if self.kind == "roberta" and heads.Choice in types else "classifier_dropout"
        return {**self.same, **({own: "head_dropout"} if own else {})}

    def _check_activation(self, types: tuple[type, ...], activation: str) -> None:
        """RoBERTa's masked language model has this one before its words, whatever the body has."""
        if self.kind == "roberta" and heads.MaskedLM in types and activation != "gelu":
            raise ValueError(f"activation {activation}; allowed in a RobertaForMaskedLM: gelu")

    def _pooler(self, types: tuple[type, ...]) -> tuple[str, str] | None:
        """Activation and tensor of the pooler beneath those heads."""
        return next((self.poolers[head] for head in types if head in self.poolers), self.pooler)


POOLED = (heads.Classification, heads.Choice, heads.NextSentence)  # heads that read the pooled state


def _dense(ours: str, theirs: str) -> list[Row]:
    """Of what has its inputs first here."""
    return [Row(f"{ours}/kernel", "d f", f"{theirs}.weight", "f d"), Row(f"{ours}/bias", "f", f"{theirs}.bias", "f")]


_BERT = Dialect(
    kind="bert",
    name="Bert",
    same={
        "vocab_size": "vocab_size",
        "type_vocab_size": "n_segments",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "d_ff",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "epsilon",
        "max_position_embeddings": "n_positions",
    },
    fixed={
        "position_embedding_type": ("absolute", "absolute"),
        "tie_word_embeddings": (True, True),
        "is_decoder": (False, False),
        "add_cross_attention": (False, False),
    },
    body={
        "tokens": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "segments": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
        "qkv": "encoder.layer.#.attention.self.{c}",
        "out": "encoder.layer.#.attention.output.dense",
        "norm_1": "encoder.layer.#.attention.output.LayerNorm",
        "in": "encoder.layer.#.intermediate.dense",
        "mlp": "encoder.layer.#.output.dense",
        "norm_2": "encoder.layer.#.output.LayerNorm",
    },
    tops={
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
        "words": "cls.predictions",
        "decoder": "cls.predictions.decoder",
        "next_sentence": "cls.seq_relationship",
    },
    pooler=("tanh", "pooler.dense"),
)
_ROBERTA = dataclasses.replace(
    _BERT,
    kind="roberta",
    name="Roberta",
    fixed=_BERT.fixed | {"pad_token_id": (1, 1)},
    tops={
        "transform": "lm_head.dense",
        "transform_norm": "lm_head.layer_norm",
        "words": "lm_head",
        "decoder": "lm_head.decoder",
    },
    poolers={heads.Classification: ("tanh", "classifier.dense")},
    skip=2,
    free=(),
)
_DISTILBERT = Dialect(
    kind="distilbert",
    name="DistilBert",
    same={
        "vocab_size": "vocab_size",
        "dim": "d_model",
        "n_layers": "n_layers",
        "n_heads": "n_heads",
        "hidden_dim": "d_ff",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "max_position_embeddings": "n_positions",
    },
    fixed={"sinusoidal_pos_embds": (False, False), "tie_word_embeddings": (True, True)},
    body={
        "tokens": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "norm": "embeddings.LayerNorm",
        "qkv": "transformer.layer.#.attention.{c}_lin",
        "out": "transformer.layer.#.attention.out_lin",
        "norm_1": "transformer.layer.#.sa_layer_norm",
        "in": "transformer.layer.#.ffn.lin1",
        "mlp": "transformer.layer.#.ffn.lin2",
        "norm_2": "transformer.layer.#.output_layer_norm",
    },
    tops={
        "transform": "vocab_transform",
        "transform_norm": "vocab_layer_norm",
        "words": "vocab_projector",
        "decoder": "vocab_projector",
    },
    pooler=None,
    poolers=dict.fromkeys((heads.Classification, heads.Choice), ("relu", "pre_classifier")),
)
DIALECTS = {dialect.kind: dialect for dialect in (_BERT, _ROBERTA, _DISTILBERT)}
