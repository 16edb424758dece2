"""BERT-base and BERT-large pretrained from scratch (Devlin et al., 2019) on any text set of TFDS.

    jaxnlp train bert_pretrain --dataset NAME --vocabulary DIR --data-dir DIR [--size large] [--batch lamb]
    jaxnlp train bert_pretrain --length 512 --pretrained runs/bert_pretrain …       the last tenth of the steps
    jaxnlp plan bert_pretrain --topology v5e:4x4 [--mesh data=16]

The paper's 1,000,000 steps of 256 rows: nine tenths of them of 128 tokens, the rest of 512 (its appendix A.2), Adam at
1e-4, 10,000 steps of warm-up, linear decay. `--batch lamb` is You et al., 2020, section 4.1: 65,536 rows of 128 tokens
for 7,038 steps, then 32,768 of 512 for 1,563. bfloat16 products, layers scanned: for accelerators. Not run here.
"""

import dataclasses
from typing import Literal

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import TokenizerFile, WordPiece
from jaxnlp.models import bert
from jaxnlp.tasks.masked_lm import MaskedLM
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim

PAPER = Optim(lr=1e-4, b2=0.999, epsilon=1e-6, weight_decay=0.01, decay="linear", end=0.0)
RECIPES = {  # by batch and length: rows, steps, optimizer
    ("paper", 128): (256, 900_000, dataclasses.replace(PAPER, warmup=0.011, end=0.1)),
    ("paper", 512): (256, 100_000, dataclasses.replace(PAPER, lr=1e-5, warmup=0.0)),
    ("lamb", 128): (65_536, 7_038, dataclasses.replace(PAPER, name="lamb", lr=6e-3, warmup=0.2843)),
    ("lamb", 512): (32_768, 1_563, dataclasses.replace(PAPER, name="lamb", lr=4e-3, warmup=0.128)),
}


def experiment(
    dataset: str = "wikipedia/20230601.en",
    text: str = "text",
    train_split: str = "train[1%:]",
    validation_split: str = "train[:1%]",
    vocabulary: str | None = None,
    size: Literal["base", "large"] = "base",
    length: Literal[128, 512] = 128,
    batch: Literal["paper", "lamb"] = "paper",
    pretrained: str | None = None,
) -> Experiment:
    """`vocabulary`: a tokenizer.json, or a folder with BERT's vocab.txt; None trains a new one on the data."""
    rows, steps, optim = RECIPES[batch, length]
    tokenizer = WordPiece() if vocabulary is None else TokenizerFile(vocabulary)
    return Experiment(
        model=dataclasses.replace(bert.VARIANTS[size], dtype="bfloat16", scan=True, remat="dots"),
        task=MaskedLM(text=text, length=length),
        data=Data(train=TFDS(dataset, train_split), validation=TFDS(dataset, validation_split)),
        tokenizer=tokenizer if pretrained is None else None,
        init=None if pretrained is None else Pretrained(pretrained),
        optim=optim,
        steps=steps,
        batch_size=rows,
        accumulate=16 if batch == "lamb" else 1,
        log_every=0.0001,
        evaluate_every=0.005,
        save_every=0.005,
    )
