"""The one loop: train(experiment, workdir), from tokeniser to report, and evaluate.

A run goes on from the newest whole checkpoint in its folder. As a batch is a function of (seed, step) and everything
else lies in the state, what follows is what would have followed without the interruption, bit for bit.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.data import cache, tokenizers
from jaxnlp.data.batches import Batches, Rows
from jaxnlp.data.ramp import Ramped
from jaxnlp.data.sources import fingerprint, open_source
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.files import explained, make_folder, write_atomically
from jaxnlp.tasks.task import Table, asked
from jaxnlp.training import parallel, pretrained, processes
from jaxnlp.training.checkpoint import Checkpoints
from jaxnlp.training.chips import chip_of
from jaxnlp.training.experiment import Experiment, check_same_run, every, to_json
from jaxnlp.training.folder import Folder, locked
from jaxnlp.training.optim import optimizer, schedule
from jaxnlp.training.progress import Progress
from jaxnlp.training.report import MetricsWriter, write_report
from jaxnlp.training.step import Trainer, TrainState

REPORT_SECONDS = 60  # at least, between two drawings of the report while training


class Preempted(RuntimeError):
    """SIGTERM came: the state is saved, and the same command goes on from there."""

    exit_code = 75  # of the command line: EX_TEMPFAIL


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite."""

    exit_code = 70  # EX_SOFTWARE


def train(
    experiment: Experiment,
    workdir: str | os.PathLike,
    *,
    data_dir: str | None = None,
    profile: tuple[int, int] | None = None,
) -> Folder:
    """Runs the experiment to its end in `workdir`, from the start or from the newest checkpoint there.

    Args:
        profile: first and last step of which process 0 writes a trace to workdir/plugins, for TensorBoard and Perfetto.

    Raises:
        FolderError: another training holds the folder, or has taken it over.
        StorageError: the folder is in the store, gs://…, and that cannot be reached.
        ValueError: the folder holds another experiment or was begun with other data, or the parts do not fit together.
        CheckpointError: the folder holds checkpoints and none of them can be read.
        ProcessError: another process failed, or was started with other settings.
        Preempted, NonFiniteLoss: see there.
    """
    keep_compiled()
    processes.check_same("command", f"workdir: {os.fspath(workdir)}\n{to_json(experiment)}")
    experiment.validate()
    with _held(workdir) as folder, contextlib.closing(Checkpoints(
        folder.checkpoints,
        keep_latest=experiment.keep_latest,
        keep_best=experiment.keep_best,
        monitor=experiment.monitor,
    )) as checkpoints:  # fmt: skip
        experiment, tokenizer = settle(experiment, folder, data_dir)
        check_fit(experiment)
        layout = parallel.layout(experiment.parallel)
        trainer = trainer_for(experiment, layout.axis)
        train_batches, validation = batches_for(experiment, tokenizer, data_dir)
        example = jax.tree.map(lambda x: x[0], next(iter(_calls(train_batches, 0, 1, 1, lambda step: slice(1)))))
        init = functools.partial(trainer.begin, batch=example)
        key = jax.random.key(experiment.seed)
        abstract = layout.abstract(jax.eval_shape(init, key))
        lengths = [shape[1] for batches in (train_batches, validation) if batches for shape in batches.shapes]
        accumulate, model = experiment.accumulate, (abstract.params, abstract.base)
        parallel.check(layout.sizes, model, batch=experiment.sizes, accumulate=accumulate, lengths=lengths)
        start, data = 0, {"train": experiment.data.train, "validation": experiment.data.validation}
        fingerprints = {split: fingerprint(data[split], data_dir) for split in data if data[split] is not None}
        processes.check_same("set of examples", json.dumps(fingerprints, indent=1))
        begun, base, known = checkpoints.begun, None, None
        if begun:
            folder.check_data(fingerprints)
        if not begun or experiment.lora is not None:  # whose base is in no checkpoint
            state = layout.make(init, key)
            if experiment.init is not None:
                spec = experiment.init
                loaded = pretrained.adapted(folder, spec) if begun else pretrained.read(spec)
                state = pretrained.given(spec, state, loaded)
            if experiment.lora is not None:
                base, known = state.base, None if begun else pretrained.named(spec.run, loaded)
        if begun:
            state, start = checkpoints.restore(abstract.replace(base=None))
            state = state.replace(base=base)

        def write():
            folder.cut_metrics(start)
            tokenizer.save(folder.tokenizer)
            folder.write_data(fingerprints)
            folder.write_base(known)
            folder.write_experiment(experiment)

        processes.on_first(write)
        with (
            MetricsWriter(folder) if processes.first() else contextlib.nullcontext() as writer,
            Progress(experiment.steps, start, shown=processes.first()) as progress,
            _terminated() as terminated,
            processes.explained(),
            contextlib.ExitStack() as trace,
        ):
            progress.say(describe(layout, state))
            run = _Loop(
                experiment, trainer, layout, checkpoints, writer, progress, terminated, validation, folder, trace
            )
            state = run.go(state, start, train_batches, profile or (0, 0))
        params = run.whole(state)
        shown = () if data["validation"] is None else open_source(data["validation"], data_dir)
        processes.on_first(lambda: write_report(folder, _exhibits(trainer, params, tokenizer, shown)))
        return folder


