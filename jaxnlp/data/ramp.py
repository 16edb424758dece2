"""A batch that grows with the steps, as a pure function of the step, like the batches that it is made of.

>>> ramped = Ramped(windows(cache, length=2048, batch_size=16, seed=0), counts=(1, 1, 2, 2, 3))
>>> ramped(0)["input_ids"].shape, ramped(3)["input_ids"].shape, ramped(9)["input_ids"].shape
((16, 2048), (32, 2048), (48, 2048))
"""

import dataclasses
import functools
import itertools

import numpy as np

from jaxnlp.data.batches import Batch, Batches, Rows


@dataclasses.dataclass(frozen=True)
class Ramped:
    """Batches that grow: step t is the next `counts[t]` of `batches`, joined, and later ones as the last of `counts`.

    ValueError for batches of several lengths, which cannot be joined.
    """

    batches: Batches
    counts: tuple[int, ...]

    def __post_init__(self):
        if len(self.batches.shapes) > 1:
            lengths = ", ".join(str(length) for _, length in self.batches.shapes)
            raise ValueError(f"ramp: found rows of {len(self.batches.shapes)} lengths, {lengths}; allowed: one length")

    def __call__(self, step: int, rows: Rows = slice(None)) -> Batch:
        whole = len(self.counts) - 1
        count = self.counts[min(step, whole)]
        first = self._starts[min(step, whole)] + max(step - whole, 0) * count
        numbers = np.arange(count * self.batches.batch_size)[rows]
        parts = np.split(numbers, np.searchsorted(numbers, np.arange(1, count) * self.batches.batch_size))
        made = [self.batches(first + i, part % self.batches.batch_size) for i, part in enumerate(parts) if len(part)]
        return {name: np.concatenate([batch[name] for batch in made]) for name in made[0]}

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(self.counts)]

    @property
    def batch_size(self) -> int:
        """Of the largest step."""
        return self.counts[-1] * self.batches.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Of the largest size."""
        return -(-self.batches.steps_per_epoch // self.counts[-1])

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        ((rows, length),) = self.batches.shapes
        return tuple((count * rows, length) for count in sorted(set(self.counts)))
