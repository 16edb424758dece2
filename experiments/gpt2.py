"""GPT-2 pretrained from scratch (Radford et al., 2019) on any text set of TFDS, at any of its four sizes.

    jaxnlp train gpt2 --dataset NAME --vocabulary DIR --data-dir DIR [--size gpt2-medium]

Batch, length and vocabulary are the paper's: 512 rows of 1,024 tokens of its byte-level BPE. The paper names neither
schedule nor steps; these are GPT-3's for 125M (Brown et al., 2020, table 2.1 and appendix B) over 300 billion tokens
of half a million each; the larger sizes take the rates of the GPT-3 of about their size. No dropout, as flash attention
takes none; bfloat16 products, layers scanned and recomputed: for accelerators.
"""

import dataclasses
from typing import Literal

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import ByteBPE, TokenizerFile
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim

RATES = {"gpt2": 6e-4, "gpt2-medium": 3e-4, "gpt2-large": 2.5e-4, "gpt2-xl": 2e-4}


def experiment(
    dataset: str = "wikipedia/20230601.en",
    text: str = "text",
    train_split: str = "train[1%:]",
    validation_split: str = "train[:1%]",
    vocabulary: str | None = None,
    size: Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "gpt2",
) -> Experiment:
    """`vocabulary`: a tokenizer.json, or a folder with GPT-2's two files; None trains a new one on the data."""
    config = dataclasses.replace(gpt.VARIANTS[size], dropout=0.0, attention_dropout=0.0)
    return Experiment(
        model=dataclasses.replace(config, dtype="bfloat16", scan=True, remat="dots"),
        task=LanguageModeling(text=text, length=1024),
        data=Data(train=TFDS(dataset, train_split), validation=TFDS(dataset, validation_split)),
        tokenizer=ByteBPE(50257) if vocabulary is None else TokenizerFile(vocabulary),
        optim=Optim(lr=RATES[size], warmup=0.00125),
        steps=572_000,
        batch_size=512,
        accumulate=4,
        log_every=0.0001,
        evaluate_every=0.005,
        save_every=0.005,
    )
