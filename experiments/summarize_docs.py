"""Docstrings of Python in one line: a small GPT that reads the rest of a docstring and writes its first line.

    jaxnlp train summarize_docs --init.run runs/quickstart_pretrain         # from the quickstart's checkpoint
    jaxnlp train summarize_docs --from-scratch                              # without it

`python_summaries`, made from the Python that runs it; no download. The form is GPT-2's, with "TL;DR:" between the two
(Radford et al., 2019, 3.6), and the text is seen both ways (`--task.form prefix`, or causal).
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.data.tokenizers import ByteBPE
from jaxnlp.models import gpt
from jaxnlp.tasks.summarization import Summarization
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim


def experiment(from_scratch: bool = False) -> Experiment:
    return Experiment(
        model=gpt.VARIANTS["quickstart"],
        task=Summarization(form="prefix", separator="\nTL;DR:", length=192, buckets=(48, 64, 96, 128, 192), n_beams=4),
        data=Data(train=TFDS("python_summaries", "train"), validation=TFDS("python_summaries", "validation")),
        tokenizer=ByteBPE(2048) if from_scratch else None,
        init=None if from_scratch else Pretrained("runs/quickstart_pretrain"),
        optim=Optim(lr=1e-3, warmup=0.1),
        steps=400,
        batch_size=8,
    )
