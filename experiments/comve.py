"""Why does the statement make no sense? One of three reasons is right (Wang et al., 2020: SemEval's task 4, part B).

    jaxnlp train comve --pretrained DIR --data-dir DIR
    jaxnlp train comve --pretrained DIR --data-dir DIR --scratch --workdir runs/scratch

DIR is a BERT's or a GPT's: a run's folder, or a Hugging Face directory. `--scratch` keeps the checkpoint's tokenizer
and sizes and nothing of what it learned. Rate, epochs and batch are BERT's for SWAG (Devlin et al., 2019, section
4.4). A guess is right once in three times.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.multiple_choice import MultipleChoice
from jaxnlp.training.experiment import Data, Experiment, fine_tuned


def experiment(pretrained: str = "runs/bert", scratch: bool = False) -> Experiment:
    task = MultipleChoice(n_choices=3, length=64)
    data = Data(train=TFDS("comve", "train"), validation=TFDS("comve", "validation"))
    return fine_tuned(task, data, pretrained, scratch, examples=10_000, lr=2e-5, batch_size=16, monitor="accuracy")
