"""GPT, GPT-2 and GPT-Neo of transformers: one model of ours, three dialects of names.

    GPT2LMHeadModel, GPT2Model, GPT2DoubleHeadsModel, GPT2ForSequenceClassification, -TokenClassification,
    -QuestionAnswering; OpenAIGPT… and GPTNeo…, those of them that they have

The words come out of the table that they go in by: GPT2Model has the same tensors as GPT2LMHeadModel, is read as that,
and comes back as that. Where a choice is read at the last token, it is the last real one here, and the last of the row,
padding too, in transformers; `mc_token_ids` says which. The published files leave the stem `transformer.` out, and hold
each layer's causal mask beside its parameters.
"""

import dataclasses
import functools
import itertools
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.interop.labels import settings_of, task_of
from jaxnlp.interop.tables import Row, fields, from_heads, norm, product
from jaxnlp.models import gpt, heads
from jaxnlp.tasks.language_modeling import LanguageModeling

Heads = tuple[heads.Head, ...]

HEADS = {  # the ends of the names of classes, and the heads of each
    "LMHeadModel": (),
    "ForCausalLM": (),
    "Model": (),
    "DoubleHeadsModel": (heads.LanguageModel, heads.Choice),
    "ForSequenceClassification": (heads.Classification,),
    "ForTokenClassification": (heads.Tagging,),
    "ForQuestionAnswering": (heads.Span,),
}
TOPS = {  # tensors of the heads, without .weight and .bias
    heads.Choice: "multiple_choice_head.summary",
    heads.Classification: "score",
    heads.Tagging: "classifier",
    heads.Span: "qa_outputs",
}
SUMMARY = {  # what stands between the last hidden state and a choice's logit: a product
    "summary_type": ("cls_index", "cls_index"),
    "summary_use_proj": (True, True),
    "summary_proj_to_labels": (True, True),
    "summary_activation": (None, None),
}
STEM = "transformer."
AUXILIARY = 0.5  # weight of the language model's loss beside a choice's (Radford et al., 2018, section 4.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a family calls its settings and tensors."""

    kind: str  # the model_type
    name: str  # of its classes
    ends: tuple[str, ...]  # of their names
    same: Mapping[str, str]  # settings and the fields that say the same
    fixed: Mapping[str, tuple[Any, Any]]  # settings of one form here: (that form, what is meant where they are absent)
    form: Mapping[str, Any]  # our fields that all of the family have
    tokens: str = "wte"
    positions: str = "wpe"
    attention: str = "attn"
    masked: float = -1e4  # what older files hold as what is added to the scores that a mask hides

    ENDS = False  # the tokenizer puts no special tokens round a text

    @property
    def ARCHITECTURES(self) -> dict[str, tuple[type, ...]]:
        """And the heads of each."""
        return {f"{self.name}{end}": HEADS[end] for end in self.ends}

    def writes(self, c: Any, tokenizer: Tokenizer) -> bool:
        """What has a form of its own is written so, and all else as GPT-2, if it can be."""
        if not isinstance(c, gpt.Config):
            return False
        kind = "openai-gpt" if not c.norm_first else "gpt2" if c.qkv_bias else "gpt_neo"
        return self.kind == kind

    def config(self, settings: Mapping[str, Any], names: Container[str]) -> gpt.Config:
        double = heads.Choice in self.ARCHITECTURES[settings["architectures"]]
        if settings.get("activation_function") == "gelu_pytorch_tanh":  # another name of the same
            settings = {**settings, "activation_function": "gelu_new"}
        made = fields(
            gpt.Config,
            {"n_inner": None, "intermediate_size": None, **settings},
            self.same,
            self.fixed | (SUMMARY if double else {}),
        )
        if self.kind == "gpt_neo":
            made["windows"] = _windows(settings, made["n_layers"])
        return gpt.Config(**made, **self.form)

    def settings(self, c: gpt.Config, task: Any) -> dict[str, Any]:
        if c.d_head not in (None, c.d_model // c.n_heads):
            raise ValueError(f"model.d_head={c.d_head}; {self.name} allows: None")
        for name, allowed in self.form.items():
            if getattr(c, name) != allowed:
                raise ValueError(f"model.{name}={getattr(c, name)}; {self.name} allows: {allowed}")
        values = {theirs: getattr(c, ours) for theirs, ours in self.same.items()}
        if self.kind == "gpt_neo":
            values |= _attention_types(c)
        elif any(c.windows):
            raise ValueError(f"model.windows={c.windows}; {self.name} allows: None alone")
        if "d_ff" not in self.same.values() and c.ff_width != 4 * c.d_model:
            raise ValueError(f"model.d_ff={c.d_ff}; {self.name} allows: None")
        fixed = {theirs: allowed for theirs, (allowed, _) in self.fixed.items()}
        if any(isinstance(head, heads.Choice) for head in task.heads):
            fixed |= {theirs: allowed for theirs, (allowed, _) in SUMMARY.items()}
            fixed["summary_first_dropout"] = c.dropout
        return values | fixed | settings_of(task)

    def rows(self, c: gpt.Config, found: Heads) -> list[Row]:
        rows = [
            Row("embed/tokens", "v d", self._table(found), "v d"),
            Row("embed/positions", "p d", f"{STEM}{self.positions}.weight", "p d"),
            *(norm("norm", f"{STEM}ln_f") if c.norm_first else ()),
        ]
        for i in range(c.n_layers):
            ours, theirs = f"blocks/{i}", f"{STEM}h.{i}"
            rows += norm(f"{ours}/norm_1", f"{theirs}.ln_1") + norm(f"{ours}/norm_2", f"{theirs}.ln_2")
            if c.qkv_bias:
                rows += _inputs_first(f"{ours}/attention/qkv", f"{theirs}.{self.attention}.c_attn", "h c k", "(c h k)")
                rows += _inputs_first(f"{ours}/attention/out", f"{theirs}.{self.attention}.c_proj", "d", "d", "h k")
                rows += _inputs_first(f"{ours}/mlp/in", f"{theirs}.mlp.c_fc", "f", "f")
                rows += _inputs_first(f"{ours}/mlp/out", f"{theirs}.mlp.c_proj", "d", "d", "f")
            else:
                three = f"{theirs}.{self.attention}.{{c}}_proj.weight"
                rows.append(Row(f"{ours}/attention/qkv/kernel", "h c k d", three, "(h k) d", {"c": "qkv"}))
                rows += from_heads(f"{ours}/attention/out", f"{theirs}.{self.attention}.out_proj")
                rows += product(f"{ours}/mlp/in", f"{theirs}.mlp.c_fc")
                rows += product(f"{ours}/mlp/out", f"{theirs}.mlp.c_proj")
        for head in found:
            if (top := TOPS.get(type(head))) is not None:
                rows.append(Row(f"heads/{head.name}/kernel", "d f", f"{top}.weight", "f d"))
                if not isinstance(head, heads.Classification):
                    rows.append(Row(f"heads/{head.name}/bias", "f", f"{top}.bias", "f"))
        return rows

    def _table(self, found: Heads) -> str:
        """The tensor of the words, which the language model's output shares: either's name may be in a file."""
        renamed = self.kind == "openai-gpt" and any(isinstance(head, heads.Choice) for head in found)
        return "lm_head.weight" if renamed else f"{STEM}{self.tokens}.weight"

    def complete(self, c: gpt.Config, params: Mapping[str, Any], found: Heads) -> tuple[gpt.Config, Mapping[str, Any]]:
        return c, params

    def ids(self, tokenizer: Tokenizer) -> dict[str, int]:
        """Settings that the tokenizer gives."""
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        found = {} if tokenizer.eos_id == tokenizer.unk_id else ends
        # By it transformers' classifiers find the last token: what ends a text as well would mislead them.
        return found if tokenizer.pad_id == tokenizer.eos_id else found | {"pad_token_id": tokenizer.pad_id}

    def files(self, tokenizer: Tokenizer, task: Any) -> None:
        """None of its own: tokenizer.json is what transformers reads."""
        return None

    def copies(self, c: gpt.Config, found: Heads) -> dict[str, str]:
        """Names under which a tensor may stand a second time, or instead."""
        short = {name.removeprefix(STEM): name for row in self.rows(c, found) for name in row.names}
        table = self._table(found)
        tied = dict.fromkeys(("lm_head.weight", f"{STEM}{self.tokens}.weight", f"{self.tokens}.weight"), table)
        return {copy: name for copy, name in (short | tied).items() if copy != name}

    def constants(self, c: gpt.Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Of the tensors that are there, those that are no parameters, with the values that they must have."""
        whole = {"position_ids": lambda: np.arange(c.n_positions)}
        band = functools.cache(functools.partial(_band, c.n_positions))
        for i, window in zip(range(c.n_layers), itertools.cycle(c.windows), strict=False):
            whole[f"h.{i}.{self.attention}.bias"] = functools.partial(band, window)
            whole[f"h.{i}.{self.attention}.masked_bias"] = lambda: np.float32(self.masked)
        names = {f"{stem}{name}": make for name, make in whole.items() for stem in ("", STEM)}
        return {name: make() for name, make in names.items() if name in shapes}

    def task(self, settings: Mapping[str, Any], names: Container[str]) -> Any:
        types = self.ARCHITECTURES[settings["architectures"]]
        length = next(settings[theirs] for theirs, ours in self.same.items() if ours == "n_positions")
        if not types:
            return LanguageModeling(length=length)
        task = task_of(types[-1], settings, length)
        return task if len(types) == 1 else dataclasses.replace(task, auxiliary=AUXILIARY)


def _band(n: int, window: int | None) -> np.ndarray:
    past = np.tril(np.ones((1, 1, n, n), np.float32))
    return past if window is None else past - np.tril(past, -window)


def _inputs_first(ours: str, theirs: str, axes: str, shape: str, inputs: str = "d") -> list[Row]:
    """The kernel and bias of a product whose outputs are `axes`; its inputs come last here, and first elsewhere."""
    of = f"({inputs})" if " " in inputs else inputs
    return [
        Row(f"{ours}/kernel", f"{axes} {inputs}", f"{theirs}.weight", f"{of} {shape}"),
        Row(f"{ours}/bias", axes, f"{theirs}.bias", shape),
    ]


def _windows(settings: Mapping[str, Any], n_layers: int) -> tuple[int | None, ...]:
    """The shortest cycle of windows that GPT-Neo's settings say."""
    types = settings.get("attention_types", [[["global", "local"], 12]])
    kinds = [kind for kinds, times in types for kind in kinds * times]
    if len(kinds) != n_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(f"attention_types={types}; allowed: global and local, {n_layers} in all")
    cycle = next(n for n in range(1, n_layers + 1) if n_layers % n == 0 and kinds[:n] * (n_layers // n) == kinds)
    return tuple(None if kind == "global" else settings.get("window_size", 256) for kind in kinds[:cycle])


def _attention_types(c: gpt.Config) -> dict[str, Any]:
    """The inverse of `_windows`; 256 stands for the width of no band."""
    widths = {window for window in c.windows if window is not None}
    if len(widths) > 1:
        raise ValueError(f"model.windows={c.windows}; GPTNeo allows: None, and of other widths one alone")
    kinds = ["global" if window is None else "local" for window in c.windows]
    whole = (kinds * c.n_layers)[: c.n_layers]
    times, rest = divmod(c.n_layers, len(kinds))
    types = [[whole, 1]] if rest else [[kinds, times]]
    return {"attention_types": types, "attention_layers": whole, "window_size": next(iter(widths), 256)}


_GPT2 = Dialect(
    kind="gpt2",
    name="GPT2",
    ends=tuple(end for end in HEADS if end != "ForCausalLM"),
    same={
        "vocab_size": "vocab_size",
        "n_positions": "n_positions",
        "n_layer": "n_layers",
        "n_embd": "d_model",
        "n_head": "n_heads",
        "n_inner": "d_ff",
        "resid_pdrop": "dropout",
        "embd_pdrop": "dropout",
        "attn_pdrop": "attention_dropout",
        "layer_norm_epsilon": "epsilon",
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_new"),
        "scale_attn_weights": (True, True),
        "scale_attn_by_inverse_layer_idx": (False, False),
        "add_cross_attention": (False, False),
        "tie_word_embeddings": (True, True),
    },
    form={"norm_first": True, "qkv_bias": True, "attention_scale": None},
)
_OPENAI = Dialect(
    kind="openai-gpt",
    name="OpenAIGPT",
    ends=("LMHeadModel", "Model", "DoubleHeadsModel", "ForSequenceClassification"),
    same={theirs: ours for theirs, ours in _GPT2.same.items() if theirs != "n_inner"},
    fixed={"afn": ("gelu", "gelu"), "tie_word_embeddings": (True, True)},  # that of the tanh
    form={"norm_first": False, "qkv_bias": True, "attention_scale": None},
    tokens="tokens_embed",
    positions="positions_embed",
)
_NEO = Dialect(
    kind="gpt_neo",
    name="GPTNeo",
    ends=tuple(end for end in HEADS if end not in ("LMHeadModel", "DoubleHeadsModel")),
    same={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "n_positions",
        "num_layers": "n_layers",
        "hidden_size": "d_model",
        "num_heads": "n_heads",
        "intermediate_size": "d_ff",
        "resid_dropout": "dropout",
        "embed_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "layer_norm_epsilon": "epsilon",
    },
    fixed={"activation_function": ("gelu_new", "gelu_new"), "tie_word_embeddings": (True, True)},
    form={"norm_first": True, "qkv_bias": False, "attention_scale": 1.0},
    attention="attn.attention",
    masked=-1e9,
)
DIALECTS = {dialect.kind: dialect for dialect in (_GPT2, _OPENAI, _NEO)}
