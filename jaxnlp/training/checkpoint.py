"""Checkpoints that are whole or not there at all: Orbax writes them, a manifest beside each vouches for them.

    checkpoints/
      1000/         params, ema where there is one, and training: the other fields of the state
      1000.json     the manifest: metrics; dtype and shape of each leaf; size and SHA-256 of each file; its own SHA-256

    save(1000)      copies to the host; then, in a thread: writes 1000/, writes 1000.json, deletes what is not kept
    wait()          until 1000.json is there, in every process
    restore()       checks every file against its manifest, then loads; where that fails, warns and takes the one before

A step counts once its manifest is there; an old one goes only after that, its manifest first. So a process killed at
any moment leaves the checkpoints that it had, and debris that never passes for one. Orbax alone reads a flipped byte in
silence, and deletes before a checksum could be taken; so the few lines that keep and delete are ours.

In the store, gs://bucket/…, the same holds: Orbax writes 1000/ in place there, and the manifest, one put, comes last.
For the checksums the thread reads back what was uploaded: as many bytes down as up. Of several processes each reads a
share of the files.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from jaxnlp.files import absolute, entries, is_remote, locate, make_folder, write_atomically
from jaxnlp.training import processes

LOWER_IS_BETTER = {
    "loss": True,
    "perplexity": True,
    "bits_per_byte": True,
    "mlm_loss": True,
    "nsp_loss": True,
    "accuracy": False,
    "mlm_accuracy": False,
    "nsp_accuracy": False,
    "f1": False,
    "exact_match": False,
    "bleu": False,
    "rouge_l": False,
}

Step = int | Literal["latest", "best"]

SAVES = itertools.count()  # names for them, the same ones in all processes


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found, trusted or fitted."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What vouches for a step."""

    step: int
    metrics: Mapping[str, float]
    monitor: str  # the metric that says which step is best
    leaves: Mapping[str, Mapping[str, Any]]  # {"params/embed/tokens": {"dtype": "float32", "shape": [512, 64]}}
    files: Mapping[str, Mapping[str, Any]]  # {"params/manifest.ocdbt": {"bytes": 113, "sha256": "…"}}


