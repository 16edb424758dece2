"""What a notebook holds of a run: its model, parameters and tokenizer, and the functions that use them.

run = load("runs/quickstart")
run.apply({"input_ids": ids})["logits"]           run.generate(["Once upon"])           run.predict(["…"])
run.neighbours("word")                            run.word_map(["one", "two", "three"])
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, Sharding

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.files import explained
from jaxnlp.interop import huggingface
from jaxnlp.models.checked import checked
from jaxnlp.models.heads import LanguageModel, shapes, speaks
from jaxnlp.tasks import generation, words
from jaxnlp.tasks.task import Points, sown
from jaxnlp.training import loop, parallel, pretrained
from jaxnlp.training.checkpoint import load_average
from jaxnlp.training.experiment import Data, Experiment, only_evaluated
from jaxnlp.training.folder import open_run
from jaxnlp.training.serialize import External

DTYPES = ("float32", "bfloat16")
OUTPUTS = ("attentions", "cross_attentions", "gates", "hidden_states")  # on request


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained model with its tokenizer. `params` is a plain nested dict; `model` is used through `apply` alone."""

    model: nn.Module
    params: Mapping[str, Any]
    tokenizer: Tokenizer
    task: Any
    experiment: Experiment | None = None  # all that it was trained with; None: not known of what others trained
    step: int = 0  # of the checkpoint

    @property
    def config(self) -> Any:
        """The model's sizes."""
        return self.model.config

    def apply(self, inputs: Mapping[str, Any], *, outputs: Sequence[str] = ()) -> dict[str, Any]:
        """The model's outputs for `input_ids` [B, T] and whatever else it takes by name, without dropout; jitted.

        `outputs` asks for more, each a tuple with an entry a layer, first to last, the encoder's before the decoder's:
        "attentions" (weights [B, H, T, T]), "cross_attentions" (weights [B, T, S], a Transformer's [B, H, T, S]),
        "gates" of an LSTM or GRU (by direction and by name, [B, T, D]), "hidden_states" (what enters each layer and the
        last one's normed output, [B, T, D]). ValueError for what the model does not take, for an id or a position
        outside its table or row, and for a mask of another shape or one that the model would misread.
        """
        outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        if unknown := set(outputs) - set(OUTPUTS):
            raise ValueError(f"outputs: no {', '.join(sorted(unknown))}; allowed: {', '.join(OUTPUTS)}")
        inputs = checked(self.model, inputs, outputs)
        return _apply(self.model, self.params, inputs, outputs)

    def generate(self, prompts: Sequence[str], **options: Any) -> list[Any]:
        """The text that goes on from each prompt, a list of strings: see `jaxnlp.tasks.generation.generate`.

        With n_samples a list of them for each prompt; with details=True dicts that hold tokens and log-probabilities.
        """
        self._check_speaks("generate")
        return generation.generate(self.config.build(), self.params, self.tokenizer, prompts, **options)

    def predict(self, items: Sequence[Any], *, task: Any = None) -> list[dict[str, Any]]:
        """What the task says of each item: a class with its probability, for instance, or the span that is an answer.

        An item is a text, or what the task's `predict` takes: a pair of texts, a question with its context, a context
        with its choices, in order or under the features' names. ValueError for one item without a list around it, and
        for a task whose head the run has not.
        """
        if isinstance(items, str | bytes | Mapping):
            raise ValueError(f"found {str(items)[:40]!r} to predict; allowed: a list of such items")
        task = task or self.task
        if isinstance(task, External):
            raise ValueError(f"the run was trained on {task.name}, a task of your own: give it as task=")
        if only_evaluated(task):
            self._check_speaks("score")
        run = self if task is self.task else dataclasses.replace(self, model=self.config.build(task.heads))
        if not hasattr(task, "predict"):
            raise ValueError(f"{type(task).__name__} predicts nothing of a text; a language model has `generate`")
        self._check_has(task)
        if hasattr(task, "check"):
            task.check(run.model)
        return task.predict(run.model, run.params, run.tokenizer, items)

    def _check_has(self, task: Any) -> None:
        """ValueError of a task whose heads have other parameters than the run's."""
        if task is self.task or not set(map(type, task.heads)) - {LanguageModel}:
            return
        has = {f"heads/{path}": x.shape for path, x in flatten_dict(self.params.get("heads", {}), sep="/").items()}
        for path, wanted in shapes(self.config, task.heads).items():
            if path.startswith("heads/") and has.get(path) != wanted.shape:
                found = has.get(path) or ", ".join({path.split("/")[1]: 0 for path in has}) or "no head"
                message = (
                    f"the task {type(task).__name__}, whose {path} has shape {wanted.shape}, of a run with {found}"
                )
                raise ValueError(f"{message}; allowed: a task of what it learned")

    def _check_speaks(self, what: str) -> None:
        if not hasattr(self.model, "init_cache"):
            other = "; a translation comes from `predict`" if hasattr(self.model, "encode") else ""
            raise ValueError(f"the model {type(self.model).__name__} is no language model to {what} with{other}")
        if not speaks(heads := self.model.heads):
            raise ValueError(f"this run has the heads {heads}, and no language model's output to {what} with")

    def neighbours(self, word: str, k: int = 10, *, table: str | None = None) -> tuple[tuple[str, float], ...]:
        """The k tokens nearest to a word by the cosine of their embeddings; `table` as in `words.table_of`."""
        return words.neighbours(*self._embeddings(table), word, k)

    def word_map(self, names: Sequence[str], *, table: str | None = None) -> Points:
        """The words' embeddings in the plane, which `jaxnlp.training.report.points_png` draws."""
        return words.word_map(*self._embeddings(table), names)

    def _embeddings(self, table: str | None) -> tuple[Any, Tokenizer]:
        written = table is not None and table.partition("/")[0] in words.WRITTEN
        return words.table_of(self.params, table), self.tokenizer.target if written else self.tokenizer


