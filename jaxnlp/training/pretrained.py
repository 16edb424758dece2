"""Parameters that start from another run's, with nothing left unexplained.

    of the model:        fresh -> initial value;  same shape -> the checkpoint's;  grow -> its rows, then initial ones
                         tokens -> the rows of its own tokens, then initial ones
    of the checkpoint:   in the model -> as above;  drop, or fresh -> left behind
    anything else        an error that lists every path

Paths look like "blocks/0/attention/qkv/kernel"; patterns are regexes that match a whole path.
"""

import contextlib
import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.files import entries, is_remote, locate, make_folder
from jaxnlp.interop import huggingface
from jaxnlp.nn.blocks import stack_layers, unstack_layers
from jaxnlp.training import lora
from jaxnlp.training.checkpoint import CheckpointError, Checkpoints, Step, load_params
from jaxnlp.training.experiment import VOCABULARY, Experiment, Pretrained
from jaxnlp.training.folder import Folder, FolderError, open_run
from jaxnlp.training.step import TrainState

Params = Mapping[str, Any]  # a nested dict of arrays
NOTHING = r"(?!)"  # what a pattern that is None matches


def read(spec: Pretrained) -> dict[str, Any]:
    """The parameters of the run or the Hugging Face directory that `spec` names."""
    if (directory := huggingface.find(spec.run)) is not None:
        return directory.params(lambda path, x: np.asarray(x))  # in the host's memory: a device may hold a part alone
    return of_run(open_run(spec.run), spec.step, ema=spec.ema)[0]


def adapted(folder: Folder, spec: Pretrained) -> dict[str, Any]:
    """The parameters that a run with LoRA adapts: from where base.json says that they lie, or `spec` does.

    FolderError, which says how to name another place, if they are not there, or are others.
    """
    known = folder.read_base()
    where = next((run for run in (known["run"], spec.run) if is_remote(run) or locate(run).exists()), known["run"])
    help = f'allowed: the parameters that it began with, and in {folder.base} as "run" where they lie now'
    try:
        loaded = read(dataclasses.replace(spec, run=where))
    except (FolderError, huggingface.DirectoryError, CheckpointError) as error:
        raise FolderError(f"{folder.path} adapts {where}, its base, which cannot be read: {error}; {help}") from error
    if (found := lora.fingerprint(loaded)) != known["sha256"]:
        raise FolderError(f"{folder.path} adapts {known}, and {where} has the sha256 {found} now; {help}")
    return loaded


def unmerged(path: epath.PathLike) -> dict[str, Any]:
    """The base of a run with LoRA, each bit as it was before anything was added; FolderError as `adapted`."""
    folder = open_run(path)
    if (experiment := folder.read_experiment()).lora is None:
        raise ValueError(f"{folder.path} adapts nothing; allowed: a run with LoRA")
    return adapted(folder, experiment.init)


def named(run: str, loaded: Params) -> dict[str, str]:
    """What base.json says of a base: its place, whole, so that it is the same from every directory; and its hash."""
    here = not is_remote(run) and locate(run).exists()  # or else a name on the Hub
    return {"run": os.fspath(locate(run).absolute()) if here else run, "sha256": lora.fingerprint(loaded)}


def of_run(folder: Folder, step: Step, *, ema: bool, **options: Any) -> tuple[dict[str, Any], int]:
    """The parameters of the whole model, A and B of a run with LoRA added to its base; and the step.

    FolderError if the base is not what it was. `options` are `load_params`' `sharding` and `dtype`.
    """
    experiment = folder.read_experiment()
    if experiment.lora is None:
        return load_params(folder.checkpoints, step, ema=ema, **options)
    trained, step = load_params(folder.checkpoints, step, ema=ema)
    spec, loaded = experiment.init, adapted(folder, experiment.init)
    found = flatten_dict(_as_in(trained, loaded), sep="/")
    base = {path: x for path, x in found.items() if not (spec.anew(path) or re.fullmatch(spec.drop or NOTHING, path))}
    whole = lora.merged(experiment.lora, trained, unflatten_dict(base, sep="/"))
    dtype, place = (options.get(name) for name in ("dtype", "sharding"))
    whole = jax.tree.map(lambda x: jnp.asarray(x, dtype or jnp.float32), whole)
    return jax.device_put(whole, place and place(whole)), step


def write(path: epath.PathLike, experiment: Experiment, tokenizer: Tokenizer, params: Params, step: int) -> None:
    """A run's folder with parameters alone, from which others can start; FileExistsError where there is something.

    They are float32, whatever they were loaded as: the experiment says what they are computed with.
    """
    folder = Folder(path)
    make_folder(folder.path)
    if entries(folder.path):
        raise FileExistsError(f"{folder.path} is there already; allowed: a new folder, or an empty one")
    params, nothing = jax.tree.map(lambda x: x.astype(jnp.float32), params), jnp.full((), -1, jnp.int32)
    with contextlib.closing(Checkpoints(folder.checkpoints)) as checkpoints:
        checkpoints.save(step, TrainState(jnp.int32(step), params, (), None, {}, nothing))
    tokenizer.save(folder.tokenizer)
    folder.write_experiment(experiment)  # last: without it the folder is no run


