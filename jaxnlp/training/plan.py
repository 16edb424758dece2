"""Will it fit, and how fast, before a pod is rented: the very step that `train` runs, compiled ahead of time.

    plan(experiment, "v5p:8x8x8", "fsdp=64,tensor=8")    libtpu compiles for the pod on this machine, without one
    search(experiment, "v5p:8x8x8", seconds=600)         the best meshes and remat policies found in that time

A step's time is estimated twice, and MFU = model FLOPs / (time * peak rate) with it:

    xla       cycles of XLA's cost model, each loop as often as it runs, / clock
              + FLOPs of the attention kernels, which XLA does not know, as often as they run, / peak rate
              + the exchanges that nothing hides, one after another, at the rate of the links
    roofline  the largest of FLOPs / peak rate and exchanges / links: everything overlaps and runs at its best

Model FLOPs are the model's own formula (`flops` of its config), with what is recomputed left out, as MFU has it
(Chowdhery et al., 2022, appendix B). An exchange of n devices moves (n - 1) / n of the array over both directions of
each axis of the torus that n devices need, twice for an all-reduce. For GPUs and CPUs, and without libtpu, only what
the shapes tell is given: parameters, optimizer, FLOPs at the peak rate. What does not fit has no times.
"""

import dataclasses
import functools
import itertools
import math
import operator
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jaxnlp.tasks.task import asked
from jaxnlp.training import hlo, parallel
from jaxnlp.training.chips import CHIPS, Chip, GiB
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.loop import trained_whole, trainer_for

# Products of queries and keys' size in each of JAX's attention kernels for TPUs: the model's formula has 6 of them, but
# either kernel of the backward pass makes the weights and their gradient anew, and remat runs the first one again.
KERNELS = {"fwd": 2, "dq": 3, "dkv": 4}


@dataclasses.dataclass(frozen=True)
class Topology:
    """ "v5p:8x8x8": 512 chips in a torus; "h100:8" and "cpu:8": so many devices."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def tpu(self) -> bool:
        return self.chip.link > 0

    def rate(self, group: int) -> float:
        """Bytes/s at which each chip of a group exchanges: both directions of as many axes as the group needs."""
        reached = itertools.accumulate(sorted(self.shape, reverse=True), operator.mul)
        return 2 * self.chip.link * next(axes for axes, chips in enumerate(reached, 1) if chips >= group)


def topology(name: str) -> Topology:
    """ValueError for a name that is none; lists them."""
    kind, _, shape = name.partition(":")
    sizes = tuple(int(n) for n in shape.split("x") if n.isdecimal())
    good = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) and kind in CHIPS and len(sizes) == CHIPS[kind].axes
    if not good:
        raise ValueError(
            f"topology={name!r}; allowed: v4:XxYxZ and v5p:XxYxZ such as v5p:8x8x8 (512 chips), v5e:XxY and v6e:XxY "
            "such as v5e:4x4 (16 chips), a100:N, h100:N, h200:N, cpu:N"
        )
    return Topology(name, kind, sizes)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a step on that topology; bytes are a chip's. What nothing tells is None, or not in a mapping."""

    topology: str
    mesh: str
    remat: str
    parameters: int
    memory_bytes: Mapping[str, float]  # by kind; "peak", "chip", and of it "usable" where the compiler said so
    fits: bool | None  # None: not compiled, and parameters and optimizer alone would fit
    flops: float  # of the model, a step
    step_seconds: Mapping[str, float]  # by estimate; nothing of a plan that does not fit, as all that follows from it
    mfu: Mapping[str, float]
    tokens_per_second: Mapping[str, float]
    days: Mapping[str, float]  # of the experiment's steps
    chip_hours: Mapping[str, float]
    collectives: Mapping[str, Mapping[str, float]]  # by kind: times, bytes, seconds, and those of them that are hidden
    compile_seconds: float | None
    notes: tuple[str, ...]