class Checkpoints:
    """The checkpoints of one training, which alone may write to `directory`. Readers take `load_params`."""

    def __init__(self, directory: epath.PathLike, *, keep_latest: int = 2, keep_best: int = 1, monitor: str = "loss"):
        self.directory = absolute(locate(directory))
        self.keep_latest = keep_latest
        self.keep_best = keep_best
        self.monitor = monitor
        self._broken: set[int] = set()  # steps that restore passed over
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        processes.on_first(self._tidy)

    def _tidy(self) -> None:
        make_folder(self.directory)
        _delete_unfinished(self.directory)  # what a killed process was writing

    @property
    def begun(self) -> bool:
        """Whether a save was ever finished, readable or not."""
        return any(path.suffix == ".json" for path in entries(self.directory))

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, in order; one being saved counts as soon as it is whole."""
        return [manifest.step for manifest in self._manifests()]

    @property
    def best_step(self) -> int | None:
        ranked = _ranked(self._manifests(), self.monitor)
        return ranked[0].step if ranked else None

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a dataclass of pytrees with a field `params`; once this returns, its arrays may be donated.

        Waits for the save before, and raises the CheckpointError that it may have ended in. A step is saved once. Of
        several processes each writes its own parts, and the first one the manifest.
        """
        self.wait()
        name = f"save/{next(SAVES)}"
        processes.on_first(lambda: self._make_room(step))
        parts = _parts(state)
        manifest = Manifest(step, dict(metrics or {}), self.monitor, _leaves(parts), files={})
        with self._explained(step), _orbax_context():
            response = ocp.save_checkpointables_async(self.directory / str(step), parts)
        self._pending = self._thread.submit(self._commit, response.result, manifest, name)

    def _make_room(self, step: int) -> None:
        if step in self.steps:
            raise CheckpointError(f"step {step} is already saved in {self.directory}")
        with self._explained(step):
            _delete(self.directory, step)  # what a killed process left, or a broken one
            self._broken.discard(step)

    def wait(self) -> None:
        """Until the last save is whole, in all processes; raises the CheckpointError that it ended in, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def restore(self, abstract_state: Any, step: Step = "latest") -> tuple[Any, int]:
        """The state and its step, in the structure and shardings of `abstract_state` (arrays or ShapeDtypeStructs).

        Leaves without a sharding go to the first device. CheckpointError if nothing can be read; or it lists each leaf
        that is missing, unexpected, or of another shape or dtype.
        """
        self.wait()
        processes.check_same("list of checkpoints", "\n".join(map(str, _steps(self.directory))))
        manifest, broken = _find(self.directory, step, together=True)
        self._broken |= broken
        parts = _parts(abstract_state)
        _check_fits(self.directory / str(manifest.step), manifest.leaves, _leaves(parts))
        loaded = ocp.load_checkpointables(self.directory / str(manifest.step), _placed(parts))
        return dataclasses.replace(abstract_state, **loaded.pop("training"), **loaded), manifest.step

    def _commit(self, finish: Callable[[], Any], manifest: Manifest, name: str) -> None:
        """In the thread: Orbax's files, then the manifest, then the old ones go."""
        folder = self.directory / str(manifest.step)

        def part() -> dict[str, Any]:
            finish()
            return {name: _sums(path) for name, path in processes.share(_files(folder))}

        def whole(parts: list[dict[str, Any]]) -> None:
            done = {name: sums for part in parts for name, sums in part.items()}
            # On a network disk a process may have listed the folder without its latest files.
            files = {name: done.get(name) or _sums(path) for name, path in _files(folder)}
            _write_manifest(self.directory, dataclasses.replace(manifest, files=files))

        with self._explained(manifest.step):
            processes.meet(name, part, whole)
        if not processes.first():
            return
        manifests = self._manifests()
        kept = {m.step for m in manifests[-self.keep_latest :] + _ranked(manifests, self.monitor)[: self.keep_best]}
        for step in _steps(self.directory):
            if step not in kept | {manifest.step}:
                _delete(self.directory, step)

    def _manifests(self) -> list[Manifest]:
        manifests = []
        for step in _steps(self.directory):
            with contextlib.suppress(_BrokenError):
                manifests.append(_read_manifest(self.directory, step))
        return [manifest for manifest in manifests if manifest.step not in self._broken]

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Takes back what a failed save wrote, where the manifest would come from, and says what failed."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):  # of a store that is away; without a manifest the rest is debris
                if processes.first():
                    _delete(self.directory, step)
                    _delete_unfinished(self.directory)
            free = "" if is_remote(self.directory) else f", {shutil.disk_usage(self.directory).free:,} bytes free"
            message = (
                f"step {step} could not be saved ({self.directory}{free}); older checkpoints are unharmed: {error}"
            )
            raise CheckpointError(message) from error


def load_params(
    directory: epath.PathLike,
    step: Step = "latest",
    *,
    ema: bool = False,
    sharding: Sharding | Callable[[Any], Any] | None = None,
    dtype: Any = None,
) -> tuple[dict[str, Any], int]:
    """The parameters alone (or their moving average), from the shapes in the manifest, and their step.

    `sharding`: one for all, or a function from the tree of ShapeDtypeStructs to that of shardings; None: first device.
    `dtype`: of the floating ones; None: as saved.
    """
    directory = absolute(locate(directory))
    part = "ema" if ema else "params"
    manifest, _ = _find(directory, step, part)
    leaves = {
        path.removeprefix(f"{part}/"): jax.ShapeDtypeStruct(leaf["shape"], _cast(jnp.dtype(leaf["dtype"]), dtype))
        for path, leaf in manifest.leaves.items()
        if path.startswith(f"{part}/")
    }
    if not leaves:
        raise CheckpointError(
            f"{directory / str(manifest.step)} holds no {part}; a run has one only if it was asked for"
        )
    abstract = unflatten_dict(leaves, sep="/")
    shardings = sharding(abstract) if callable(sharding) else jax.tree.map(lambda _: sharding, abstract)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    return ocp.load_checkpointables(directory / str(manifest.step), {part: _placed(abstract)})[part], manifest.step


