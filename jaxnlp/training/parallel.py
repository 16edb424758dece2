"""Where arrays lie, and where the one step runs: on one device, under pmap, or under jit over a mesh.

    parallel      "jit"                  one device
                  "pmap"                 each device has its rows of the batch and all of everything else
                  "fsdp=64,tensor=8"     a mesh of these axes; an axis that is not named has size 1
                  "auto"                 fsdp over all accelerators of a slice; "jit" where there is one, and on CPUs

    axis          cuts                                                talks
    data          rows                                                the gradients' sum, once a step
    fsdp          rows; parameters and what follows them (ZeRO-3)     a layer's parameters, before each use
    sequence      positions; parameters, as fsdp does                 a layer's keys and values
    tensor        heads, feed-forward and vocabulary (Megatron-LM);   a layer's activations, before and after each
                  between sublayers, features                         sublayer

The axes stand in the order of the links, slowest first: where there are several slices of a pod, or several hosts with
GPUs, `data` runs along them (`fsdp`, where `data` cannot). A checkpoint of any form restores in any other.

Sources: Rajbhandari et al., 2020 (ZeRO-3); Shoeybi et al., 2019, section 3 (tensor); Dubey et al., 2024, section 3.3.2
(sequence: every device gathers all keys and values).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Int

AXES = ("data", "fsdp", "sequence", "tensor")
WORDS = ("jit", "pmap", "auto")

# The axes of arrays by name, and the mesh axes that cut them.
CUTS: Mapping[str, tuple[str, ...]] = {
    "width": ("fsdp", "sequence"),  # of parameters alone: no device needs them whole but while it uses them
    "heads": ("tensor",),
    "feed_forward": ("tensor",),
    "vocabulary": ("tensor",),
    "positions": (),  # this and the next: cut in place of a width that does not divide
    "head": (),
    "batch": ("data", "fsdp"),
    "features": ("tensor",),  # of activations between sublayers: what is kept for the backward pass
    "queries": ("sequence",),  # positions, but for keys and values
    "tokens": ("data", "fsdp", "sequence"),  # rows times positions
}

# The axes of the parameters whose path ends like this, and of the optimizer's arrays for them; None is never cut. A
# leading axis more is that of scanned layers.
RULES: Mapping[str, tuple[str | None, ...]] = {
    r"(embed|output|source|target)/tokens": ("vocabulary", "width"),
    r"output_bias": ("vocabulary",),
    r"embed/positions": ("positions", "width"),
    r"(attention/qkv|memory/keys_values)/kernel": ("heads", None, "head", "width"),
    r"(attention/qkv|memory/keys_values)/bias": ("heads", None, None),
    r"cross_attention/query/kernel": ("heads", "head", "width"),
    r"cross_attention/query/bias": ("heads", None),
    r"(cross_)?attention/out/kernel": ("width", "heads", "head"),
    r"mlp/in/kernel": ("feed_forward", "width"),
    r"mlp/in/bias": ("feed_forward",),
    r"mlp/out/kernel": ("width", "feed_forward"),
    # A recurrence is not cut: every step would wait for every device.
    r"(input|recurrent)/kernel": (None, None, "width"),
    r"(readout|project|attention/query|bridge_\d+_\d+)/kernel": (None, "width"),
    r"(heads/\w+(/transform)?|pooler)/kernel": ("width", None),
    r"(heads/\w+(/transform)?|pooler)/bias": (None,),
    r"embed/segments": (None, "width"),
    r"input/bias": (None, None),
    r"norm(_\w+)?/(scale|bias)|(out|recurrent|readout|project|bridge_\d+_\d+)/bias|attention/v": (None,),
}

WHOLE = PartitionSpec()


def parse(text: str) -> dict[str, int] | None:
    """ "fsdp=4,tensor=2" -> {"fsdp": 4, "tensor": 2}; None for one of WORDS; ValueError for anything else."""
    if text in WORDS:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"parallel={text!r}: found {part.strip()!r}; allowed: {', '.join(WORDS)}, or sizes of "
                f"{', '.join(AXES)}, each once, such as fsdp=4,tensor=2"
            )
        sizes[name] = int(size)
    return sizes


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of AXES over all the devices; of several slices, or hosts with GPUs, `data` runs along them, or `fsdp`.

    ValueError if the sizes do not multiply to the number of devices, or neither axis is a multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    given, found = f"parallel={','.join(f'{name}={n}' for name, n in sizes.items())}", math.prod(sizes.values())
    if found != len(devices):
        others = math.prod(n for name, n in sizes.items() if name != "fsdp")
        fsdp = f"fsdp={len(devices) // others} with the rest as it is"
        allowed = f"sizes that multiply to {len(devices)}" + (f", as {fsdp} does" if len(devices) % others == 0 else "")
        raise ValueError(f"{given} is for {found} devices, and there are {len(devices)}; allowed: {allowed}")
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    islands = _islands(devices)
    slow = next((axis for axis in (0, 1) if shape[axis] % len(islands) == 0), None)
    if slow is None:
        raise ValueError(
            f"{given}: the devices are in {len(islands)} slices or hosts with slow links between them; "
            f"allowed: data={len(islands)} or a multiple of it, else fsdp"
        )
    inner = tuple(n // len(islands) if axis == slow else n for axis, n in enumerate(shape))
    grids = [mesh_utils.create_device_mesh(inner, island, allow_split_physical_axes=True) for island in islands]
    return Mesh(np.concatenate(grids, slow), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _islands(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices by slice of a pod, or by host of GPUs, as JAX numbers both: fast links within, slow ones between."""
    islands: dict[int, list[Any]] = {}
    for device in devices:
        islands.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    return [islands[number] for number in sorted(islands)]


