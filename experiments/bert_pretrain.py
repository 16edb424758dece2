"""BERT pretrained from scratch (Devlin et al., 2019) on any text set of TFDS, base or large: short rows first.

    jaxnlp train bert_pretrain --dataset NAME --data-dir gs://DIR --workdir gs://DIR/short --parallel fsdp=16
    jaxnlp train bert_pretrain --dataset NAME --data-dir gs://DIR --length 512 --pretrained gs://DIR/short …
    jaxnlp plan bert_pretrain --topology v5e:4x4

The paper (its appendix A.2): 256 rows; 900,000 steps of 128 tokens, then 100,000 of 512; the rate rises to 1e-4 over
10,000 steps and falls to zero over the million, which the second run goes on with from 1e-5; decay 0.01, dropout 0.1.
With `--optimizer lamb` rows, rate, warmup and steps are the untuned ones of You et al., 2020, for batches of 32,768:
15,625 steps, 5e-3 after a fifth of them. Products are in bfloat16, layers scanned and recomputed. Not run here.

`--no-next-sentence` is RoBERTa's way (Liu et al., 2019, section 4.2), `--whole-words` google-research/bert's since.
"""

import dataclasses
from typing import Literal

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import TokenizerFile, WordPiece
from jaxnlp.models import bert
from jaxnlp.tasks.masked_lm import MaskedLM
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim

SETTINGS = {  # rows, steps of both runs, warmup, rate
    "adamw": (256, 1_000_000, 10_000, 1e-4),
    "lamb": (32_768, 15_625, 3_125, 5e-3),
}


def experiment(
    dataset: str = "wikipedia/20230601.en",
    text: str = "text",
    train_split: str = "train[1%:]",
    validation_split: str = "train[:1%]",
    vocabulary: str | None = None,
    size: Literal["base", "large"] = "base",
    length: Literal[128, 512] = 128,
    pretrained: str | None = None,
    optimizer: Literal["adamw", "lamb"] = "adamw",
    next_sentence: bool = True,
    whole_words: bool = False,
) -> Experiment:
    """`vocabulary`: a tokenizer.json, or a folder with BERT's vocab.txt; None trains a new one on the data.

    `pretrained`: the run of short rows, from which the one of `length` 512 goes on; its vocabulary stays.
    """
    rows, steps, warmup, rate = SETTINGS[optimizer]
    steps = round(steps * (0.9 if length == 128 else 0.1))
    schedule = {"lr": rate, "warmup": warmup / steps, "end": 0.1}
    if length == 512:
        schedule = {"lr": rate / 10, "warmup": 0.0, "end": 0.0}
    tokenizer = WordPiece(30522) if vocabulary is None else TokenizerFile(vocabulary)
    return Experiment(
        model=dataclasses.replace(bert.VARIANTS[size], dtype="bfloat16", scan=True, remat="dots"),
        task=MaskedLM(text=text, length=length, next_sentence=next_sentence, whole_words=whole_words),
        data=Data(train=TFDS(dataset, train_split), validation=TFDS(dataset, validation_split)),
        tokenizer=tokenizer if pretrained is None else None,
        init=None if pretrained is None else Pretrained(pretrained),
        optim=Optim(name=optimizer, decay="linear", b2=0.999, epsilon=1e-6, weight_decay=0.01, **schedule),
        steps=steps,
        batch_size=rows,
        log_every=0.001,
        evaluate_every=0.02,
        save_every=0.01,
    )
