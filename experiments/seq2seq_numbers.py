"""Numbers written out, from Korean to English, by a sequence-to-sequence model with or without attention.

    jaxnlp train seq2seq_numbers                                          # GRU, additive attention
    jaxnlp train seq2seq_numbers --cell lstm --attention none             # the last state is all the decoder sees

The set is made here, from no download; the numbers of the test part are in no other. `experiments/studies/numbers.py`
compares the forms by the length of the number.
"""

from typing import Literal

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import Characters
from jaxnlp.models import seq2seq
from jaxnlp.tasks.translation import Translation
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim


def experiment(
    cell: Literal["rnn", "lstm", "gru"] = "gru", attention: Literal["none", "additive", "dot", "general"] = "additive"
) -> Experiment:
    return Experiment(
        model=seq2seq.Config(
            vocab_size=128,
            cell=cell,
            attention=attention,
            bidirectional=attention != "dot",
            d_embed=64,
            d_model=128,
            share_embeddings=True,
        ),
        task=Translation(source="ko", target="en", length=96, buckets=(32, 48, 64, 80, 96), n_beams=1),
        data=Data(train=TFDS("number_words", "train"), validation=TFDS("number_words", "validation")),
        tokenizer=Characters(),
        optim=Optim(lr=3e-3, warmup=0.05),
        steps=2000,
        batch_size=32,
        evaluate_every=0.125,
        save_every=0.25,
    )
