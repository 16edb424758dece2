"""Korean to English on `ko_en`, 3,720 pairs of news and dialogue: a GRU with Bahdanau's attention.

    jaxnlp train seq2seq_ko_en --data-dir DIR
    jaxnlp evaluate runs/seq2seq_ko_en --split test --data-dir DIR

Real, and far too small to learn a language from: BLEU 0.59, chrF 11.4 after 1,500 steps (`--ema`), perplexity 158;
"오늘 날씨가 좋다." becomes "It is a day.". What it writes is in the report as it is. The test part is the
validation part too, so its best checkpoint is chosen on it.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import ByteBPE, Pair
from jaxnlp.models import seq2seq
from jaxnlp.tasks.translation import Translation
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim


def experiment() -> Experiment:
    return Experiment(
        model=seq2seq.Config(vocab_size=4000, target_vocab_size=4000, d_embed=128, d_model=128, tied=True, dropout=0.3),
        task=Translation(
            source="ko", target="en", length=96, buckets=(16, 32, 48, 64, 96), label_smoothing=0.1, n_beams=5
        ),
        data=Data(train=TFDS("ko_en", "train"), validation=TFDS("ko_en", "test")),
        tokenizer=Pair(source=ByteBPE(vocab_size=4000), target=ByteBPE(vocab_size=4000)),
        optim=Optim(lr=2e-3, warmup=0.05, weight_decay=0.01, b2=0.98),
        steps=1500,
        batch_size=16,
        evaluate_every=0.1,
        save_every=0.1,
        ema=0.995,
    )
