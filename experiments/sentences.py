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
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim

PAIR = {"text": "sentence_A", "pair": "sentence_B", "length": 64}
TASKS = {
    "nsmc": Classification(text="document", labels=("negative", "positive"), length=128),
    "sick_entailment": Classification(
        label="entailment_label", labels=("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), **PAIR
    ),
    "sick_relatedness": Regression(label="relatedness_score", **PAIR),
}
SPLITS = {"nsmc": ("train[1%:]", "train[:1%]"), "sick": ("train", "validation")}
EXAMPLES = {"nsmc": 150_000, "sick": 4_500}  # to train on
EPOCHS, BATCH_SIZE = 3, 32


def experiment(
    name: Literal["nsmc", "sick_entailment", "sick_relatedness"] = "sick_entailment",
    pretrained: str = "runs/bert",
    scratch: bool = False,
) -> Experiment:
    task, source = TASKS[name], name.partition("_")[0]
    train, validation = SPLITS[source]
    return Experiment(
        task=task,
        data=Data(train=TFDS(source, train), validation=TFDS(source, validation)),
        init=Pretrained(pretrained, fresh=".*" if scratch else "heads/.*"),
        optim=Optim(lr=3e-5, warmup=0.1, decay="linear", end=0.0, b2=0.999, epsilon=1e-6, weight_decay=0.01),
        steps=EPOCHS * EXAMPLES[source] // BATCH_SIZE,
        batch_size=BATCH_SIZE,
        monitor="accuracy" if isinstance(task, Classification) else "loss",
    )
