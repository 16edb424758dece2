"""What accelerators can do, by the names of their kinds: from Google Cloud's and NVIDIA's public pages, dense rates."""

import dataclasses
from typing import Any

GB, GiB = 1e9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    peak: float | None  # FLOP/s of bfloat16 products; None, as below, where it is not known
    memory: float | None  # bytes
    link: float = 0.0  # bytes/s of one link of a TPU to a neighbour, one way
    clock: float = 0.0  # Hz of a TPU: the peak rate / FLOPs of its matrix units in a cycle
    axes: int = 1  # of the torus
    device: str = ""  # how JAX's name of the device begins


CHIPS = {
    "v4": Chip(275e12, 32 * GiB, 50 * GB, 1.05e9, 3, "TPU v4"),
    "v5e": Chip(197e12, 16 * GiB, 50 * GB, 1.5e9, 2, "TPU v5 lite"),
    "v5p": Chip(459e12, 95 * GiB, 100 * GB, 1.75e9, 3, "TPU v5"),
    "v6e": Chip(918e12, 32 * GiB, 112 * GB, 1.75e9, 2, "TPU v6 lite"),
    "a100": Chip(312e12, 80 * GB, device="NVIDIA A100"),
    "h100": Chip(989e12, 80 * GB, device="NVIDIA H100"),
    "h200": Chip(989e12, 141 * GB, device="NVIDIA H200"),
    "cpu": Chip(None, None, device="cpu"),
}


def chip_of(device: Any) -> Chip | None:
    """The chip of one of JAX's devices; None for one that is not known here."""
    known = (chip for chip in CHIPS.values() if device.device_kind.startswith(chip.device))
    return next(known, None) if device.platform != "cpu" else None
