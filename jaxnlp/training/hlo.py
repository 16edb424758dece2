"""What a compiled program for TPUs does, read from its text: collectives, cycles and loops.

XLA's own cost analysis counts the body of a loop once; here every computation counts as often as it runs. A loop runs
as often as the constant that its condition compares with; one with another condition counts once, and is named.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
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
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange, as often as it runs."""

    kind: str
    group: int  # devices that exchange
    size: int  # bytes of the whole array: what a gather ends with, what a reduction begins with
    times: int
    hidden: bool  # started early and awaited later, so that computing goes on meanwhile


@dataclasses.dataclass(frozen=True)
class Program:
    cycles: float  # XLA's estimate for everything but collectives and kernels
    collectives: tuple[Collective, ...]
    kernels: tuple[tuple[str, int], ...]  # Pallas kernels by name, and how often each runs
    unknown_loops: tuple[str, ...]


def read(text: str) -> Program:
    computations, entry = _computations(text)
    cycles, found, kernels, unknown = 0.0, [], [], []

    def visit(name: str, times: int) -> None:
        nonlocal cycles
        for line in computations.get(name, ()):
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            own, result, opcode = match.groups()
            if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += times * int(estimate[1])
            called = dict(re.findall(r"(body|condition|to_apply|calls)=%?([\w.\-]+)", line))
            if opcode == "while":
                trips = _trips(computations[called["condition"]], computations[called["body"]])
                if trips is None:
                    unknown.append(own)
                visit(called["body"], times * (trips or 1))
            elif opcode == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", line.partition("branch_computations={")[2].partition("}")[0]):
                    visit(branch, times)
            elif opcode in ("call", "async-start"):
                visit(called.get("calls") or called["to_apply"], times)
            elif opcode == "fusion" and "all-reduce-scatter" in called["calls"]:
                inner = "\n".join(computations[called["calls"]])
                array = re.search(r"= (.*?) all-reduce\(", inner)
                found.append(Collective("reduce-scatter", _group(inner), _size(array[1]), times, hidden=False))
            elif opcode == "fusion":
                for inner in computations.get(called["calls"], ()):
                    if kind := re.search(rf" ({'|'.join(COLLECTIVES)})(-start)?\(", inner):
                        array = _INSTRUCTION.match(inner)[2]
                        found.append(Collective(kind[1], _group(inner), _size(array), times, hidden=True))
            elif kind := re.fullmatch(rf"({'|'.join(COLLECTIVES)})(-start)?", opcode):
                found.append(Collective(kind[1], _group(line), _whole(opcode, result, line), times, bool(kind[2])))
            elif opcode == "custom-call" and '"tpu_custom_call"' in line:
                kernels.append((own, times))

    visit(entry, 1)
    return Program(cycles, tuple(found), tuple(kernels), tuple(unknown))


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


def _whole(opcode: str, result: str, line: str) -> int:
    """Bytes of the whole array of an exchange. What starts one early gives its operands beside its results."""
    size, group = _size(result), _group(line)
    match opcode:
        case "reduce-scatter":
            return size * group
        case "all-gather-start":
            return size * group // (group + 1)
        case "collective-permute-start":
            return (size - 8) // 2  # and two numbers
    return size


def _size(result: str) -> int:
    arrays = [(BYTES.get(kind), dims) for kind, dims in _ARRAY.findall(result)]
    return sum(size * math.prod(int(n) for n in dims.split(",") if n) for size, dims in arrays if size)


def _group(line: str) -> int:
    """Devices of one group, from any of the three ways in which XLA writes them."""
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[2])
        return math.prod(int(part) if part else sizes[name] for name, _, part in parts)
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"source_target_pairs=", line):
        return 2
    return 1
