"""GPT-3 pretrained from scratch (Brown et al., 2020) on any text set of TFDS, at any of its eight sizes.

    jaxnlp train gpt3 --size 175b --dataset NAME --vocabulary DIR --data-dir gs://DIR --parallel fsdp=128,tensor=4
    jaxnlp plan gpt3 --size 175b --topology v5p:8x8x8 --mesh fsdp=128,tensor=4

Sizes, batch and learning rate are those of table 2.1, the rest is appendix B's: 300 billion tokens, warmup over 375
million, cosine to a tenth at 260 billion, AdamW (0.9, 0.95, 1e-8), clipping at 1, decay 0.1. Rows are of 2,048 tokens,
and batches the nearest multiple of 256 rows, which pods can cut: 1,536 for the 3.2 million tokens of 175B. No dropout;
bfloat16 products, layers scanned and recomputed: for accelerators. Every second layer sees a band of 256 tokens, whose
width the paper leaves open (models/gpt.py). All that is not said here is gpt2.py's.

The paper's batch grows from 32,000 tokens, 16 rows, to its full size over the first 4 to 12 billion tokens, as the size
of the model wants: so it does here with `--first-rows 16`, evenly in steps, over 4 billion tokens where the batch is of
256 rows, 12 where it is of 1,536, in proportion between. A mesh cuts the first batch too, so on many chips it has as
many rows as there are parts, such as 128. Without the option all batches are whole. Each size is compiled by itself.
"""

import dataclasses
import pathlib
import runpy
from typing import Literal

import numpy as np

from jaxnlp.models import gpt
from jaxnlp.training.experiment import Experiment, Ramp

GPT2 = runpy.run_path(str(pathlib.Path(__file__).with_name("gpt2.py")))

LENGTH, TOKENS = 2048, 300e9

TABLE = {  # learning rate, rows of a batch
    "small": (6.0e-4, 256),
    "medium": (3.0e-4, 256),
    "large": (2.5e-4, 256),
    "xl": (2.0e-4, 512),
    "2.7b": (1.6e-4, 512),
    "6.7b": (1.2e-4, 1024),
    "13b": (1.0e-4, 1024),
    "175b": (0.6e-4, 1536),
}


def experiment(
    dataset: str = "wikipedia/20230601.en",
    text: str = "text",
    train_split: str = "train[1%:]",
    validation_split: str = "train[:1%]",
    vocabulary: str | None = None,
    size: Literal["small", "medium", "large", "xl", "2.7b", "6.7b", "13b", "175b"] = "small",
    first_rows: int | None = None,
) -> Experiment:
    """`vocabulary`: a tokenizer.json, or a folder with GPT-2's two files; None trains a new one on the data.

    `first_rows`: those of the first batch, and by how many the next ones grow.
    """
    base = GPT2["experiment"](dataset, text, train_split, validation_split, vocabulary)
    config = dataclasses.replace(gpt.VARIANTS[f"gpt3-{size}"], dropout=0.0, attention_dropout=0.0)
    lr, rows = TABLE[size]
    if first_rows is not None and not 1 <= first_rows < rows:
        raise ValueError(f"first_rows={first_rows}; allowed: 1 to {rows - 1}, as the whole batch is of {rows}")
    grown = 0.0 if first_rows is None else np.interp(rows, [256, 1536], [4e9, 12e9])  # tokens until the batch is whole
    whole = grown / (LENGTH * rows / 2)  # steps: till then a batch has half the rows, on average
    steps = whole + (TOKENS - grown) / (LENGTH * rows)
    made = dataclasses.replace(
        base,
        model=dataclasses.replace(config, dtype="bfloat16", scan=True, remat="full"),
        task=dataclasses.replace(base.task, length=LENGTH),
        steps=round(steps),
        batch_size=rows,
        ramp=None if first_rows is None else Ramp(first_rows, float(whole / steps)),
        accumulate=1,
    )
    made.validate()
    grows = [made.rows_at(step) for step in range(made.ramp_steps)]
    read = LENGTH * np.cumsum(grows + [rows] * (made.steps - made.ramp_steps))
    warmup, end_at = (np.searchsorted(read, [375e6, 260e9]) / made.steps).tolist()
    return dataclasses.replace(made, optim=dataclasses.replace(base.optim, lr=lr, warmup=warmup, end_at=end_at))