def evaluate(
    experiment: Experiment, params: Any, tokenizer: Tokenizer, source: Any, *, data_dir: str | None = None
) -> dict[str, float]:
    """The task's metrics over the whole source: sums of all batches, divided once; and the scores of what it writes.

    A task without sums has scores alone.
    """
    task = experiment.task
    if not hasattr(task, "sums"):
        if getattr(task, "pool", None) is not None:
            task = dataclasses.replace(task, pool=open_source(task.pool, data_dir))
        return task.score(experiment.model.build(task.heads), params, tokenizer, open_source(source, data_dir))
    trainer, layout = trainer_for(experiment), parallel.Jit()
    batches = _batches(experiment, tokenizer, source, data_dir, seed=None)
    metrics = _evaluate(trainer.task, layout.measure(trainer.eval_step), layout, params, batches)
    if hasattr(trainer.task, "score"):
        metrics |= trainer.task.score(trainer.model, params, tokenizer, open_source(source, data_dir))
    return metrics


def settle(experiment: Experiment, folder: Folder, data_dir: str | None) -> tuple[Experiment, Tokenizer]:
    """The experiment with nothing left open, and its tokenizer: the folder's own, the checkpoint's, or a new one."""
    begun = folder.checkpoints.exists() and any(folder.checkpoints.iterdir())
    if begun and not folder.missing():
        saved = folder.read_experiment()
        experiment = dataclasses.replace(experiment, model=experiment.model or saved.model)
        check_same_run(saved, experiment)
        return experiment, Tokenizer.load(folder.tokenizer)
    model, theirs = (None, None) if experiment.init is None else pretrained.base(experiment.init)
    if experiment.tokenizer is None:
        tokenizer = theirs.extended(experiment.init.tokens)
    else:
        source = open_source(experiment.data.train, data_dir)
        texts = (text for i in range(len(source)) for text in experiment.task.texts(source[i]))
        built = processes.on_first(lambda: tokenizers.build(experiment.tokenizer, texts))
        tokenizer = Tokenizer.from_json(processes.broadcast(built.to_json() if processes.first() else ""))
        if theirs is not None:
            pretrained.check_tokenizer(experiment.init, theirs, tokenizer)
    if experiment.model is None:
        room = max(model.vocab_size, tokenizer.vocab_size) if experiment.init.tokens else model.vocab_size
        experiment = dataclasses.replace(experiment, model=dataclasses.replace(model, vocab_size=room))
    target = "vocab_size" if getattr(experiment.model, "target_vocab_size", None) is None else "target_vocab_size"
    for whose, one, field in (("", tokenizer, "vocab_size"), ("target's ", tokenizer.target, target)):
        if one.vocab_size > getattr(experiment.model, field):
            raise ValueError(
                f"the {whose}tokenizer has {one.vocab_size} tokens, model.{field}={getattr(experiment.model, field)}; "
                f"allowed: {one.vocab_size} and more"
            )
    return experiment, tokenizer


