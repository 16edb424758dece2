"""The whole of one run as a value: what is trained on what, how long and how; and its JSON (see serialize.py).

Intervals are fractions of `steps`, so that a shorter run keeps its shape. `every` makes whole steps of them, once:

    every(0.1, steps=2000) = 200        every(0.1, steps=2000, steps_per_call=64) = 192

The loop runs `steps_per_call` steps at a time, from one multiple of it to the next (the last call may be shorter), so
something happens only there and at the end.
"""

import dataclasses
import json
import re
from typing import Any, Literal

from jaxnlp.training.checkpoint import LOWER_IS_BETTER
from jaxnlp.training.lora import LoRA
from jaxnlp.training.optim import Optim
from jaxnlp.training.parallel import parse
from jaxnlp.training.serialize import decode, encode

VOCABULARY = r"(.*/)?(tokens|output_bias)"  # paths of the arrays that have a row for each token

# What a resumed run may have changed: nothing that the numbers depend on. Everything else would be another run.
MAY_CHANGE = r"(.*\.)?data_dir|(log|evaluate|save)_every|keep_(latest|best)|monitor|parallel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The sources: TFDS or Joined of jaxnlp.data.sources, or anything with __len__ and __getitem__ that gives dicts.

    Of a source that is no dataclass of ours, a run keeps the name alone.
    """

    train: Any = dataclasses.field(metadata={"named": True})
    validation: Any = dataclasses.field(default=None, metadata={"named": True})  # None: nothing is evaluated


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Where parameters come from, and what may differ from there; see pretrained.py. Patterns match whole paths."""

    run: str  # a run's folder, or a Hugging Face directory, here or by its name on the Hub
    step: int | Literal["latest", "best"] = "latest"
    fresh: str | None = None  # keep the initial value, and leave what the checkpoint has there
    drop: str | None = None  # in the checkpoint, not wanted
    grow: str | None = None  # tables with more rows now: the checkpoint's first, the new ones keep the initial value
    tokens: tuple[str, ...] = ()  # special tokens that its tokenizer gets, and the vocabulary's tables a row for each
    ema: bool = False  # the moving average instead of the parameters

    def anew(self, path: str) -> bool:
        """Whether a parameter is not, or not all, the checkpoint's."""
        return self.grows(path) or (self.fresh is not None and re.fullmatch(self.fresh, path) is not None)

    def grows(self, path: str) -> bool:
        patterns = (self.grow, VOCABULARY if self.tokens else None)
        return any(pattern is not None and re.fullmatch(pattern, path) for pattern in patterns)


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A batch that grows to batch_size in even stages over the first steps (Brown et al., 2020, appendix B).

    Each size is compiled by itself. No example is left out: a step goes on where the one before it ended. Of a task
    whose rows are of one length.
    """

    rows: int  # of the first step, and by how many a stage is larger than the one before it
    until: float  # fraction of the steps from which on the batch is whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run."""

    model: Any = None  # a model's config; None: the checkpoint's, with init
    task: Any  # what is learned from the data, a dataclass of jaxnlp.tasks or of your own
    data: Data
    tokenizer: Any = None  # ByteBPE(…), WordPiece(…), Characters(), TokenizerFile(…); None: the checkpoint's, with init
    optim: Optim = Optim()
    steps: int
    batch_size: int  # rows of one step, over all devices and microbatches; of a translation, of the longest bucket
    ramp: Ramp | None = None  # smaller batches at first
    seed: int = 0  # of parameters, data and dropout
    init: Pretrained | None = None  # another run to start from
    lora: LoRA | None = None  # train thin matrices beside those of `init`, and what is fresh or grows there
    ema: float | None = None  # decay of a moving average of the parameters, kept beside them; lower at first
    accumulate: int = 1  # microbatches that a step is made of, one after the other
    parallel: str = "auto"  # jit, pmap, sizes of a mesh such as fsdp=4,tensor=2, or auto: see training/parallel.py
    steps_per_call: int = 1  # steps compiled into one call: more is faster where a step takes milliseconds
    log_every: float = 0.01  # fraction of the steps
    evaluate_every: float = 0.1  # fraction of the steps; the whole validation part
    save_every: float = 0.1  # fraction of the steps
    keep_latest: int = 2  # checkpoints
    keep_best: int = 1  # checkpoints, by `monitor`, of those at whose step the validation part is evaluated
    monitor: str = "loss"

    def validate(self) -> None:
        """ValueError for the first number that cannot be meant."""
        if dataclasses.is_dataclass(self.task) and only_evaluated(self.task):
            raise ValueError(f"the task {type(self.task).__name__} is only evaluated; allowed: one that learns")
        counts = ("steps", "batch_size", "accumulate", "steps_per_call", "keep_latest")
        for name, low in {**dict.fromkeys(counts, 1), "keep_best": 0, "seed": 0}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: {low} and more")
        for name in ("log_every", "evaluate_every", "save_every"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: a fraction of the steps, 0 < {name} <= 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema={self.ema}; allowed: None, or a decay between 0 and 1, such as 0.999")
        if self.batch_size % self.accumulate:
            allowed = ", ".join(str(n) for n in range(1, self.batch_size + 1) if self.batch_size % n == 0)
            raise ValueError(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}; allowed: {allowed}"
            )
        if self.ramp is not None:
            self._check_ramp()
        held = {"freeze": self.optim.freeze, "layer_decay": self.optim.layer_decay}
        if self.lora is not None and (self.init is None or any(value is not None for value in held.values())):
            found = ", ".join([f"init={self.init}", *(f"optim.{name}={value!r}" for name, value in held.items())])
            raise ValueError(f"lora with {found}; allowed: an init to adapt, and neither of the others: the base stays")
        if self.tokenizer is not None and self.init is not None and self.init.tokens:
            raise ValueError(f"init.tokens={self.init.tokens} with a tokenizer; allowed: None, the checkpoint's")
        parse(self.parallel)
        if self.monitor not in LOWER_IS_BETTER:
            raise ValueError(f"monitor={self.monitor!r}; allowed: {', '.join(LOWER_IS_BETTER)}")
        for name in ("model", "tokenizer"):
            if getattr(self, name) is None and self.init is None:
                raise ValueError(f"{name}=None; allowed without init: a value; with init, None takes the checkpoint's")

    def _check_ramp(self) -> None:
        rows, until = self.ramp.rows, self.ramp.until
        if rows < 1 or self.batch_size % rows or rows % self.accumulate:
            allowed = f"a divisor of batch_size={self.batch_size} and a multiple of accumulate={self.accumulate}"
            raise ValueError(f"ramp.rows={rows}; allowed: {allowed}")
        if not 0 < until <= 1:
            raise ValueError(f"ramp.until={until}; allowed: a fraction of the steps, 0 < ramp.until <= 1")
        if self.steps_per_call > 1:
            raise ValueError(f"steps_per_call={self.steps_per_call} with a ramp; allowed: 1, as batches differ in size")

    @property
    def sizes(self) -> dict[str, int]:
        """Rows that every size of the batch is a multiple of, by the name of what sets them."""
        return {"batch_size": self.batch_size} if self.ramp is None else {"ramp.rows": self.ramp.rows}

    def rows_at(self, step: int) -> int:
        """Rows of the batch of a step, 0 … steps - 1."""
        if self.ramp is None:
            return self.batch_size
        stages = self.batch_size // self.ramp.rows
        return self.ramp.rows * min(1 + step * (stages - 1) // self.ramp_steps, stages)

    @property
    def ramp_steps(self) -> int:
        """Steps before the batch is whole."""
        return 0 if self.ramp is None else max(round(self.ramp.until * self.steps), 1)


def fine_tuned(
    task: Any,
    data: Data,
    pretrained: str,
    scratch: bool = False,
    *,
    examples: int,  # to train on
    epochs: int = 3,
    lr: float = 3e-5,
    batch_size: int = 32,
    monitor: str = "loss",
) -> Experiment:
    """A task learned by BERT's recipe; the defaults are for GLUE (Devlin et al., 2019, section 4.1 and appendix A.3).

    `scratch`: the checkpoint's tokenizer and sizes, and nothing of what it learned.
    """
    return Experiment(
        task=task,
        data=data,
        init=Pretrained(pretrained, fresh=".*" if scratch else "heads/.*"),
        optim=Optim(lr=lr, warmup=0.1, decay="linear", end=0.0, b2=0.999, epsilon=1e-6, weight_decay=0.01),
        steps=epochs * examples // batch_size,
        batch_size=batch_size,
        monitor=monitor,
    )


def only_evaluated(task: Any) -> bool:
    """Whether a task asks a model that has learned another, as `Prompting` does, and learns nothing."""
    return hasattr(task, "score") and not hasattr(task, "sums")


def every(fraction: float, steps: int, steps_per_call: int = 1) -> int:
    """Steps between two events: `fraction` of `steps`, to the nearest multiple of `steps_per_call`, at least one."""
    return max(round(fraction * steps / steps_per_call), 1) * steps_per_call


def to_json(experiment: Experiment) -> str:
    return json.dumps(encode(experiment), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> Experiment:
    """The inverse of `to_json`; ValueError says what is wrong with the text."""
    experiment = decode(json.loads(text))
    if not isinstance(experiment, Experiment):
        raise ValueError(f"found a {type(experiment).__name__}; allowed: an Experiment")
    return experiment


def check_same_run(saved: Experiment, given: Experiment) -> None:
    """ValueError if going on from `saved` as `given` would not be one run."""
    changes = _changes(encode(saved), encode(given), "")
    refused = [f"{path}: {old} -> {new}" for path, old, new in changes if not re.fullmatch(MAY_CHANGE, path)]
    if refused:
        raise ValueError(
            "the folder holds a run with other settings, and these may not change on resume:\n  "
            + "\n  ".join(refused)
            + "\ntake another folder, or start from this run with init=Pretrained(…)"
        )


def _changes(a: Any, b: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Paths of two JSON values that differ, with both; of two dataclasses of different types only the types.

    Lists of one length are compared item by item.
    """
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys() and a.get("type") == b.get("type"):
        return [change for key in a for change in _changes(a[key], b[key], f"{path}.{key}" if path else key)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [change for i, (one, other) in pairs for change in _changes(one, other, f"{path}.{i}")]
    kinds = [value.get("type") if isinstance(value, dict) else None for value in (a, b)]
    if kinds[0] != kinds[1]:
        a, b = (kind or value for kind, value in zip(kinds, (a, b)))
    return [] if a == b else [(path, a, b)]
