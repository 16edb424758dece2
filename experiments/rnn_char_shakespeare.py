"""Shakespeare by characters with a recurrent network of about the parameters of gpt_char_shakespeare, in as many steps.

    jaxnlp train rnn_char_shakespeare --cell lstm --data-dir DIR          # or rnn, gru

Two layers, tied tables, no dropout; 0.86, 0.83 and 0.82 million parameters of rnn, lstm and gru, where the GPT has
0.82, all with the rows that pad their tables. Trained and evaluated on what gpt_char_shakespeare is: the state begins
anew in each row of 64 characters. Validation loss 1.647, 1.623 and 1.571, the GPT's 1.762 (seed 0):
`experiments/studies/rnn_char.py`.
"""

import dataclasses
import pathlib
import runpy
from typing import Literal

from jaxnlp.models import rnn
from jaxnlp.training.experiment import Experiment

GPT = runpy.run_path(str(pathlib.Path(__file__).with_name("gpt_char_shakespeare.py")))


def experiment(cell: Literal["rnn", "lstm", "gru"] = "lstm") -> Experiment:
    return dataclasses.replace(GPT["experiment"](), model=rnn.VARIANTS[f"char-{cell}"])