def plan(experiment: Experiment, topology_name: str, mesh: str | None = None) -> Plan:
    """Compiles the experiment's step for the topology.

    Args:
        mesh: in place of the experiment's `parallel`; "auto" is fsdp over all chips.

    Raises:
        ValueError: an unknown topology, or a mesh that does not fit the chips, the model or the batch.
    """
    where, notes = _asked(experiment, topology_name), []
    sizes = _sizes(mesh or experiment.parallel, where, notes)
    trainer = trainer_for(experiment)
    rows, length = experiment.batch_size, experiment.task.length
    batch = experiment.task.shapes(rows)

    state = jax.eval_shape(functools.partial(trainer.begin, batch=batch), jax.random.key(0))
    full = {axis: sizes.get(axis, 1) for axis in parallel.AXES}
    model = state.params, state.base
    parallel.check(full, model, batch=experiment.sizes, accumulate=experiment.accumulate, lengths=[length])
    notes += _uncut(state, full)
    cut = parallel.OverMesh(AbstractMesh(tuple(full.values()), parallel.AXES)).abstract(state)
    own = lambda tree: sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    memory = {"parameters": own((cut.params, cut.base)), "optimizer": own(cut.opt_state), "average": own(cut.ema)}
    held, chip = sum(memory.values()), where.chip.memory
    flops = experiment.model.flops(length, vocabulary=asked(experiment.task)) * rows * length / where.size
    if not trained_whole(experiment):
        notes.append(
            "FLOPs and MFU are of a model that is trained whole: what optim.freeze or lora saves is not in the formula"
        )
    program, peak, usable, seconds = None, None, None, None
    if not where.tpu:
        notes.append(f"{where.kind}: not compiled, no estimate of activations, temporaries and exchanges")
    elif held > chip:
        notes.append("parameters and optimizer alone do not fit, so nothing was compiled")
    elif devices := _devices(where, notes):
        layout = parallel.OverMesh(parallel.make_mesh(sizes, devices))
        program, peak, usable, seconds = _compile(layout, trainer, state, batch, notes)
    total = held if peak is None else peak
    if peak is not None:
        memory["activations and temporaries"] = peak - held
    memory |= (
        {"peak": total} | ({} if chip is None else {"chip": chip}) | ({} if usable is None else {"usable": usable})
    )
    if program is not None:
        fits = total <= chip
    else:
        fits = False if peak is not None or (chip is not None and held > chip) else None
    exchanges, hidden, shown = (0.0, 0.0, {}) if program is None else _exchanges(program, where)
    times, least = {}, None if where.chip.peak is None else flops / where.chip.peak
    if least is not None and not (program is None and fits is False):
        times["roofline"] = max(least, exchanges)
    if program is not None:
        notes += [f"loop {name} counts once: its condition is not understood" for name in program.unknown_loops]
        kernels = _attention(program, experiment, notes) * rows * length / where.size / where.chip.peak
        times["xla"] = program.cycles / where.chip.clock + kernels + exchanges - hidden
    tokens = rows * length
    grown = sum(map(experiment.rows_at, range(experiment.ramp_steps))) / rows  # whole batches that a ramp is worth
    steps = experiment.steps - experiment.ramp_steps + grown
    days = {name: t * steps / 86400 for name, t in times.items()}
    return Plan(
        topology=topology_name,
        mesh=",".join(f"{axis}={n}" for axis, n in sizes.items()),
        remat=getattr(experiment.model, "remat", "none"),
        parameters=sum(x.size for x in jax.tree.leaves((state.params, state.base))),
        memory_bytes=memory,
        fits=fits,
        flops=flops * where.size,
        step_seconds=times,
        mfu={name: least / t for name, t in times.items()},
        tokens_per_second={name: tokens / t for name, t in times.items()},
        days=days,
        chip_hours={name: d * 24 * where.size for name, d in days.items()},
        collectives=shown,
        compile_seconds=seconds,
        notes=tuple(notes),
    )


