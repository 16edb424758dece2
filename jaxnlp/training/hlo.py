"""What a compiled program for TPUs does, read from its text: collectives, cycles and loops.

XLA's own cost analysis counts the body of a loop once; here every computation counts as often as it runs. A loop runs
as often as the constant that its condition compares with; one with another condition counts once, and is named. Of a
conditional, the branch with the most cycles counts. ValueError for an array or a group that is not understood.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Under these libtpu compiles, and looks for no TPU; set before JAX is imported, they also keep it from warning.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NUMBER = re.compile(r"(?:bf|[sufc])(\d+)(?:e\w+)?")  # a dtype and its bits: s4, bf16, f8e4m3fn, c64


@contextlib.contextmanager
def without_tpu() -> Iterator[None]:
    """The environment with NO_TPU, where it says nothing else; as it was, afterwards."""
    missing = NO_TPU.keys() - os.environ.keys()
    os.environ.update({name: NO_TPU[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange, as often as it runs."""

    kind: str
    group: int  # devices that exchange
    size: float  # bytes of the whole array: what a gather ends with, what a reduction begins with
    times: int = 1
    hidden: bool = False  # started early and awaited later, so that computing goes on meanwhile


@dataclasses.dataclass(frozen=True)
class Program:
    cycles: float = 0.0  # XLA's estimate for everything but collectives and kernels
    collectives: tuple[Collective, ...] = ()
    kernels: tuple[tuple[str, int], ...] = ()  # Pallas kernels by name, and how often each runs
    unknown_loops: tuple[str, ...] = ()

    @property
    def weight(self) -> tuple[float, float]:
        """By which the branches of a conditional are compared."""
        return self.cycles, sum(x.size * x.times for x in self.collectives)

    def repeated(self, times: int) -> "Program":
        return Program(
            times * self.cycles,
            tuple(dataclasses.replace(x, times=times * x.times) for x in self.collectives),
            tuple((name, times * n) for name, n in self.kernels),
            self.unknown_loops,
        )


def read(text: str) -> Program:
    computations, entry = _computations(text)
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
    devices = math.prod(map(int, counts))

    @functools.cache
    def once(name: str) -> Program:
        return _together(map(instruction, computations[name]))

    def instruction(line: str) -> Program:
        match = _INSTRUCTION.match(line)
        if match is None:
            return Program()
        own, result, opcode = match.groups()
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        cycles = Program(cycles=float(estimate[1]) if estimate else 0.0)
        called = dict(re.findall(r"(body|condition|to_apply|calls)=%?([\w.\-]+)", line))
        inside = computations.get(called.get("calls", ""), ())
        collective = re.fullmatch(rf"({'|'.join(COLLECTIVES)})(-start)?", opcode)
        if opcode == "while":
            trips = _trips(computations[called["condition"]], computations[called["body"]])
            body = once(called["body"]).repeated(trips or 1)
            return _together([cycles, body, Program(unknown_loops=() if trips else (own,))])
        if opcode == "conditional":
            return _together([cycles, max(map(once, _branches(line)), key=lambda branch: branch.weight)])
        if opcode in ("call", "async-start"):
            return _together([cycles, once(called.get("calls") or called["to_apply"])])
        if opcode == "fusion" and "all-reduce-scatter" in called["calls"]:
            found = [("reduce-scatter", x, False) for x in inside if " all-reduce(" in x]
        elif opcode == "fusion":
            kinds = [(re.search(rf" ({'|'.join(COLLECTIVES)})(-start)?\(", x), x) for x in inside]
            found = [(kind[1], x, True) for kind, x in kinds if kind]
        elif collective:
            group = _group(line, devices)
            exchange = Collective(collective[1], group, _whole(opcode, result, group), hidden=bool(collective[2]))
            return _together([cycles, Program(collectives=(exchange,))])
        else:
            is_kernel = opcode == "custom-call" and '"tpu_custom_call"' in line
            return dataclasses.replace(cycles, kernels=((own, 1),) if is_kernel else ())
        exchanges = tuple(
            Collective(kind, _group(x, devices), _size(_INSTRUCTION.match(x)[2]), hidden=hidden)
            for kind, x, hidden in found
        )
        return dataclasses.replace(cycles, collectives=exchanges)

    return once(entry)


def _together(programs: Iterable[Program]) -> Program:
    """One after another."""
    cycles, *others = zip(*((p.cycles, p.collectives, p.kernels, p.unknown_loops) for p in (Program(), *programs)))
    return Program(sum(cycles), *(sum(parts, ()) for parts in others))


def _branches(line: str) -> list[str]:
    """Computations of a conditional, whose predicate is a number or a truth value."""
    listed = re.search(r"branch_computations=\{(.*?)\}", line)
    return (
        re.findall(r"%([\w.\-]+)", listed[1]) if listed else re.findall(r"(?:true|false)_computation=%([\w.\-]+)", line)
    )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
        elif line.startswith(" ") and computations:
            lines.append(line)
    return computations, entry


def _trips(condition: Sequence[str], body: Sequence[str]) -> int | None:
    """How often a loop runs whose condition compares a counter with a constant, and whose body adds one to it."""
    condition, body = "\n".join(condition), "\n".join(body)
    stop = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", condition)
    counter = re.findall(r"[su]32\[\]\S* get-tuple-element\(.*?\), index=(\d+)", condition)
    if len(stop) != 1 or len(counter) != 1:
        return None
    new = re.search(r"ROOT .*? tuple\((.*?)\)", body)[1].split(", ")[int(counter[0])].rpartition("%")[2]
    step = re.search(rf"%{re.escape(new)} = [su]32\[\]\S* add\(.*?%([\w.\-]+)\)", body)
    size = step and re.search(rf"%{re.escape(step[1])} = [su]32\[\]\S* constant\((\d+)\)", body)
    return -(-int(stop[0]) // (int(size[1]) if size else 1))


def _whole(opcode: str, result: str, group: int) -> float:
    """Bytes of the whole array of an exchange. What starts one early gives its operands beside its results."""
    size = _size(result)
    match opcode:
        case "reduce-scatter":
            return size * group
        case "all-gather-start":
            return size * group / (group + 1)
        case "collective-permute-start":
            return (size - 8) / 2  # and two numbers
    return size


def _size(result: str) -> float:
    return sum(
        _bits(kind) / 8 * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in _ARRAY.findall(result)
    )


def _bits(kind: str) -> int:
    number = _NUMBER.fullmatch(kind)
    if number is None and kind not in ("pred", "token"):
        raise ValueError(f"an exchange of arrays of {kind}; allowed: pred, token, s4, u8, bf16, f8e4m3fn, f32, …")
    return int(number[1]) if number else {"pred": 8, "token": 0}[kind]


def _group(line: str, devices: int) -> int:
    """Devices of one group, from any of the ways in which XLA writes them; {} are all."""
    if match := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[2])
        return math.prod(int(part) if part else sizes[name] for name, _, part in parts)
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if "replica_groups={}" in line:
        return devices
    if "source_target_pairs=" in line:
        return 2
    raise ValueError(f"an exchange between devices that are not understood: {line.strip()[:200]}")
