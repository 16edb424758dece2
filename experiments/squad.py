"""Questions answered by spans of Wikipedia: BERT fine-tuned on SQuAD (Devlin et al., 2019, sections 4.2 and 4.3).

    jaxnlp train squad --pretrained DIR --data-dir DIR [--version v2.0] [--scratch]
    jaxnlp evaluate runs/squad

DIR is a BERT's: a run's folder, or a Hugging Face directory. Version 2.0 has questions without an answer, for which
`evaluate` also gives the best threshold. Rate and epochs are those of the command in google-research/bert, the batch is
the paper's, and so are its figures for BERT-base on the validation part of v1.1: 80.8 exact match, 88.5 F1. An epoch is
a pass over as many rows as there are examples, of which long contexts have several.
"""

from typing import Literal

from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.span_qa import SpanQA
from jaxnlp.training.experiment import Data, Experiment, fine_tuned

EXAMPLES = {"v1.1": 87_599, "v2.0": 130_319}  # to train on


def experiment(
    pretrained: str = "runs/bert", version: Literal["v1.1", "v2.0"] = "v1.1", scratch: bool = False
) -> Experiment:
    task = SpanQA(no_answer=version == "v2.0")
    data = Data(train=TFDS(f"squad/{version}", "train"), validation=TFDS(f"squad/{version}", "validation"))
    return fine_tuned(task, data, pretrained, scratch, examples=EXAMPLES[version], epochs=2, lr=3e-5, batch_size=32)
