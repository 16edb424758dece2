"""What a run refuses before its model would misread it, and what it is asked of that its model cannot do."""

import dataclasses

import numpy as np
import pytest

import jaxnlp
from jaxnlp import cli
from jaxnlp.data.tokenizers import Characters, build
from jaxnlp.models import gpt, seq2seq, transformer
from jaxnlp.run import Run
from jaxnlp.tasks.embedding import Embedding
from jaxnlp.tasks.translation import Translation

WHOLE = transformer.Config(vocab_size=8, n_encoder_layers=1, n_decoder_layers=1, d_model=4, n_heads=1, d_ff=4)
ENCODER = dataclasses.replace(WHOLE, n_decoder_layers=0)
SEQ2SEQ = seq2seq.Config(vocab_size=8, d_embed=4, d_model=4)
GPT = gpt.Config(vocab_size=8, n_positions=8, n_layers=1, d_model=4, n_heads=1)
TARGET = {"decoder_input_ids": [[0, 2], [0, 3]]}


def a_run(config, task=None):
    """Of no parameters: it has to be refused before them."""
    return Run(config.build(), {}, build(Characters(), ["abc"]), task)


@pytest.mark.parametrize(
    ("config", "inputs", "message"),
    [
        (WHOLE, TARGET | {"attention_mask": [[1, 1, 1], [0, 0, 0]]}, "has no 1 in row 1; allowed: one and more of"),
        (SEQ2SEQ, TARGET | {"attention_mask": [[0, 0, 0], [1, 0, 0]]}, "has no 1 in row 0"),
        (WHOLE, TARGET | {"attention_mask": [[1, 1, 0], [1, 0, 1]]}, "has 0 between 1s in row 1; allowed: 1s side by"),
        (ENCODER, {"attention_mask": [[1, 0, 1], [1, 1, 1]]}, "has 0 between 1s in row 0"),
        (GPT, {"attention_mask": [[1, 2, 1], [1, 1, 1]]}, "attention_mask holds 2; allowed: 0 and 1"),
        (
            SEQ2SEQ,
            TARGET | {"input_ids": np.zeros((2, 0), int)},
            r"input_ids has shape \(2, 0\); allowed: one source and",
        ),
        (WHOLE, {"decoder_input_ids": [[0]] * 3}, "decoder_input_ids has 3 rows; allowed: 2, or a multiple of it"),
        (
            WHOLE,
            TARGET | {"token_type_ids": [[0] * 3] * 2},
            "token_type_ids came to a Transformer; allowed: input_ids,",
        ),
    ],
)
def test_inputs_that_would_be_misread_are_refused(config, inputs, message):
    with pytest.raises(ValueError, match=message):
        a_run(config).apply({"input_ids": np.array([[2, 3, 4], [4, 3, 2]]), **inputs})


@pytest.mark.parametrize(("config", "inputs"), [(WHOLE, TARGET), (ENCODER, {})])
def test_outputs_of_layers_that_read_padding_on_the_left_elsewhere_are_refused(config, inputs):
    given = {"input_ids": np.array([[2, 3, 4], [4, 3, 2]]), "attention_mask": np.array([[1, 1, 1], [0, 1, 1]])}
    with pytest.raises(ValueError, match="outputs of row 1, which begins with padding; allowed: padding at the end"):
        a_run(config).apply({**given, **inputs}, outputs="attentions")


def test_what_a_model_cannot_do_is_named(monkeypatch, capsys):
    with pytest.raises(ValueError, match="the model Encoder is no language model to generate with$"):
        a_run(ENCODER).generate(["a"])
    with pytest.raises(ValueError, match="task.form='encoder-decoder' with the model GPT; allowed: causal, prefix"):
        a_run(GPT).predict(["a"], task=Translation(n_beams=2))
    with pytest.raises(ValueError, match="the model Transformer reads a source and a target; allowed: one that"):
        a_run(WHOLE).predict(["a"], task=Embedding())
    monkeypatch.setattr(jaxnlp, "load", lambda path, **options: a_run(WHOLE))
    assert cli.main(["generate", "run", "--prompt", "a"]) == 2
    told = "error: the model Transformer is no language model to generate with; a translation comes from `predict`"
    assert told in capsys.readouterr().err
