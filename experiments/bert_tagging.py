"""Names in text by fine-tuning a BERT: CoNLL-2003, and the rare names of WNUT-17 (Devlin et al., 2019, section 5.3).

    jaxnlp train bert_tagging --name wnut17 --pretrained DIR --data-dir DIR
    jaxnlp evaluate runs/bert_tagging

DIR is a BERT's: a run's folder, or a Hugging Face directory. The paper's figure for BERT-base, cased, on CoNLL-2003's
test part is 92.4 F1, with the document around each sentence, which is not read here.
"""

from typing import Literal

from jaxnlp.data.corpora.wnut17 import TAGS
from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.tagging import Tagging
from jaxnlp.training.experiment import Data, Experiment, fine_tuned

SETS = {  # the feature of the tags, labels, examples to train on
    "conll2003": ("ner", ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"), 14_042),
    "wnut17": ("ner", TAGS, 3_394),
}


def experiment(
    name: Literal["conll2003", "wnut17"] = "wnut17", pretrained: str = "runs/bert", scratch: bool = False
) -> Experiment:
    tags, labels, examples = SETS[name]
    validation = {"conll2003": "dev"}.get(name, "validation")
    task = Tagging(labels=labels, tags=tags)
    data = Data(train=TFDS(name, "train"), validation=TFDS(name, validation))
    return fine_tuned(task, data, pretrained, scratch, examples=examples, epochs=4, lr=5e-5, batch_size=16)
