"""English to German on WMT14 with the Transformer of Vaswani et al., 2017: their base or big model, from scratch.

    jaxnlp train transformer_wmt14 --data-dir gs://DIR --parallel fsdp=16                  # or --size big
    jaxnlp plan transformer_wmt14 --size base --topology v5e:4x4

The paper (its sections 5 and 6): a shared BPE of about 37,000 words, batches of about 25,000 source and 25,000 target
tokens, Adam (0.9, 0.98, 1e-9) with 4,000 steps of warmup and then the inverse square root, label smoothing 0.1; 100,000
steps for base and 300,000 for big, of which the last 5 and 20 checkpoints are averaged: `evaluate RUN --average 5`.
Beam 4, length penalty 0.6; BLEU 27.3 and 28.4. Here the BPE is byte-level, and products are in bfloat16. Not run here.
"""

import dataclasses
from typing import Literal

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import ByteBPE
from jaxnlp.models import transformer
from jaxnlp.tasks.translation import Translation
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim


def experiment(size: Literal["base", "big"] = "base") -> Experiment:
    config = transformer.VARIANTS[size]
    steps, warmup = {"base": 100_000, "big": 300_000}[size], 4000
    return Experiment(
        model=dataclasses.replace(config, dtype="bfloat16"),
        task=Translation(
            source="en",
            target="de",
            length=256,
            buckets=(16, 32, 48, 64, 96, 128, 256),
            label_smoothing=0.1,
            n_beams=4,
            length_penalty=0.6,
        ),
        data=Data(train=TFDS("wmt14_translate/de-en", "train"), validation=TFDS("wmt14_translate/de-en", "validation")),
        tokenizer=ByteBPE(vocab_size=37000),
        optim=Optim(
            lr=(config.d_model * warmup) ** -0.5,
            warmup=(warmup - 1) / steps,
            decay="rsqrt",
            b2=0.98,
            epsilon=1e-9,
            weight_decay=0.0,
            clip=None,
        ),
        steps=steps,
        batch_size=96,
        evaluate_every=0.01,
        save_every=0.01,
        keep_latest=20,
    )