def load_average(directory: epath.PathLike, n: int, *, dtype: Any = None, **options: Any) -> tuple[dict[str, Any], int]:
    """The mean of the last n checkpoints' parameters (Vaswani et al., 2017, 6.1), and the last one's step.

    CheckpointError where there are fewer; `options` are those of `load_params`. Two are held at a time.
    """
    directory = absolute(locate(directory))
    steps = _steps(directory) if directory.exists() else []
    if not 1 <= n <= max(len(steps), 1):
        raise CheckpointError(f"average={n}: {directory} has the steps {steps}; allowed: 1 to {max(len(steps), 1)}")
    mean, last = load_params(directory, **options)
    for step in steps[-n:-1]:
        params, _ = load_params(directory, step, **options)
        mean = jax.tree.map(jnp.add, mean, params)
    return jax.tree.map(lambda x: (x / n).astype(_cast(x.dtype, dtype)), mean), last


def _orbax_context() -> ocp.Context:
    context = ocp.Context()
    # Made in the background, a folder that cannot be made leaves Orbax's threads waiting for it for minutes.
    context.asynchronous.create_directories_asynchronously = False
    # 72 M random float32 took 3.9 s and 254 MB compressed, 1.7 to 2.3 s and 275 MB as they are (two busy cores).
    context.array.saving.use_compression = False
    # Of what several devices hold alike, each writes a slice, and compiles it: too slow for what is small.
    context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
    return context


class _BrokenError(Exception):
    """Says which file of a step is wrong, and how."""


def _find(directory: epath.Path, step: Step, part: str = "", *, together: bool = False) -> tuple[Manifest, set[int]]:
    """The manifest of the step that is meant, its files (of one part) checked, and the steps that were passed over.

    `together`: all processes ask, and each reads a share of the files.
    """
    if not directory.exists():
        raise CheckpointError(f"{directory}: no such folder")
    broken: dict[int, str] = {}
    manifests = []
    for candidate in reversed(_steps(directory)):
        try:
            manifests.append(_read_manifest(directory, candidate))
        except _BrokenError as error:
            broken[candidate] = str(error)
    if step == "best":
        manifests = _ranked(manifests, manifests[0].monitor) if manifests else []
    elif step != "latest":
        found = ", ".join(str(manifest.step) for manifest in reversed(manifests)) or "none"
        if step in broken:
            raise CheckpointError(f"{directory}, step {step}: {broken[step]}; readable: {found}")
        manifests = [manifest for manifest in manifests if manifest.step == step]
        if not manifests:
            raise CheckpointError(f"{directory} has no step {step}; found: {found}")
    for manifest in manifests:
        try:
            _check_files(directory, manifest, part, together)
        except _BrokenError as error:
            broken[manifest.step] = str(error)
            continue
        for bad, why in broken.items():
            if step == "best" or bad > manifest.step:
                message = f"{directory}: step {bad} is passed over for step {manifest.step}: {why}"
                warnings.warn(message, stacklevel=3)
        return manifest, set(broken)
    wrong = "".join(f"\n  step {bad}: {why}" for bad, why in sorted(broken.items()))
    raise CheckpointError(f"{directory} has no checkpoint that can be read ({step}){':' if wrong else ''}{wrong}")


def _ranked(manifests: list[Manifest], monitor: str) -> list[Manifest]:
    """The measured ones, best first; of equals the later."""
    measured = [manifest for manifest in manifests if math.isfinite(manifest.metrics.get(monitor, math.nan))]
    sign = 1 if LOWER_IS_BETTER[monitor] else -1
    return sorted(measured, key=lambda manifest: (sign * manifest.metrics[monitor], -manifest.step))


