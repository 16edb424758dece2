"""English to French on WMT14 with the RNNsearch-50 of Bahdanau et al., 2015: a GRU of 1,000 with additive attention.

    jaxnlp train rnnsearch_wmt14 --data-dir DIR
    jaxnlp plan rnnsearch_wmt14 --topology v5e:2x2

The paper: 30,000 words a language, texts of up to 50, 80 rows, Adadelta, five days on a GPU (its section 4); BLEU
26.75, 28.45 trained longer. Here the vocabulary is byte-level BPE, and the optimizer AdamW. Not run here.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import ByteBPE, Pair
from jaxnlp.models import seq2seq
from jaxnlp.tasks.translation import Translation
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim


def experiment() -> Experiment:
    return Experiment(
        model=seq2seq.VARIANTS["rnnsearch"],
        task=Translation(source="en", target="fr", length=64, buckets=(16, 24, 32, 48, 64), n_beams=12),
        data=Data(train=TFDS("wmt14_translate/fr-en", "train"), validation=TFDS("wmt14_translate/fr-en", "validation")),
        tokenizer=Pair(source=ByteBPE(vocab_size=30000), target=ByteBPE(vocab_size=30000)),
        optim=Optim(lr=5e-4, warmup=0.02, b2=0.98, weight_decay=0.0),
        steps=300_000,
        batch_size=80,
    )