def _asked(experiment: Experiment, topology_name: str) -> Topology:
    """The topology; ValueError for an unknown one, or an experiment that cannot be planned."""
    if experiment.model is None:
        raise ValueError("the experiment takes its model from a checkpoint; allowed: one with sizes of its own")
    return topology(topology_name)


def _sizes(mesh: str, where: Topology, notes: list[str]) -> dict[str, int]:
    """The mesh's axes, which multiply to the chips."""
    if mesh == "jit" and where.size > 1:
        raise ValueError(
            f"parallel='jit' is for 1 chip, and {where.name} has {where.size}; allowed: pmap, auto, a mesh"
        )
    if mesh == "pmap":
        notes.append(f"pmap: planned as data={where.size} over a mesh, which holds and exchanges the same")
        return {"data": where.size}
    sizes = parallel.parse(mesh) or {"fsdp": where.size}
    if math.prod(sizes.values()) != where.size:
        parallel.make_mesh(sizes, [None] * where.size)  # says what would do
    return sizes


def _uncut(state: Any, sizes: Mapping[str, int]) -> list[str]:
    """What a width costs that the mesh does not divide."""
    costs = parallel.uncut(state, sizes)
    if not costs:
        return []
    widths, parts = set(), math.prod(sizes[axis] for axis in parallel.CUTS["width"])
    for path, x in jax.tree_util.tree_leaves_with_path(state.params):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        widths |= {n for name, n in zip(parallel.axes(path, x.ndim), x.shape) if name == "width" and n % parts}
    asked = " * ".join(f"{axis}={sizes[axis]}" for axis in parallel.CUTS["width"] if sizes[axis] > 1)
    best = math.gcd(parts, *widths)
    names = sorted({path.partition("params/")[2] for path in costs if path.startswith("params/")})
    of = ", ".join(map(str, sorted(widths)))
    return [
        f"{asked} does not divide the width {of}: {', '.join(names)} lie whole along it, "
        f"{sum(costs.values()) / GiB:.2f} GiB a chip more than their parts; fsdp={best} and data for the rest cuts all"
    ]


def _devices(where: Topology, notes: list[str]) -> Sequence[Any] | None:
    """The topology's devices; None, and a note, where libtpu is missing."""
    with hlo.without_tpu():
        try:
            import libtpu  # noqa: F401
            from jax.experimental import topologies
        except ImportError:
            notes.append("libtpu is not installed, so nothing was compiled: pip install 'jaxnlp[tpu]'")
            return None
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=where.name).devices
        except Exception as error:  # libtpu's own, of no class that tells
            raise ValueError(f"topology={where.name!r}: libtpu does not know it: {error}") from error


def _compile(
    layout: parallel.OverMesh, trainer: Any, state: Any, batch: Any, notes: list[str]
) -> tuple[hlo.Program | None, float, float | None, float]:
    """(what the program does, bytes at its peak, bytes that it may use where it may not have them, seconds)."""
    stacked = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype, sharding=layout.batches) for name, x in batch.items()}
    began = time.perf_counter()
    lowered = layout.within(lambda *a: layout.compiled(trainer.train_steps).lower(*a))(layout.abstract(state), stacked)
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := out_of_memory(str(error))) is None:
            raise
        notes.append("the compiler ran out of the chip's memory, so there is no estimate of time")
        return None, *found, time.perf_counter() - began
    peak = program.memory_analysis().peak_memory_in_bytes
    return hlo.read(program.as_text()), float(peak), None, time.perf_counter() - began