def _write_manifest(directory: epath.Path, manifest: Manifest) -> None:
    body = dataclasses.asdict(manifest)
    write_atomically(directory / f"{manifest.step}.json", json.dumps({"sha256": _digest(body), "manifest": body}))


def _read_manifest(directory: epath.Path, step: int) -> Manifest:
    path = directory / f"{step}.json"
    if not path.exists():
        raise _BrokenError(f"{path.name} is missing: its save was cut off")
    try:
        text = path.read_bytes()
    except OSError as error:
        if is_remote(path):
            raise  # the store is away: that says nothing about the step
        raise _BrokenError(f"{path.name} is damaged: {error}") from error
    try:
        content = json.loads(text)
        body = content["manifest"]
        if content["sha256"] != _digest(body) or body["step"] != step:
            raise ValueError("its checksum does not match")
        return Manifest(**body)
    except (ValueError, TypeError, KeyError) as error:
        raise _BrokenError(f"{path.name} is damaged: {error}") from error


def _check_files(directory: epath.Path, manifest: Manifest, part: str, together: bool) -> None:
    names = [name for name in manifest.files if "/" not in name or name.startswith(part)]
    mine = processes.share(names) if together else names
    harms = (_harm(directory / str(manifest.step) / name, manifest.files[name]) for name in mine)
    found = next((f"{manifest.step}/{name} {harm}" for name, harm in zip(mine, harms) if harm), "")
    if found := processes.first_word(found) if together else found:
        raise _BrokenError(found)


def _harm(path: epath.Path, expected: Mapping[str, Any]) -> str:
    if not path.exists():
        return "is missing"
    if (size := path.stat().length) != expected["bytes"]:
        return f"has {size:,} bytes; expected {expected['bytes']:,}"
    return "" if _sha256(path) == expected["sha256"] else "is damaged: its checksum does not match"


def _check_fits(folder: epath.Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    text = lambda leaf: f"{leaf['dtype']}{list(leaf['shape'])}"  # noqa: E731
    problems = [f"{path}: missing (expected {text(expected[path])})" for path in expected if path not in found]
    problems += [f"{path}: unexpected (found {text(found[path])})" for path in found if path not in expected]
    problems += [
        f"{path}: found {text(found[path])}, expected {text(expected[path])}"
        for path in expected
        if path in found and text(found[path]) != text(expected[path])
    ]
    if problems:
        raise CheckpointError(f"{folder} does not fit what is restored into:\n  " + "\n  ".join(problems))


def _parts(state: Any) -> dict[str, Any]:
    """What is saved apart, so that parameters load without the optimizer."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    apart = {name: fields.pop(name) for name in ("params", "ema") if name in fields}
    return {name: part for name, part in apart.items() if part is not None} | {"training": fields}


def _leaves(tree: Any) -> dict[str, dict[str, Any]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        for path, leaf in leaves
    }


def _placed(tree: Any) -> Any:
    """Abstract leaves with a sharding each, without which Orbax would ask for the topology that saved them."""
    first = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first), tree
    )


def _cast(found: Any, wanted: Any) -> Any:
    return wanted if wanted is not None and jnp.issubdtype(found, jnp.floating) else found


def _steps(directory: epath.Path) -> list[int]:
    """Every step of which there is something, in order."""
    names = {path.name.removesuffix(".json") for path in entries(directory)}
    return sorted(int(name) for name in names if name.isdecimal())


def _delete(directory: epath.Path, step: int) -> None:
    _remove(directory / f"{step}.json")  # first, so that half a step never passes for a whole one
    _remove(directory / str(step))


def _delete_unfinished(directory: epath.Path) -> None:
    """Folders that Orbax had not renamed yet, and manifests that `write_atomically` had not."""
    for path in entries(directory):
        if re.fullmatch(r"\d+\.(orbax-checkpoint-tmp.*|json\.tmp)", path.name):
            _remove(path)


def _remove(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink(missing_ok=True)


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}", path


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sums(path: epath.Path) -> dict[str, Any]:
    return {"bytes": path.stat().length, "sha256": _sha256(path)}


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