def load(
    path: str | os.PathLike,
    *,
    step: int | Literal["latest", "best"] = "latest",
    ema: bool = False,
    average: int = 1,
    mesh: Mesh | None = None,
    dtype: Any = None,
) -> Run:
    """The run in a folder, or the model in a directory that Hugging Face's transformers wrote, here or on its Hub.

    Such a directory has a config.json and *.safetensors; `step`, `ema` and `average` ask for what it has not.

    Args:
        step: the newest whole checkpoint, the one that was best on the validation part, or the one of that step.
        ema: the moving average of the parameters instead of their last values.
        average: the mean of so many checkpoints, the latest; `keep_latest` says how many a run keeps.
        mesh: the devices that hold the parameters, cut along its axes fsdp, sequence and tensor as in training (see
            training/parallel.py), whole along others; None: the first device.
        dtype: of parameters and activations, "float32" or "bfloat16"; None: as the run was trained.

    Raises:
        FolderError: the folder is no run.
        DirectoryError: the directory is of no kind that is known here, or its tensors are not what it says.
        CheckpointError: it has no such step, or none that can be read.
        StorageError: it is in the store, gs://…, and that cannot be reached.
        ValueError: another dtype; `step`, `ema` or `average` of what has none.
    """
    if dtype is not None and (dtype if isinstance(dtype, str) else jnp.dtype(dtype).name) not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
    loop.keep_compiled()

    def place(path: str, x: Any) -> Sharding | None:
        return None if mesh is None else parallel.sharding(path, x.shape, mesh)

    cast = {} if dtype is None else {"dtype": jnp.dtype(dtype).name}
    if (found := huggingface.find(path)) is not None:
        if (step, ema, average) != ("latest", False, 1):
            raise ValueError(f"step={step!r}, ema={ema}, average={average} of {path}, which is no run; allowed: none")
        model = dataclasses.replace(found.config, **cast).build(found.task.heads)
        params = found.params(lambda path, x: jax.device_put(x, place(path, x)), dtype or jnp.float32)
        tokenizer = found.tokenizer()
        return Run(model, params, tokenizer, found.task_with(tokenizer))
    with explained(path):
        folder = open_run(path)
        experiment = folder.read_experiment()
        config = dataclasses.replace(experiment.model, **cast)
        options = {"ema": ema, "sharding": functools.partial(parallel.by_path, place), "dtype": dtype}
        if average == 1:
            params, step = pretrained.of_run(folder, step, **options)
        elif step == "latest" and experiment.lora is None:
            params, step = load_average(folder.checkpoints, average, **options)
        else:
            adapts = "" if experiment.lora is None else " and LoRA"
            raise ValueError(f"average={average} with step={step!r}{adapts}; allowed with: latest, no LoRA")
        heads = () if isinstance(experiment.task, External) else experiment.task.heads
        tokenizer = Tokenizer.load(folder.tokenizer)
        return Run(config.build(heads), params, tokenizer, experiment.task, experiment, step)