def describe(layout: parallel.Jit, state: TrainState) -> str:
    """ "8 TPU v5p, mesh fsdp=8; 124 million parameters; 0.23 GiB a device with optimizer"."""
    n, trained = (sum(x.size for x in jax.tree.leaves(tree)) for tree in ((state.params, state.base), state.params))
    beside = "" if state.base is None else f", {trained / 1e6:,.4g} of them trained"
    size = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    device, idle = layout.devices[0], jax.device_count() - len(layout.devices)
    others = f"; {idle} more devices idle (parallel={{pmap, data={jax.device_count()}, …}})" if idle else ""
    within = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"{layout}{within} ({device.device_kind}); {n / 1e6:,.4g} million parameters{beside}, "
        f"{size / 2**30:.3g} GiB a device with the optimizer's arrays{others}"
    )


def check_fit(experiment: Experiment) -> None:
    """ValueError for rows longer than the model's positions, and for a model that the task cannot train."""
    length, n_positions = experiment.task.length, experiment.model.n_positions
    if length > n_positions:
        raise ValueError(f"task.length={length}; allowed: at most model.n_positions={n_positions}")
    if hasattr(experiment.task, "check"):
        experiment.task.check(experiment.model.build(experiment.task.heads))


def trainer_for(experiment: Experiment, axis: str | None = None) -> Trainer:
    return Trainer(
        model=experiment.model.build(experiment.task.heads),
        task=experiment.task,
        optim=experiment.optim,
        optimizer=optimizer(experiment.optim, experiment.steps),
        seed=experiment.seed,
        accumulate=experiment.accumulate,
        ema=experiment.ema,
        lora=experiment.lora,
        anew=None if experiment.init is None else experiment.init.anew,
        axis=axis,
    )


def trained_whole(experiment: Experiment) -> bool:
    return experiment.optim.freeze is None and experiment.lora is None


def batches_for(experiment: Experiment, tokenizer: Tokenizer, data_dir: str | None) -> tuple[Batches, Batches | None]:
    """Batches of the train part, endless, and of the validation part, once through."""
    make = functools.partial(_batches, experiment, tokenizer, data_dir=data_dir)
    validation = experiment.data.validation
    train_batches = make(experiment.data.train, seed=experiment.seed)
    if experiment.steps_per_call > 1 and len(train_batches.shapes) > 1:
        raise ValueError(
            f"steps_per_call={experiment.steps_per_call} with rows of {len(train_batches.shapes)} lengths "
            f"({', '.join(map(str, train_batches.shapes))}); allowed: steps_per_call=1, or one bucket"
        )
    return train_batches, None if validation is None else make(validation, seed=None)


def keep_compiled() -> None:
    """Compiled programs outlive the process, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.fspath(_cache_folder() / "compiled"))


def _cache_folder() -> pathlib.Path:
    """Where what can be made again is kept: compiled programs, tokenised text."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxnlp"


