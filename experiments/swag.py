"""What happens next? BERT fine-tuned on SWAG's four endings (Zellers et al., 2018; Devlin et al., 2019, section 4.4).

    jaxnlp train swag --pretrained DIR --data-dir DIR [--scratch]

DIR is a BERT's or a GPT's: a run's folder, or a Hugging Face directory. A row is the first sentence with the second's
beginning and one ending. Rate, epochs and batch are the paper's, which has 81.6 % for BERT-base on the validation
part.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.multiple_choice import MultipleChoice
from jaxnlp.training.experiment import Data, Experiment, fine_tuned


def experiment(pretrained: str = "runs/bert", scratch: bool = False) -> Experiment:
    endings = ("ending0", "ending1", "ending2", "ending3")
    task = MultipleChoice(context="sent1", question="sent2", choices=endings, length=128)
    data = Data(train=TFDS("swag", "train"), validation=TFDS("swag", "validation"))
    return fine_tuned(task, data, pretrained, scratch, examples=73_546, lr=2e-5, batch_size=16, monitor="accuracy")
