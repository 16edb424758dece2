"""The tasks of GLUE (Wang et al., 2019), each by fine-tuning a BERT or a GPT (Devlin et al., 2019, section 4.1).

    jaxnlp train glue --name mrpc --pretrained DIR --data-dir DIR [--validation validation_mismatched]
    jaxnlp evaluate runs/glue

DIR is a BERT's or a GPT's: a run's folder, or a Hugging Face directory; a RoBERTa or DistilBERT, which has no pooler,
is read at its first token. Batch 32 and 3 epochs are the paper's; of its rates the one is taken that it has for most.
The figures of BERT-base on the test parts: MNLI 84.6/83.4, QQP 71.2 (F1), QNLI 90.5, SST-2 93.5, CoLA 52.1 (MCC),
STS-B 85.8 (Spearman), MRPC 88.9 (F1), RTE 66.4.
"""

from typing import Literal, get_args

from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.regression import Regression
from jaxnlp.training.experiment import Data, Experiment, fine_tuned

Name = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
ENTAILMENT = ("entailment", "not_entailment")
TASKS = {  # features, labels, examples to train on
    "cola": (("sentence", None), ("unacceptable", "acceptable"), 8_551),
    "sst2": (("sentence", None), ("negative", "positive"), 67_349),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent"), 3_668),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate"), 363_846),
    "stsb": (("sentence1", "sentence2"), (), 5_749),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), 392_702),
    "qnli": (("question", "sentence"), ENTAILMENT, 104_743),
    "rte": (("sentence1", "sentence2"), ENTAILMENT, 2_490),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment"), 635),
}
assert set(TASKS) == set(get_args(Name))


def experiment(
    name: Name = "sst2",
    pretrained: str = "runs/bert",
    scratch: bool = False,
    validation: str | None = None,
) -> Experiment:
    """`scratch`: nothing of what the checkpoint learned. `validation`: the split; None: validation, MNLI's matched."""
    (text, pair), labels, examples = TASKS[name]
    made = {"text": text, "pair": pair, "length": 128}
    task = Classification(labels=labels, **made) if labels else Regression(label="label", **made)
    held_out = validation or ("validation_matched" if name == "mnli" else "validation")
    data = Data(train=TFDS(f"glue/{name}", "train"), validation=TFDS(f"glue/{name}", held_out))
    monitor = "accuracy" if labels else "loss"
    return fine_tuned(task, data, pretrained, scratch, examples=examples, monitor=monitor)
