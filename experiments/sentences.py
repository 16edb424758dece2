"""Sentences and pairs of them, by fine-tuning a BERT or a GPT: Korean film reviews, entailment, relatedness.

    jaxnlp train sentences --name sick_entailment --pretrained DIR --data-dir DIR [--scratch]
    jaxnlp evaluate runs/sentences

    nsmc                Korean film reviews, good or bad
    sick_entailment     pairs of SICK: entailment, neutral or contradiction (Marelli et al., 2014)
    sick_relatedness    the same pairs: how alike, 1 to 5

DIR is a BERT's or a GPT's: a run's folder, or a Hugging Face directory. Settings as in glue.py.
"""

from typing import Literal

from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.regression import Regression
from jaxnlp.training.experiment import Data, Experiment, fine_tuned

PAIR = {"text": "sentence_A", "pair": "sentence_B", "length": 64}
TASKS = {
    "nsmc": Classification(text="document", labels=("negative", "positive"), length=128),
    "sick_entailment": Classification(
        label="entailment_label", labels=("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), **PAIR
    ),
    "sick_relatedness": Regression(label="relatedness_score", **PAIR),
}
SOURCES = {  # the parts to train and to validate on, examples to train on
    "nsmc": ("train[1%:]", "train[:1%]", 150_000),
    "sick": ("train", "validation", 4_500),
}


def experiment(
    name: Literal["nsmc", "sick_entailment", "sick_relatedness"] = "sick_entailment",
    pretrained: str = "runs/bert",
    scratch: bool = False,
) -> Experiment:
    task, source = TASKS[name], name.partition("_")[0]
    train, validation, examples = SOURCES[source]
    data = Data(train=TFDS(source, train), validation=TFDS(source, validation))
    monitor = "accuracy" if isinstance(task, Classification) else "loss"
    return fine_tuned(task, data, pretrained, scratch, examples=examples, monitor=monitor)
