"""Does a docstring's body belong to its first line? The next sentence as a task of its own, from the small BERT.

    jaxnlp train bert_docs_nsp --pretrained runs/bert_pretrain_docs
    jaxnlp train bert_docs_nsp --pretrained runs/bert_pretrain_docs --scratch --workdir runs/scratch

`python_pairs`, made from the Python that runs it: half of the bodies are another docstring's (Devlin et
al., 2019, 3.1). `--scratch` keeps the checkpoint's tokenizer and sizes and nothing of what it
learned. A guess is right once in two.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.classification import NextSentence
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim


def experiment(pretrained: str = "runs/bert_pretrain_docs", scratch: bool = False) -> Experiment:
    return Experiment(
        task=NextSentence(length=128),
        data=Data(train=TFDS("python_pairs", "train"), validation=TFDS("python_pairs", "validation")),
        init=Pretrained(pretrained, fresh=".*" if scratch else "heads/.*"),
        optim=Optim(lr=5e-4, warmup=0.1, end=0.0),
        steps=300,
        batch_size=32,
        monitor="accuracy",
    )
