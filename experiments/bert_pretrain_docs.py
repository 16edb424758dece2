"""A small BERT on Python's own documentation: masked words and the next sentence, in minutes on two cores.

    jaxnlp train bert_pretrain_docs
    jaxnlp predict runs/bert_pretrain_docs                 # then type: Return the [MASK] of the list.

Model: Devlin et al., 2019, at 4 layers of 128, with 4,096 WordPieces and without dropout. Data: `python_docs`, made
from the Python that runs it; no download. A module's docstrings, in their order, are one document. Whole words are
hidden; `--no-next-sentence` learns these alone, from full rows (Liu et al., 2019, section 4.2).
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import WordPiece
from jaxnlp.models import bert
from jaxnlp.tasks.masked_lm import MaskedLM
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim


def experiment(next_sentence: bool = True) -> Experiment:
    return Experiment(
        model=bert.Config(
            vocab_size=4096,
            n_positions=128,
            n_layers=4,
            d_model=128,
            n_heads=4,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        task=MaskedLM(document="module", length=128, next_sentence=next_sentence, whole_words=True),
        data=Data(train=TFDS("python_docs", "train"), validation=TFDS("python_docs", "validation")),
        tokenizer=WordPiece(4096),
        optim=Optim(name="muon", lr=3e-3, warmup=0.05, end=0.0),
        steps=2400,
        batch_size=16,
    )
