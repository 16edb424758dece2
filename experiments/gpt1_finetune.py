"""GPT-1's fine-tuning (Radford et al., 2018, section 3.3): each kind of task by its own form of the input.

    jaxnlp train gpt1_finetune --name comve --pretrained runs/gpt1_pretrain --data-dir DIR [--auxiliary 0.5] [--scratch]
    jaxnlp evaluate runs/gpt1_finetune --split test --data-dir DIR

    sst2                classification      _start_ text _classify_
    sick_entailment     entailment          _start_ premise _delimiter_ hypothesis _classify_
    sick_relatedness    similarity          both orders, whose states are added
    comve               multiple choice     _start_ statement _delimiter_ reason _classify_, three times

The data are those of glue.py, sentences.py and comve.py. The vocabulary gets the three tokens here. Schedule, batch
and epochs are the paper's (section 4.1), whose rate is 6.25e-5 for a model of its size: `--optim.lr 6.25e-5`.
`--auxiliary` is lambda of eq. 5, 0.5 there. `--scratch` keeps the checkpoint's tokenizer and sizes and nothing of what
it learned. All of it in one table: `experiments/studies/gpt1_table5.py`.
"""

import dataclasses
import pathlib
import runpy
from typing import Literal

from jaxnlp.tasks.inputs import MARKS
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.optim import Optim

SOURCES = {  # the experiment that has the task and its data
    "sst2": ("glue", {"name": "sst2"}),
    "sick_entailment": ("sentences", {"name": "sick_entailment"}),
    "sick_relatedness": ("sentences", {"name": "sick_relatedness"}),
    "comve": ("comve", {}),
}
BATCH_SIZE = 32


def experiment(
    name: Literal["sst2", "sick_entailment", "sick_relatedness", "comve"] = "sick_entailment",
    pretrained: str = "runs/gpt1_pretrain",
    scratch: bool = False,
    auxiliary: float = 0.0,
) -> Experiment:
    file, arguments = SOURCES[name]
    path = pathlib.Path(__file__).with_name(f"{file}.py")
    base = runpy.run_path(str(path))["experiment"](pretrained=pretrained, scratch=scratch, **arguments)
    task = dataclasses.replace(base.task, auxiliary=auxiliary)
    return dataclasses.replace(
        base,
        task=dataclasses.replace(task, symmetric=True) if name == "sick_relatedness" else task,
        init=dataclasses.replace(base.init, tokens=MARKS),
        optim=Optim(lr=5e-4, warmup=0.002, decay="linear", end=0.0, b2=0.999, weight_decay=0.01),
        steps=base.steps * base.batch_size // BATCH_SIZE,
        batch_size=BATCH_SIZE,
    )
