"""Which words of Python's documentation are Python: keywords, builtins, exceptions, modules. From the small BERT.

    jaxnlp train bert_docs_tagging --pretrained runs/bert_pretrain_docs
    jaxnlp train bert_docs_tagging --pretrained runs/bert_pretrain_docs --scratch --workdir runs/scratch

`python_tags`, made from the Python that runs it: a fifth of its training part, as labels are what people have few of;
what of it `--train-split` says. `--scratch` keeps the checkpoint's tokenizer and sizes and nothing of what it learned:
what the pretraining is worth.
"""

from jaxnlp.data.corpora.python_tags import TAGS
from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.tagging import Tagging
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim


def experiment(
    pretrained: str = "runs/bert_pretrain_docs", train_split: str = "train[:20%]", scratch: bool = False
) -> Experiment:
    return Experiment(
        task=Tagging(labels=TAGS, length=64, overlap=16),
        data=Data(train=TFDS("python_tags", train_split), validation=TFDS("python_tags", "validation")),
        init=Pretrained(pretrained, fresh=".*" if scratch else "heads/.*"),
        optim=Optim(lr=1e-3, warmup=0.1, end=0.0),
        steps=300,
        batch_size=16,
    )
