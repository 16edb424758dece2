"""English to French on WMT14 with the LSTM of Sutskever et al., 2014: four layers of 1,000, the source reversed.

    jaxnlp train sutskever_wmt14 --data-dir DIR
    jaxnlp plan sutskever_wmt14 --topology v5e:4x4

The paper: 160,000 and 80,000 words, 128 rows, plain SGD at 0.7 halved every half epoch from the fifth on, 7.5 epochs
in ten days on eight GPUs (its section 3.4 and 3.5); BLEU 30.59 for one model, beam 12. Here the vocabularies are
byte-level BPE of those sizes, and the optimizer AdamW. Not run here.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import ByteBPE, Pair
from jaxnlp.models import seq2seq
from jaxnlp.tasks.translation import Translation
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim


def experiment() -> Experiment:
    return Experiment(
        model=seq2seq.VARIANTS["sutskever"],
        task=Translation(source="en", target="fr", length=64, buckets=(16, 24, 32, 48, 64), n_beams=12),
        data=Data(train=TFDS("wmt14_translate/fr-en", "train"), validation=TFDS("wmt14_translate/fr-en", "validation")),
        tokenizer=Pair(source=ByteBPE(vocab_size=160_000), target=ByteBPE(vocab_size=80_000)),
        optim=Optim(lr=5e-4, warmup=0.02, b2=0.98, weight_decay=0.0),
        steps=700_000,
        batch_size=128,
    )
