"""From recurrent networks to a decoder alone: Multi30k from English to German by five models on the same tokens.

    jaxnlp train translation_story --architecture transformer --data-dir DIR     # lstm, lstm-attention, causal, prefix
    jaxnlp evaluate runs/translation_story --split test_2016 --data-dir DIR

29,000 pairs, one byte-level vocabulary of 4,000 words, 4,000 steps of up to 512 source and 512 target tokens. Decoders
alone take 3,640 steps of up to 1,024 tokens, which pairs fill better: all five learn from 1.60 million target tokens,
3.1 epochs. Beam 5, label smoothing 0.1, between 1.6 and 2.1 million parameters. The Transformer is the tiny one of Wu
et al., 2021, who gave it 8,000 steps of 8,192 tokens, post-norm; here its blocks norm first, as those of the decoders
alone do, of which each has its eight layers. Dropout is 0.1, of the LSTMs 0.3. All five in one table:
`experiments/studies/translation_story.py`.
"""

import dataclasses
from typing import Literal

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import ByteBPE
from jaxnlp.models import gpt, seq2seq, transformer
from jaxnlp.tasks.translation import Translation
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim

WORDS = 4000
LSTM = seq2seq.Config(
    vocab_size=WORDS,
    cell="lstm",
    d_embed=176,
    d_model=176,
    share_embeddings=True,
    tied=True,
    forget_bias=1.0,
    dropout=0.3,
)
DECODER = gpt.Config(vocab_size=WORDS, n_positions=128, n_layers=8, d_model=128, n_heads=4, d_ff=256, dropout=0.1)
TRANSFORMER = dataclasses.replace(transformer.VARIANTS["tiny"], vocab_size=WORDS, dropout=0.1, norm_first=True)
MODELS = {  # the model, the form of the task
    "lstm": (dataclasses.replace(LSTM, attention="none"), "encoder-decoder"),
    "lstm-attention": (LSTM, "encoder-decoder"),
    "transformer": (TRANSFORMER, "encoder-decoder"),
    "causal": (DECODER, "causal"),
    "prefix": (DECODER, "prefix"),
}


def experiment(
    architecture: Literal["lstm", "lstm-attention", "transformer", "causal", "prefix"] = "transformer",
) -> Experiment:
    config, form = MODELS[architecture]
    whole = form == "encoder-decoder"
    return Experiment(
        model=config,
        task=Translation(
            source="en",
            target="de",
            form=form,
            length=64 if whole else 128,
            buckets=(12, 16, 20, 24, 32, 64) if whole else (24, 32, 40, 48, 64, 128),
            label_smoothing=0.1,
            n_beams=5,
        ),
        data=Data(train=TFDS("multi30k", "train"), validation=TFDS("multi30k", "validation")),
        tokenizer=ByteBPE(vocab_size=WORDS),
        optim=Optim(lr=2e-3, warmup=0.05, end=0.0, b2=0.98, weight_decay=0.01),
        steps=4000 if whole else 3640,  # as many target tokens
        batch_size=8,
        evaluate_every=0.05,
        save_every=0.05,
    )