def export(run: Run, path: str | os.PathLike, *, format: str = "huggingface") -> None:
    """Writes a new directory that transformers' from_pretrained reads as the same model; or, with format="run", a run.

    Such a run is whole: it names no base, nor where it came from.

    Raises:
        ValueError: another format, a model or a task that transformers has not, or no run to be written as one.
        FileExistsError: there is something in the folder.
    """
    if format == "huggingface":
        huggingface.write(path, run.config, run.params, run.tokenizer, run.task)
    elif format == "run" and run.experiment is not None:
        experiment = dataclasses.replace(run.experiment, init=None, lora=None)
        pretrained.write(path, experiment, run.tokenizer, run.params, run.step)
    else:
        allowed = "huggingface" if run.experiment is None else "huggingface, run"
        raise ValueError(f"format={format!r}; allowed: {allowed}")


def train(experiment: Experiment, workdir: str | os.PathLike, *, data_dir: str | None = None) -> Run:
    """Trains to the end, from the newest checkpoint in `workdir` if there is one, and loads the result.

    The same loop as `jaxnlp train`: see `jaxnlp.training.loop.train` for what it raises.
    """
    loop.train(experiment, workdir, data_dir=data_dir)
    run = load(workdir, ema=experiment.ema is not None)
    # A folder keeps only the names of a user's own sources and task: here they are at hand.
    own = dataclasses.replace(run.experiment, data=experiment.data, task=experiment.task)
    return dataclasses.replace(run, model=run.config.build(own.task.heads), task=own.task, experiment=own)


def evaluate(run: Run, *, source: Any = None, task: Any = None, data_dir: str | None = None) -> dict[str, float]:
    """The task's metrics over the whole of `source`, by default the run's validation part.

    A source or a task of the caller's own is not in the run's folder: then `source` or `task` gives it. So does it a
    task that is only evaluated, such as `Prompting` and `LastWord`, with the source that it is of.
    """
    if source is None and run.experiment is not None:
        source = run.experiment.data.validation
    if source is None or isinstance(source, External):
        raise ValueError("the run names no validation part that can be read again: give it as source=")
    task = task or run.task
    if isinstance(task, External):
        raise ValueError(f"the run was trained on {task.name}, a task of your own: give it as task=")
    if only_evaluated(task):
        run._check_speaks("score")
    elif not hasattr(task, "sums"):
        raise ValueError(f"{type(task).__name__} measures nothing; allowed: task=, one that does")
    run._check_has(task)
    experiment = run.experiment or Experiment(task=task, data=Data(train=source), steps=1, batch_size=32)
    experiment = dataclasses.replace(experiment, model=run.config, task=task)
    return loop.evaluate(experiment, run.params, run.tokenizer, source, data_dir=data_dir)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(
    model: nn.Module, params: Mapping[str, Any], inputs: dict[str, Any], outputs: tuple[str, ...]
) -> dict[str, Any]:
    if not outputs:
        return model.apply({"params": params}, **inputs)
    result, seen = model.apply({"params": params}, **inputs, mutable=["intermediates"])
    layers = {name: tuple(sown(seen.get("intermediates", {}), name)) for name in outputs}
    if absent := [name for name, found in layers.items() if not found]:
        has = [name for name in OUTPUTS if any(True for _ in sown(seen.get("intermediates", {}), name))]
        raise ValueError(
            f"outputs: {type(model).__name__} as it is configured has no {', '.join(absent)}; "
            f"allowed: {', '.join(has) or 'none'}"
        )
    if "hidden_states" in layers:
        layers["hidden_states"] += (result["last_hidden_state"],)
    return result | layers