@dataclasses.dataclass
class _Loop:
    """The moving parts of one training."""

    experiment: Experiment
    trainer: Trainer
    layout: parallel.Jit
    checkpoints: Checkpoints
    writer: MetricsWriter | None  # of the process that writes
    progress: Progress
    terminated: Any
    validation: Batches | None
    folder: Folder
    trace: contextlib.ExitStack  # within which the steps of `profile` run

    def go(self, state: TrainState, start: int, batches: Batches, profile: tuple[int, int]) -> TrainState:
        e = self.experiment
        steps, measure = self.layout.update(self.trainer.train_steps), self.layout.measure(self.trainer.eval_step)
        rows = lambda step: self.layout.rows(e.rows_at(step))  # noqa: E731
        log_every, evaluate_every, save_every = (
            every(fraction, e.steps, e.steps_per_call) for fraction in (e.log_every, e.evaluate_every, e.save_every)
        )
        step, tokens, tracing = start, 0, False
        since = reported = time.perf_counter()
        for call, batch in enumerate(_calls(batches, start, e.steps, e.steps_per_call, rows)):
            if not tracing and profile[0] <= step + len(batch["input_ids"]) and step < profile[1]:
                self.trace.enter_context(_traced(self.folder))
                tracing = True
            size = e.rows_at(step)
            state, sums = steps(state, self.layout.place(batch, size))
            tokens += _tokens(batch) * size // len(rows(step))
            step += len(batch["input_ids"])
            if tracing and (step >= profile[1] or step == e.steps):
                jax.block_until_ready(sums)
                self.trace.close()
                tracing = False
            due = lambda interval: step % interval == 0 or step == e.steps  # noqa: B023, E731
            if due(log_every) or due(save_every):
                self._check_finite(state)
            metrics: dict[str, float] = {}
            if due(log_every):
                metrics = self._log(state, step, tokens, time.perf_counter() - since)
                state = state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
                since, tokens = time.perf_counter(), 0
            self.progress.update(step, metrics)
            validated: dict[str, float] = {}
            if self.validation is not None and due(evaluate_every):
                jax.block_until_ready(sums)  # what trained until here is not the evaluation's time
                began = time.perf_counter()
                validated = _evaluate(self.trainer.task, measure, self.layout, self.whole(state), self.validation)
                if e.monitor not in validated:
                    raise ValueError(f"monitor={e.monitor!r} is not measured; allowed: {', '.join(validated)}")
                self._write(step, "validation", {**validated, "seconds": time.perf_counter() - began})
                self.progress.validated(step, validated)
                if began - reported > REPORT_SECONDS and processes.first():
                    write_report(self.folder)
                    reported = began
                since += time.perf_counter() - began
            stop = self.terminated() or processes.stop_together(call)
            if due(save_every) or stop:
                self._check_finite(state)
                if self.writer is not None:
                    self.writer.flush()  # a step's lines come before its checkpoint
                self.checkpoints.save(step, state.replace(base=None), validated)
            if stop and step < e.steps:
                self.checkpoints.wait()
                raise Preempted(f"terminated at step {step}: saved in {self.folder.path}; the same command goes on")
        self.checkpoints.wait()
        return state

    def whole(self, state: TrainState) -> Any:
        """The model's parameters, averaged where there is an average."""
        params = state.params if state.ema is None else state.ema
        return params if state.base is None else self.layout.make(self.trainer.whole, params, state.base)

    def _log(self, state: TrainState, step: int, tokens: int, seconds: float) -> dict[str, float]:
        metrics = self.trainer.task.metrics(_means(state.sums))
        metrics["learning_rate"] = float(schedule(self.experiment.optim, self.experiment.steps)(step - 1))
        metrics |= {"tokens_per_second": tokens / seconds, "seconds": seconds}
        chip, model, task = chip_of(self.layout.devices[0]), self.trainer.model.config, self.trainer.task
        # The formula is of a model that is trained whole: frozen parameters have no gradient.
        if chip is not None and hasattr(model, "flops") and trained_whole(self.experiment):
            flops = model.flops(task.length, vocabulary=asked(task)) * tokens / seconds
            metrics["mfu"] = flops / (chip.peak * len(self.layout.devices))
        self._write(step, "train", metrics)
        return metrics

    def _write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(step, split, metrics)

    def _check_finite(self, state: TrainState) -> None:
        bad = int(state.bad_step)
        if bad < 0:
            return
        self.checkpoints.wait()
        good = self.checkpoints.steps
        last = (
            f"the last good checkpoint is step {good[-1]} in {self.folder.path}" if good else "there is no checkpoint"
        )
        raise NonFiniteLoss(
            f"the loss or the gradient of step {bad} is not finite; {last}. Try a lower optim.lr or more optim.warmup"
        )


