"""English to French on WMT14 with the LSTM of Sutskever et al., 2014: four layers of 1,000, the source reversed.

    jaxnlp train sutskever_wmt14 --data-dir DIR
    jaxnlp plan sutskever_wmt14 --topology v5e:4x4

The paper: 160,000 and 80,000 words, 128 rows, plain SGD at 0.7 halved every half epoch from the fifth on, 7.5 epochs
in ten days on eight GPUs (its section 3.4 and 3.5); BLEU 30.59 for one model, beam 12. Here the vocabularies are
byte-level BPE of those sizes, and the optimizer AdamW. Not run here. All that is not said is rnnsearch_wmt14.py's.
"""

import dataclasses
import pathlib
import runpy

from jaxnlp.data.tokenizers import ByteBPE, Pair
from jaxnlp.models import seq2seq
from jaxnlp.training.experiment import Experiment

RNNSEARCH = runpy.run_path(str(pathlib.Path(__file__).with_name("rnnsearch_wmt14.py")))


def experiment() -> Experiment:
    return dataclasses.replace(
        RNNSEARCH["experiment"](),
        model=seq2seq.VARIANTS["sutskever"],
        tokenizer=Pair(source=ByteBPE(vocab_size=160_000), target=ByteBPE(vocab_size=80_000)),
        steps=700_000,
        batch_size=128,
    )
