"""GPT-1 pretrained from scratch at the paper's size (Radford et al., 2018) on any set of long texts in TFDS.

    jaxnlp train gpt1_books --dataset NAME --text FEATURE --tokens N --data-dir gs://DIR --parallel fsdp=8
    jaxnlp plan gpt1_books --topology v5e:2x4

Section 4.1: 12 layers of 768, 64 rows of 512 tokens, 100 epochs, Adam with decay 0.01 on all but biases and norms, a
rate that rises to 2.5e-4 over 2,000 steps and falls to zero by a cosine, dropout 0.1 on embeddings, sublayers and
attention. N tokens to an epoch say how many steps that is; the default are the 800 million words of the paper's
BooksCorpus (Devlin et al., 2019, section 3.1). Not the paper's: byte-level BPE, where it has one of tidied characters;
Adam's own 0.999 and clipping at 1, of which it does not speak; bfloat16 products, layers scanned and recomputed, for
accelerators. All that is not said here is gpt2.py's. Not run here.
"""

import dataclasses
import pathlib
import runpy

from jaxnlp.models import gpt
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.optim import Optim

GPT2 = runpy.run_path(str(pathlib.Path(__file__).with_name("gpt2.py")))
EPOCHS, ROWS, LENGTH = 100, 64, 512


def experiment(
    dataset: str = "wikipedia/20230601.en",
    text: str = "text",
    train_split: str = "train[1%:]",
    validation_split: str = "train[:1%]",
    vocabulary: str | None = None,
    tokens: int = 800_000_000,
) -> Experiment:
    """`vocabulary`: a tokenizer.json; None trains a new one on the data. `tokens`: of the train part."""
    base = GPT2["experiment"](dataset, text, train_split, validation_split, vocabulary)
    config = dataclasses.replace(gpt.VARIANTS["gpt1"], vocab_size=base.model.vocab_size)
    steps = EPOCHS * tokens // (ROWS * LENGTH)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(config, dtype="bfloat16", scan=True, remat="dots"),
        task=dataclasses.replace(base.task, length=LENGTH),
        optim=Optim(lr=2.5e-4, warmup=2000 / steps, end=0.0, b2=0.999, weight_decay=0.01),
        steps=steps,
        batch_size=ROWS,
        accumulate=1,
    )