def _evaluate(task: Any, measure: Any, layout: parallel.Jit, params: Any, batches: Batches) -> dict[str, float]:
    sums, size = None, batches.batch_size
    for batch in _calls(batches, 0, batches.steps_per_epoch, 1, lambda step: layout.rows(size)):
        new = measure(params, layout.place(batch, size))
        sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
    return task.metrics(_means(sums))


def _exhibits(trainer: Trainer, params: Any, tokenizer: Tokenizer, examples: Any) -> Sequence[Any]:
    """What the task shows of the model; process 0 makes it alone, so from parameters that it holds whole."""
    if jax.process_count() > 1:
        if not all(x.is_fully_replicated for x in jax.tree.leaves(params)):
            why = (
                f"The parameters lie in {jax.process_count()} processes; `jaxnlp generate` and `predict` read the run."
            )
            return (Table("Nothing is shown of the model itself", (), ((why,),)),)
        params = jax.tree.map(lambda x: x.addressable_data(0), params)
    return trainer.task.show(trainer.model, params, tokenizer, examples)


def _means(sums: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(total) / max(float(weight), 1e-9) for name, (total, weight) in jax.device_get(sums).items()}


def _batches(
    experiment: Experiment, tokenizer: Tokenizer, source: Any, data_dir: str | None, seed: int | None
) -> Batches:
    task = experiment.task
    encoded = cache.build(
        source,
        functools.partial(task.encode, tokenizer=tokenizer),
        key={**task.key, "tokenizer": tokenizer.fingerprint},
        cache_dir=_cache_folder() / "tokens",
        data_dir=data_dir,
    )
    ramp = None if seed is None else experiment.ramp
    if ramp is None:
        return task.batches(encoded, tokenizer, batch_size=experiment.batch_size, seed=seed)
    counts = tuple(experiment.rows_at(step) // ramp.rows for step in range(experiment.ramp_steps + 1))
    return Ramped(task.batches(encoded, tokenizer, batch_size=ramp.rows, seed=seed), counts)


def _calls(
    batches: Batches, start: int, stop: int, size: int, rows: Callable[[int], Rows]
) -> Iterator[dict[str, np.ndarray]]:
    """Rows of batches start … stop - 1, made ahead by other threads, stacked by `size` up to its next multiple."""
    first = min(-start % size, stop - start)
    steps = grain.MapDataset.range(start, stop).map(lambda step: batches(step, rows(step)))
    for part, n in ((steps[:first], max(first, 1)), (steps[first:], size)):
        yield from part.batch(n).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))


def _tokens(batch: Mapping[str, np.ndarray]) -> int:
    """Real tokens among the inputs, of encoder and decoder."""
    n = int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].size
    return n + (int(batch["weights"].sum()) if "decoder_input_ids" in batch else 0)


@contextlib.contextmanager
def _held(workdir: str | os.PathLike) -> Iterator[Folder]:
    """`locked` by process 0, for all."""
    with explained(workdir), contextlib.ExitStack() as stack:
        folder = processes.on_first(lambda: stack.enter_context(locked(workdir))) or Folder(workdir)
        processes.check_shared(folder.path)
        yield folder


@contextlib.contextmanager
def _traced(folder: Folder) -> Iterator[None]:
    """Process 0 traces what runs within. JAX writes to a folder here, and makes Perfetto's file of a single host's."""
    if not processes.first():
        yield
        return
    with tempfile.TemporaryDirectory() as here:
        with jax.profiler.trace(here, create_perfetto_trace=True):
            yield
        for path in (path for path in pathlib.Path(here).rglob("*") if path.is_file()):
            to = folder.path / str(path.relative_to(here))
            make_folder(to.parent)
            write_atomically(to, path.read_bytes())


@contextlib.contextmanager
def _terminated():
    """A function that says whether SIGTERM has come; the signal itself only leaves the note.

    Several processes hear of it from one another: see `processes.stop_together`.
    """
    if jax.process_count() > 1:
        yield lambda: False
        return
    came: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    except ValueError:  # not the main thread, as in some notebooks: then nobody sends it here
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
