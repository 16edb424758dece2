"""A small BERT on Python's own documentation: masked words and next sentences.

    jaxnlp train bert_pretrain_docs

Model: Devlin et al., 2019, at 4 layers of 128. Data: `python_docs`, made from the Python that runs it; no download.
Muon, as it learns from fewer steps than AdamW.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import WordPiece
from jaxnlp.models import bert
from jaxnlp.tasks.masked_lm import MaskedLM
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.optim import Optim


def experiment() -> Experiment:
    return Experiment(
        model=bert.Config(
            vocab_size=4096, n_positions=128, n_layers=4, d_model=128, n_heads=4, dropout=0.0, attention_dropout=0.0
        ),
        task=MaskedLM(length=64),
        data=Data(train=TFDS("python_docs", "train"), validation=TFDS("python_docs", "validation")),
        tokenizer=WordPiece(vocab_size=4096, lowercase=False),
        optim=Optim(name="muon", lr=1e-2, warmup=0.05),
        steps=2000,
        batch_size=32,
    )