def whole_fsdp(devices: Sequence[Any]) -> dict[str, int]:
    """The sizes of "auto": fsdp within a slice, data along several."""
    n = len(_islands(devices))
    return {"data": n, "fsdp": len(devices) // n}


def axes(path: str, n_axes: int) -> tuple[str | None, ...]:
    """The names of an array's axes by RULES. What no rule knows, or has fewer axes than its rule, is whole."""
    for pattern, names in RULES.items():
        if re.search(f"(^|/)({pattern})$", path) and n_axes >= len(names):
            return (None,) * (n_axes - len(names)) + names
    return (None,) * n_axes


def spec(path: str, shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """How a mesh of these sizes cuts an array."""
    return PartitionSpec(*_cuts(path, shape, sizes))


def sharding(path: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Where a mesh has an array: cut as by those of AXES that it has, and along all its others whole."""
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    return NamedSharding(mesh, spec(path, shape, dict(mesh.shape)))


def _cuts(path: str, shape: Sequence[int], sizes: Mapping[str, int]) -> list[tuple[str, ...] | None]:
    """The mesh axes that cut each of an array's: those that CUTS says, where they divide it, as JAX cuts evenly alone.

    What would not divide an axis cuts the array's largest other one by RULES that it does divide; else it cuts none.
    """
    names = axes(path, len(shape))
    cuts: list[tuple[str, ...] | None] = [None if name is None else () for name in names]
    parts, left = list(shape), []

    def cut(axis: str, among: Iterable[int]) -> bool:
        at = next((i for i in among if parts[i] % sizes[axis] == 0), None)
        if at is not None:
            cuts[at] += (axis,)
            parts[at] //= sizes[axis]
        return at is not None

    for at, name in enumerate(names):
        left += [axis for axis in CUTS[name] if axis in sizes and not cut(axis, [at])] if name else []
    for axis in left:
        cut(axis, sorted((i for i, name in enumerate(names) if name), key=lambda i: -parts[i]))
    return cuts


def uncut(tree: Any, sizes: Mapping[str, int]) -> dict[str, float]:
    """Paths of the arrays that the mesh cuts less than CUTS asks, and the bytes of each that a device has for it."""
    costs: dict[str, float] = {}

    def note(path: str, x: Any) -> None:
        names = [name for name in axes(path, x.ndim) if name is not None]
        asked = math.prod(sizes[axis] for name in names for axis in CUTS[name])
        given = math.prod(sizes[axis] for cut in _cuts(path, x.shape, sizes) for axis in cut or ())
        if given < asked:
            costs[path] = x.size * x.dtype.itemsize * (1 / given - 1 / asked)

    by_path(note, tree)
    return costs


def constrain(tree: Any) -> Any:
    """What follows the parameters, such as their gradients, laid as they are; on a mesh only."""
    if not nn.get_logical_axis_rules():
        return tree
    sizes = jax.sharding.get_abstract_mesh().shape
    return by_path(lambda path, x: jax.lax.with_sharding_constraint(x, spec(path, x.shape, sizes)), tree)


def by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    name = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function(name(keys), leaf), tree)


# Three ways to run ----------------------------------------------------------------------------------------------------


class Jit:
    """One device: everything is where JAX puts it."""

    axis: str | None = None  # over which a function has to sum what it measures
    sizes: Mapping[str, int] = dict.fromkeys(AXES, 1)

    def __str__(self) -> str:
        return "jit on one device"

    @property
    def devices(self) -> list[Any]:
        return jax.devices()[:1]

    def rows(self, batch_size: int) -> Int[np.ndarray, " rows"]:
        """The rows of a batch that this process loads, in order."""
        return np.arange(batch_size)

    def place(self, batches: Mapping[str, np.ndarray], batch_size: int) -> Mapping[str, Any]:
        """This process's rows of stacked batches [calls, rows, …] as the compiled functions take them.

        A batch may have a multiple of `batch_size` rows: then each of `rows` stands for as many, one after another.
        """
        return batches

    def abstract(self, tree: Any) -> Any:
        """Shapes and dtypes, with the sharding that each array shall have."""
        return by_path(lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding(path, x)), tree)

    def _sharding(self, path: str, x: Any) -> Sharding:
        return SingleDeviceSharding(self.devices[0])

    def make(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), each array of the result in its place from the start."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract(jax.eval_shape(function, *arguments)))
        return jax.jit(function, out_shardings=shardings)(*arguments)

    def update(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """(state, batches) -> (state, sums), compiled; the state that is given is used up."""
        return jax.jit(function, donate_argnums=0)

    def measure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """(params, batches) -> sums, compiled."""
        return jax.jit(function)


class Pmap(Jit):
    """All devices, each with its rows and all of the rest; the function sums over `axis`."""

    axis = "data"

    def __init__(self):
        self.sizes = {**Jit.sizes, "data": jax.device_count()}
        self._whole = NamedSharding(Mesh(np.array(self.devices), ("data",)), WHOLE)

    def __str__(self) -> str:
        return f"pmap on {len(self.devices)} devices"

    @property
    def devices(self) -> list[Any]:
        return jax.devices()

    def rows(self, batch_size: int) -> Int[np.ndarray, " rows"]:
        return np.split(np.arange(batch_size), jax.process_count())[jax.process_index()]

    def place(self, batches: Mapping[str, np.ndarray], batch_size: int) -> Mapping[str, Any]:
        n = jax.local_device_count()
        return {name: x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:]) for name, x in batches.items()}

    def _sharding(self, path: str, x: Any) -> Sharding:
        return self._whole

    def update(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self._over_all(jax.pmap(function, self.axis, in_axes=(None, 1), out_axes=None, donate_argnums=0))

    def measure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self._over_all(jax.pmap(function, self.axis, in_axes=(None, 1), out_axes=None))

    def _over_all(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its results being known to lie on the devices of all processes, not on this one's alone."""
        if jax.process_count() == 1:
            return function

        def widen(x: jax.Array) -> jax.Array:
            parts = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, self._whole, parts)

        return lambda *arguments: jax.tree.map(widen, function(*arguments))


class OverMesh(Jit):
    """jit over a mesh: the compiler cuts the same function, and puts the communication in."""

    def __init__(self, mesh: Mesh | AbstractMesh):
        self.mesh = mesh
        self.sizes = dict(mesh.shape)

    def __str__(self) -> str:
        cut = ", ".join(f"{axis}={n}" for axis, n in self.sizes.items() if n > 1)
        return f"mesh of {self.mesh.size} devices: {cut or 'one'}"

    @property
    def devices(self) -> list[Any]:
        return list(self.mesh.devices.flat)

    def rows(self, batch_size: int) -> Int[np.ndarray, " rows"]:
        cuts = NamedSharding(self.mesh, PartitionSpec(CUTS["batch"])).addressable_devices_indices_map((batch_size,))
        return np.unique([np.arange(batch_size)[part] for (part,) in cuts.values()])

    def place(self, batches: Mapping[str, np.ndarray], batch_size: int) -> Mapping[str, Any]:
        rows = self.rows(batch_size)

        def place(x: np.ndarray) -> jax.Array:
            each = x.shape[1] // len(rows)

            def part(index: tuple[slice, ...]) -> np.ndarray:  # a device's rows are neighbours here too
                start, stop, _ = index[1].indices(batch_size * each)
                first = int(np.searchsorted(rows, start // each)) * each
                return x[:, first : first + stop - start]

            return jax.make_array_from_callback((len(x), batch_size * each, *x.shape[2:]), self.batches, part)

        return jax.tree.map(place, dict(batches))

    @property
    def batches(self) -> NamedSharding:
        """Of stacked batches [calls, rows, …]."""
        return NamedSharding(self.mesh, PartitionSpec(None, CUTS["batch"]))

    def _sharding(self, path: str, x: Any) -> Sharding:
        return NamedSharding(self.mesh, spec(path, x.shape, self.sizes))

    def update(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.within(self.compiled(function))

    def compiled(self, function: Callable[..., Any]) -> Any:
        return jax.jit(lambda state, batches: constrain(function(state, batches)), donate_argnums=0)

    def measure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.within(jax.jit(lambda params, batches: constrain(function(params, batches))))

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, called where layers find the mesh and the names of its axes."""

        def call(*arguments: Any) -> Any:
            with jax.set_mesh(self.mesh), nn.logical_axis_rules(tuple(CUTS.items())):
                return function(*arguments)

        return call


def layout(parallel: str) -> Jit:
    """What `parallel` asks for, on the devices of all processes; ValueError where they do not give it."""
    sizes, devices = parse(parallel), jax.devices()
    if parallel == "auto" and (len(devices) == 1 or (devices[0].platform == "cpu" and jax.process_count() == 1)):
        parallel = "jit"
    if parallel == "jit" and jax.process_count() > 1:
        raise ValueError(f"parallel='jit' in {jax.process_count()} processes; allowed: pmap, auto, or a mesh")
    if parallel == "jit":
        return Jit()
    return Pmap() if parallel == "pmap" else OverMesh(make_mesh(sizes or whole_fsdp(devices), devices))


def check(
    sizes: Mapping[str, int], params: Any, *, batch: Mapping[str, int], accumulate: int, lengths: Iterable[int]
) -> None:
    """ValueError for an axis of the model or of a batch that the mesh of these sizes cannot cut evenly.

    A width is refused only where its mesh axis would cut no parameter at all: see `spec`, and `uncut` for the cost.

    Args:
        params: arrays or their shapes.
        batch: rows, by the name of what sets them.
    """
    found: dict[str, set[int]] = {"queries": set(lengths)}
    used: set[str] = set()

    def note(path: str, x: Any) -> None:
        used.update(axis for cut in _cuts(path, x.shape, sizes) for axis in cut or ())
        for name, size in zip(axes(path, x.ndim), x.shape):
            if name is not None:
                found.setdefault(name, set()).add(size)

    by_path(note, params)
    found["features"] = found.get("width", set())
    if used.issuperset(CUTS["width"]):
        found.pop("width", None)
    for name, values in found.items():
        parts = math.prod(sizes[axis] for axis in CUTS[name])
        for value in sorted(values):
            if value % parts:
                allowed = ", ".join(str(n) for n in range(1, value + 1) if value % n == 0)
                cut = " * ".join(f"{axis}={sizes[axis]}" for axis in CUTS[name] if sizes[axis] > 1)
                raise ValueError(f"parallel: {name}={value} cannot be cut by {cut}; allowed: {allowed}")
    parts = math.prod(sizes[axis] for axis in CUTS["batch"]) * accumulate
    for name in (name for name, rows in batch.items() if rows % parts):
        cut = " * ".join(f"{axis}={sizes[axis]}" for axis in CUTS["batch"] if sizes[axis] > 1)
        cut += f"{' * ' * bool(cut)}accumulate={accumulate}" if accumulate > 1 else ""
        raise ValueError(f"{name}={batch[name]} cannot be cut by {cut}; allowed: {parts} or a multiple of it")