def out_of_memory(message: str) -> tuple[float, float] | None:
    """Bytes that a program needs and bytes that there are, from the compiler's refusal; None for another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    sizes = re.findall(r"\b([\d.]+)([KMGT])\b", message)
    if len(sizes) < 2:
        return None
    needed, available = (float(size) * 2 ** (10 * ("KMGT".index(unit) + 1)) for size, unit in sizes[:2])
    return needed, available


def _attention(program: hlo.Program, experiment: Experiment, notes: list[str]) -> float:
    """FLOPs a token of the attention kernels, by how often each runs."""
    runs = 0.0  # of products of the formula
    for name, times in program.kernels:
        kind = re.search(rf"_({'|'.join(KERNELS)})_", name)
        runs += KERNELS[kind[1]] * times if kind else 0
        notes += [] if kind else [f"the kernel {name} is not known, and its time not in the estimate"]
    if not runs:
        return 0.0
    product = experiment.model.attention_flops(experiment.task.length) / 6 / experiment.model.n_attentions
    return product * runs / experiment.accumulate


def _exchanges(program: hlo.Program, where: Topology) -> tuple[float, float, dict[str, dict[str, float]]]:
    """Seconds of all exchanges, of the hidden ones, and a table by kind."""
    columns = ("times", "bytes", "seconds", "hidden_seconds")
    table: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(columns, 0.0))
    for x in program.collectives:
        if x.kind == "collective-permute":
            seconds = x.size * x.times / where.chip.link
        else:
            part = (x.group - 1) / x.group * {"all-reduce": 2.0, "all-to-all": 0.25}.get(x.kind, 1.0)
            seconds = part * x.size * x.times / where.rate(x.group)
        row = table[x.kind]
        row["times"] += x.times
        row["bytes"] += x.size * x.times
        row["seconds"] += seconds
        row["hidden_seconds"] += seconds if x.hidden else 0.0
    total, hidden = (sum(row[name] for row in table.values()) for name in ("seconds", "hidden_seconds"))
    return total, hidden, dict(table)


def search(
    experiment: Experiment, topology_name: str, seconds: float, say: Callable[[Plan], None] = lambda plan: None
) -> list[Plan]:
    """Plans of other meshes and remat policies, the fastest that fit first; the likeliest are compiled first.

    ValueError where not one can be made, with the reasons.
    """
    where = _asked(experiment, topology_name)
    if where.tpu:
        _devices(where, [])  # what libtpu does not know fails here
    began, plans, refused = time.perf_counter(), [], []

    def attempt(mesh: str, remat: str | None) -> Plan | None:
        if time.perf_counter() - began > seconds:
            return None
        model = experiment.model if remat is None else dataclasses.replace(experiment.model, remat=remat)
        try:
            plans.append(plan(dataclasses.replace(experiment, model=model), topology_name, mesh))
        except ValueError as error:  # cannot be cut so
            refused.append(f"{mesh}: {error}")
            return None
        say(plans[-1])
        return plans[-1]

    for mesh in meshes(experiment, where):
        if not hasattr(experiment.model, "remat"):
            attempt(mesh, None)
            continue
        found = attempt(mesh, "dots")
        attempt(mesh, "full")  # may be faster too: it moves less
        if found and found.fits and found.memory_bytes["peak"] < found.memory_bytes["chip"] / 2:
            attempt(mesh, "none")
    if not plans:
        reasons = "; ".join(dict.fromkeys(refused)) or "no mesh cuts " + ", ".join(
            f"{name}={rows}" for name, rows in experiment.sizes.items()
        )
        raise ValueError(f"--search on {topology_name} found no mesh in {seconds:.0f} s: {reasons}")
    return sorted(plans, key=lambda p: (not p.fits, max(p.step_seconds.values(), default=math.inf)))


def meshes(experiment: Experiment, where: Topology) -> Iterator[str]:
    """Meshes that cut the batch evenly, the likeliest first.

    Few parts of a layer keep products large, and few chips to gather parameters over keep exchanges short: on many
    chips, meshes go by how far they are from both; on few, by the parts of a layer. `data` keeps whole copies, and
    `sequence` gathers keys and values: few of both are first.
    """
    powers = [2**i for i in range(where.size.bit_length())]
    found = itertools.product(powers, powers[:4], powers[:5])
    best = 4 if where.size > 64 else 1
    for data, sequence, tensor in sorted(found, key=lambda m: (m[0] * m[1], m[1], abs(math.log2(m[2] / best)))):
        fsdp, rest = divmod(where.size, data * sequence * tensor)
        mesh = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
        if rest or fsdp == 0 or experiment.task.length % sequence:
            continue
        if experiment.rows_at(0) % (data * fsdp * experiment.accumulate) == 0:
            yield ",".join(f"{axis}={n}" for axis, n in mesh.items() if n > 1) or "fsdp=1"


def text(plan: Plan) -> str:
    """The plan as a person reads it."""
    memory = dict(plan.memory_bytes)
    peak, chip, usable = memory.pop("peak"), memory.pop("chip", None), memory.pop("usable", None)
    lines = [f"{plan.topology}   {plan.mesh}   remat {plan.remat}   {plan.parameters / 1e6:,.1f} million parameters"]
    if plan.compile_seconds is not None:
        lines.append(f"compiled in {plan.compile_seconds:.0f} s")
    lines += ["", "memory of a chip, GiB"]
    lines += [f"  {kind:28}{size / GiB:9.2f}" for kind, size in memory.items() if size]
    of = "" if chip is None else f" of {chip / GiB:.0f}"
    of += "" if usable is None else f", {usable / GiB:.2f} of them usable"
    lines.append(f"  {'peak':28}{peak / GiB:9.2f}{of}")
    if plan.fits is False:
        least = "at least " if plan.compile_seconds is None else ""
        lines.append(f"  does not fit, by {least}{(peak - (usable or chip)) / GiB:.2f} GiB: {advice(plan)}")
    if plan.collectives:
        lines += ["", f"{'exchanges of a chip in a step':30}{'times':>8}{'GiB':>9}{'seconds':>9}{'hidden':>9}"]
        for kind, row in plan.collectives.items():
            gib, seconds, hidden = row["bytes"] / GiB, row["seconds"], row["hidden_seconds"]
            lines.append(f"  {kind:28}{row['times']:8,.0f}{gib:9.2f}{seconds:9.3f}{hidden:9.3f}")
    if plan.step_seconds:
        lines += ["", f"{'by estimate':30}" + "".join(f"{name:>12}" for name in plan.step_seconds)]
        rows = {
            "seconds a step": (plan.step_seconds, "12,.3f"),
            "MFU": (plan.mfu, "12.1%"),
            "tokens/s": (plan.tokens_per_second, "12,.0f"),
            "days": (plan.days, "12,.2f"),
            "chip-hours": (plan.chip_hours, "12,.0f"),
        }
        lines += [f"  {name:28}" + "".join(f"{x:{form}}" for x in row.values()) for name, (row, form) in rows.items()]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def line(plan: Plan) -> str:
    """The plan in one line, of a search."""
    fits = {True: "fits", False: "does not fit", None: "not compiled"}[plan.fits]
    memory = " of ".join(
        f"{plan.memory_bytes[name] / GiB:.1f}" for name in ("peak", "chip") if name in plan.memory_bytes
    )
    mfu = ", ".join(f"{name} {value:.1%}" for name, value in plan.mfu.items())
    return f"{plan.mesh:28} remat {plan.remat:5} {fits}: {memory} GiB{', MFU ' * bool(mfu)}{mfu}"


def advice(plan: Plan) -> str:
    """What to change in a plan that does not fit."""
    state = sum(plan.memory_bytes.get(kind, 0) for kind in ("parameters", "optimizer", "average"))
    if state > plan.memory_bytes["chip"] / 2:
        return "parameters and optimizer take most: more fsdp and less data, or more chips"
    if plan.remat != "full":
        return "activations take most: model.remat=full, or accumulate"
    return "activations take most: accumulate, more tensor or sequence, or more chips"
