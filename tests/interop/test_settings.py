"""What a directory's settings and its tokenizer's files say, and what is written of a run, in transformers' words."""

import dataclasses
import json
import pathlib
import runpy

import numpy as np
import pytest
import safetensors.numpy
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

import jaxnlp
from jaxnlp.interop.bert import DIALECTS
from jaxnlp.interop.huggingface import Directory, DirectoryError
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.multiple_choice import MultipleChoice

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "bert_family.py"))
GOLDEN = dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))
WORDS = ("a", "b", "c")


def tokenizer_of(start, end, **processor):
    names = ["[UNK]", "[PAD]", "[MASK]", start, end, *WORDS]
    backend = Backend(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[UNK]", "[PAD]", "[MASK]", start, end])
    if processor:
        backend.post_processor = processors.TemplateProcessing(**processor, special_tokens=[(start, 3), (end, 4)])
    return backend


def written(path, name, backend, tokenizer_config=None, more=(), **settings):
    path.mkdir()
    tensors = safetensors.numpy.load(GOLDEN[f"{name}/tensors"].tobytes()) | dict(more)
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads(GOLDEN[f"{name}/config"].tobytes()) | {"pad_token_id": 1} | settings
    (path / "config.json").write_text(json.dumps(settings))
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config or {}))
    backend.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("BertForSequenceClassification", {"classifier_dropout": 0.3}, 0.3),
        ("BertForTokenClassification", {"classifier_dropout": 0}, 0),
        ("BertForMultipleChoice", {"classifier_dropout": None}, None),
        ("RobertaForMultipleChoice", {"classifier_dropout": 0.3}, None),  # whose class reads hidden_dropout_prob
        ("DistilBertForSequenceClassification", {"seq_classif_dropout": 0.3}, 0.3),
        ("DistilBertForMultipleChoice", {}, 0.2),  # the default of transformers' configuration
        ("DistilBertForTokenClassification", {"seq_classif_dropout": 0.3}, None),
    ],
)
def test_a_head_has_its_class_s_dropout(name, given, found):
    settings = json.loads(GOLDEN[f"{name}/config"].tobytes()) | {"architectures": name} | given
    if not given:
        settings.pop("seq_classif_dropout", None)
    dialect = DIALECTS[settings["model_type"]]
    config, task = dialect.config(settings, ()), dialect.task(settings, ())
    assert config.head_dropout == found
    if found is not None:
        (key,) = given or {"seq_classif_dropout": None}
        assert dialect.settings(config, task)[key] == found


def test_a_distilbert_classifier_without_a_dropout_of_its_own_has_the_bodys():
    settings = json.loads(GOLDEN["DistilBertForSequenceClassification/config"].tobytes())
    dialect, settings = DIALECTS["distilbert"], settings | {"architectures": "DistilBertForSequenceClassification"}
    config = dataclasses.replace(dialect.config(settings, ()), dropout=0.4, head_dropout=None)
    assert dialect.settings(config, Classification(labels=("x", "y")))["seq_classif_dropout"] == 0.4


OWN = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
HERBERT = {"single": "<s> $A </s>", "pair": "<s> $A </s> $B:1 </s>:1"}


