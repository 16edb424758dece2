"""Docstrings of Python in one line: a small GPT that reads the rest of a docstring and writes its first line.

    jaxnlp train summarize_docs --pretrained runs/quickstart_pretrain
    jaxnlp train summarize_docs --pretrained runs/quickstart_pretrain --scratch --workdir runs/scratch

`python_summaries`, made from the Python that runs it; no download. The form is GPT-2's, with "TL;DR:" between the two
(Radford et al., 2019, 3.6), and the text is seen both ways (`--task.form causal`: one). `--scratch` keeps the
checkpoint's tokenizer and sizes and nothing of what it learned.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.summarization import Summarization
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim


def experiment(pretrained: str = "runs/quickstart_pretrain", scratch: bool = False) -> Experiment:
    return Experiment(
        task=Summarization(form="prefix", separator="\nTL;DR:", length=192, buckets=(48, 64, 96, 128, 192), n_beams=4),
        data=Data(train=TFDS("python_summaries", "train"), validation=TFDS("python_summaries", "validation")),
        init=Pretrained(pretrained, fresh=".*" if scratch else None),
        optim=Optim(lr=1e-3, warmup=0.1),
        steps=400,
        batch_size=8,
    )
