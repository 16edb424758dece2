"""A small GPT-1 (Radford et al., 2018) on Python's own documentation, and a text set of TFDS beside it.

    jaxnlp train gpt1_pretrain
    jaxnlp train gpt1_pretrain --dataset NAME [--split SPLIT] --data-dir DIR

Model: the paper's, which norms after each sublayer, at 4 layers of 128, with 2,048 tokens and without dropout.
`python_docs` is made from the Python that runs it; no download. Of the other set the feature `text` is read. Evaluated
on unseen modules of `python_docs` alone. `gpt1_finetune` goes on from here; the paper's size is `gpt1_books`.
"""

import dataclasses

from jaxnlp.data.sources import TFDS, Joined
from jaxnlp.data.tokenizers import ByteBPE
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim

SIZES = {"vocab_size": 2048, "n_positions": 128, "n_layers": 4, "d_model": 128, "n_heads": 4}


def experiment(dataset: str | None = None, split: str = "train") -> Experiment:
    docs = TFDS("python_docs")
    return Experiment(
        model=dataclasses.replace(gpt.VARIANTS["gpt1"], **SIZES, dropout=0.0, attention_dropout=0.0),
        task=LanguageModeling(length=128),
        data=Data(
            train=docs if dataset is None else Joined((docs, TFDS(dataset, split))),
            validation=TFDS("python_docs", "validation"),
        ),
        tokenizer=ByteBPE(2048),
        optim=Optim(name="muon", lr=1e-2, warmup=0.05),
        steps=1300,
        batch_size=16,
    )