def given(spec: Pretrained, state: TrainState, loaded: Params) -> TrainState:
    """The state at the start, with what was read in place of the initial values."""
    params, adapted = flatten_dict(state.params, sep="/"), flatten_dict(state.base or {}, sep="/")
    initial = adapted | {path: value for path, value in params.items() if not path.startswith("lora/")}
    grown = any(spec.grows(path) and re.fullmatch(VOCABULARY, path) for path in initial)
    n_tokens = base(spec)[1].vocab_size if grown else None
    merged = flatten_dict(merge(unflatten_dict(initial, sep="/"), loaded, spec, n_tokens), sep="/")
    params = unflatten_dict({path: merged.get(path, value) for path, value in params.items()}, sep="/")
    adapted = unflatten_dict({path: merged[path] for path in adapted}, sep="/") or None
    return state.replace(params=params, base=adapted, ema=state.ema and jax.tree.map(jnp.copy, params))


def base(spec: Pretrained) -> tuple[Any, Tokenizer]:
    """The model's config and the tokenizer there."""
    if (directory := huggingface.find(spec.run)) is not None:
        if (spec.step, spec.ema) != ("latest", False):
            raise ValueError(
                f"init.step={spec.step!r}, ema={spec.ema} of {spec.run}, which is no run; allowed: neither"
            )
        return directory.config, directory.tokenizer()
    folder = open_run(spec.run)
    return folder.read_experiment().model, Tokenizer.load(folder.tokenizer)


def check_tokenizer(spec: Pretrained, base: Tokenizer, own: Tokenizer) -> None:
    """ValueError if ids would stand for other tokens than in the checkpoint, whose rows of the table are kept."""
    if own.fingerprint == base.fingerprint or re.fullmatch(spec.fresh or "", "embed/tokens"):
        return
    common = range(min(own.vocab_size, base.vocab_size))
    other = next((i for i in common if own.token(i) != base.token(i)), None)
    if other is None and own.vocab_size > base.vocab_size and re.fullmatch(spec.grow or "", "embed/tokens"):
        return
    found = f"{own.vocab_size} tokens" if other is None else f"token {other} is {own.token(other)!r}"
    there = f"{base.vocab_size} tokens" if other is None else repr(base.token(other))
    raise ValueError(
        f"the tokenizer is not the one of {spec.run}: {found}, there {there}; allowed: tokenizer=None, which takes that"
        " one, or init.fresh that matches embed/tokens, or init.grow that does and a tokenizer with more tokens"
    )


def merge(initial: Params, loaded: Params, spec: Pretrained, n_tokens: int | None = None) -> dict[str, Any]:
    """The values of `loaded` in the shapes, dtypes, shardings and form (scanned or unrolled) of `initial`.

    A table of the vocabulary that grows keeps the rows of `n_tokens` alone: others fill it up, and stand for nothing.
    """
    model = flatten_dict(initial, sep="/")
    checkpoint = flatten_dict(_as_in(initial, loaded), sep="/")
    fresh = _matching("fresh", spec.fresh, model, "the model")
    drop = _matching("drop", spec.drop, checkpoint, "the checkpoint")
    _matching("grow", spec.grow, model, "the model")

    merged, problems = {}, []
    for path, value in model.items():
        found = None if path in drop else checkpoint.get(path)
        if path in fresh:
            merged[path] = value
        elif found is not None and spec.grows(path) and _has_rows(value, found):
            rows = found[: n_tokens if re.fullmatch(VOCABULARY, path) else None]
            merged[path] = value.at[: len(rows)].set(np.asarray(rows.astype(value.dtype)))
        elif found is not None and found.shape == value.shape:
            merged[path] = _placed(np.asarray(found.astype(value.dtype)), value.sharding)
        else:
            problems.append(_explain(path, found, value))
    anew = re.compile(spec.fresh or NOTHING)
    left_over = [p for p in checkpoint if p not in model and p not in drop and not anew.fullmatch(p)]
    problems += [_explain(path, checkpoint[path], None) for path in left_over]
    if problems:
        count = f"{len(problems)} path{'s' * (len(problems) > 1)}"
        raise ValueError(f"the checkpoint of {spec.run} does not fit the model at {count}:\n  " + "\n  ".join(problems))
    return unflatten_dict(merged, sep="/")


def _placed(x: np.ndarray, sharding: Any) -> Array:
    """x in its place, of which another process may hold a part."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _as_in(initial: Params, loaded: Params) -> Params:
    """The loaded layers stacked or apart, as the initial ones are."""
    want, have = (any("blocks/layers/" in path for path in flatten_dict(tree, sep="/")) for tree in (initial, loaded))
    if want == have:
        return loaded
    return stack_layers(loaded) if want else unstack_layers(loaded)


def _matching(option: str, pattern: str | None, paths: Mapping[str, Any], where: str) -> set[str]:
    if pattern is None:
        return set()
    try:
        found = {path for path in paths if re.fullmatch(pattern, path)}
    except re.error as error:
        raise ValueError(f"init.{option}={pattern!r} is no regex: {error}") from error
    if not found:
        close = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)
        near = f"; the nearest path is {close[0]}" if close else ""
        raise ValueError(f"init.{option}={pattern!r} matches no path of {where}{near}")
    return found


def _has_rows(value: Array, found: Array | np.ndarray) -> bool:
    return value.ndim == found.ndim > 0 and value.shape[1:] == found.shape[1:] and len(value) >= len(found)


def _explain(path: str, found: Array | np.ndarray | None, value: Array | None) -> str:
    if found is None:
        return f"{path}: nothing from the checkpoint, {value.shape} in the model; `fresh` keeps the initial value"
    if value is None:
        return f"{path}: {found.shape} in the checkpoint, not in the model; `drop` leaves it behind"
    hint = "`grow` copies its rows" if _has_rows(value, found) else "`fresh` keeps the initial value"
    return f"{path}: {found.shape} in the checkpoint, {value.shape} in the model; {hint}"