@pytest.mark.parametrize(
    ("marks", "processor", "kind", "message"),
    [
        (("[CLS]", "[SEP]"), OWN, "PreTrainedTokenizerFast", None),
        (("[CLS]", "[SEP]"), {"single": OWN["single"]}, "PreTrainedTokenizerFast", None),
        (("[CLS]", "[SEP]"), {}, "PreTrainedTokenizerFast", None),
        (("<s>", "</s>"), HERBERT, "RobertaTokenizer", None),  # which puts what RoBERTa has, whatever the file says
        (("<s>", "</s>"), HERBERT, "PreTrainedTokenizerFast", "reads the pair a, a as .*; allowed: .*3, 5, 4, 4, 5, 4"),
        (
            ("[CLS]", "[SEP]"),
            {"single": "$A [SEP]"},
            "PreTrainedTokenizerFast",
            r"puts the tokens \(\[\], \[4\]\) before",
        ),
        (
            ("[CLS]", "[SEP]"),
            OWN | {"pair": "[CLS] $A [SEP] $B [SEP]"},
            "TokenizersBackend",
            "of types .0, 0, 0, 0, 0.; allowed: .*, of .0, 0, 0, 1, 1",
        ),
    ],
)
def test_what_stands_round_texts_is_compared_where_the_file_alone_says_it(marks, processor, kind, message, tmp_path):
    backend = tokenizer_of(*marks, **processor)
    path = written(tmp_path / "in", "BertForSequenceClassification", backend, {"tokenizer_class": kind})
    if message is not None:
        with pytest.raises(DirectoryError, match=message):
            jaxnlp.load(path)
        return
    run = jaxnlp.load(path)
    if processor == OWN:
        (record,) = run.task.features([("a b", "c")], run.tokenizer)
        theirs = backend.encode("a b", "c")
        assert (record["input_ids"].tolist(), record["token_type_ids"].tolist()) == (theirs.ids, theirs.type_ids)


def test_padding_that_a_class_has_not_is_not_written(tmp_path):
    """RoBERTa counts positions from the padding's number on, which is 1 in its table here."""
    backend = Backend(models.WordLevel({n: i for i, n in enumerate(["<pad>", "<s>", "</s>", "<mask>", *WORDS])}))
    backend.add_special_tokens(["<pad>", "<s>", "</s>", "<mask>"])
    run = jaxnlp.load(written(tmp_path / "in", "BertForSequenceClassification", backend, pad_token_id=0))
    with pytest.raises(ValueError, match="the tokenizer's pad_token_id is 0; allowed in a RobertaForSeq.*: 1"):
        jaxnlp.export(run, tmp_path / "out")


def test_a_constant_of_another_shape_is_listed(tmp_path):
    more = {"bert.embeddings.position_ids": np.arange(3)[None]}
    path = written(tmp_path / "in", "BertForSequenceClassification", tokenizer_of("[CLS]", "[SEP]"), more=more)
    with pytest.raises(DirectoryError, match="bert.embeddings.position_ids: not the constant that it is"):
        jaxnlp.load(path)


@pytest.mark.parametrize("n_segments", [1, 2])
def test_a_body_of_one_kind_of_segments_is_given_none(n_segments, tmp_path):
    run = jaxnlp.load(written(tmp_path / "in", "BertForSequenceClassification", tokenizer_of("[CLS]", "[SEP]")))
    segments = run.params["embed"]["segments"][:n_segments]
    params = {**run.params, "embed": {**run.params["embed"], "segments": segments}}
    model = dataclasses.replace(run.config, n_segments=n_segments).build(run.task.heads)
    jaxnlp.export(dataclasses.replace(run, model=model, params=params), tmp_path / "out")
    said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert ("token_type_ids" in said["model_input_names"]) == (n_segments == 2)
    pair = Backend.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("a", "b")
    assert pair.ids == [3, 5, 4, 6, 4]
    assert pair.type_ids == [0, 0, 0, *([1, 1] if n_segments == 2 else [0, 0])]


def test_settings_of_letters_that_differ_are_named(tmp_path):
    backend = tokenizer_of("[CLS]", "[SEP]")
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    for i, said in enumerate(({"do_lower_case": True, "strip_accents": None}, {"strip_accents": True})):
        Directory(written(tmp_path / f"{i}", "BertForSequenceClassification", backend, said)).tokenizer()
    for i, said in enumerate(({"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False})):
        path = written(tmp_path / f"other {i}", "BertForSequenceClassification", backend, said)
        with pytest.raises(DirectoryError, match="=False; allowed: True, as tokenizer.json has it"):
            Directory(path).tokenizer()


def test_choices_of_roberta_are_written_without_a_dropout_of_their_own():
    settings = json.loads(GOLDEN["RobertaForMultipleChoice/config"].tobytes())
    config = DIALECTS["roberta"].config(settings | {"architectures": "RobertaForMultipleChoice"}, ())
    assert "classifier_dropout" not in DIALECTS["roberta"].settings(config, MultipleChoice())
