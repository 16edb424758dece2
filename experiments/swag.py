"""What happens next? BERT fine-tuned on SWAG's four endings (Zellers et al., 2018; Devlin et al., 2019, section 4.4).

    jaxnlp train swag --pretrained DIR --data-dir DIR

DIR is a BERT's or a GPT's: a run's folder, or a Hugging Face directory. A row is the first sentence with the second's
beginning and one ending. Rate, epochs and batch are the paper's, which has 81.6 % for BERT-base on the validation
part.
"""

from jaxnlp.data.sources import TFDS
from jaxnlp.tasks.multiple_choice import MultipleChoice
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim

EXAMPLES, EPOCHS, BATCH_SIZE = 73_546, 3, 16


def experiment(pretrained: str = "runs/bert") -> Experiment:
    endings = ("ending0", "ending1", "ending2", "ending3")
    return Experiment(
        task=MultipleChoice(context="sent1", question="sent2", choices=endings, length=128),
        data=Data(train=TFDS("swag", "train"), validation=TFDS("swag", "validation")),
        init=Pretrained(pretrained, fresh="heads/.*"),
        optim=Optim(lr=2e-5, warmup=0.1, decay="linear", end=0.0, b2=0.999, epsilon=1e-6, weight_decay=0.01),
        steps=EPOCHS * EXAMPLES // BATCH_SIZE,
        batch_size=BATCH_SIZE,
        monitor="accuracy",
    )
