"""Directories of GPT, GPT-2 and GPT-Neo in and out: against stored ones of transformers, and live against it."""

import dataclasses
import json
import pathlib
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

import jaxnlp
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.interop.huggingface import DirectoryError
from jaxnlp.models import gpt
from jaxnlp.run import Run
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.multiple_choice import MultipleChoice

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "gpt_family.py"))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))


def tokenizer_of(name):
    """Of words that are letters; of GPT without an end."""
    openai = name.startswith("OpenAI")
    special, suffix = (["<pad>"], "</w>") if openai else (["<pad>", "<|endoftext|>"], "")
    vocab = {word: i for i, word in enumerate([*special, "<unk>", *(letter + suffix for letter in LETTERS)])}
    ends = {"end_of_word_suffix": suffix} if openai else {}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", **ends))
    backend.decoder = decoders.BPEDecoder(suffix=suffix) if openai else None
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    backend.add_special_tokens(special)
    return Tokenizer(backend)


def tensors_of(name, golden):
    return safetensors.numpy.load(golden[f"{name}/tensors"].tobytes())


def written(path, name, golden, change=lambda tensors: tensors, **settings):
    path.mkdir()
    tensors = change(tensors_of(name, golden))
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    own = json.loads(golden[f"{name}/config"].tobytes())
    own |= {key: tokenizer_of(name).eos_id for key in ("bos_token_id", "eos_token_id")}
    (path / "config.json").write_text(json.dumps(own | settings))
    tokenizer_of(name).save(path / "tokenizer.json")
    return path


def inputs(name, side="right"):
    return {key: jnp.asarray(x, jnp.int32) for key, x in ORACLE["inputs"](name, side).items()}


def assert_equal_outputs(name, found, expected, side="right"):
    """Those of real tokens, the scores of starts and ends as the one product that they are."""
    real = ORACLE["inputs"](name, side)["attention_mask"] == 1
    if "start_logits" in expected:
        both = lambda out: np.stack([out["start_logits"], out["end_logits"]], -1)  # noqa: E731
        found, expected = {"span": both(found)}, {"span": both(expected)}
    assert expected
    for key, x in expected.items():
        of_tokens = x.shape[: real.ndim] == real.shape
        own = np.asarray(found[key])
        assert own.shape == x.shape, key
        own, x = (own[real], x[real]) if of_tokens else (own, x)
        assert np.abs(own - x).max() <= 1e-5 * np.abs(x).max(), (key, np.abs(own - x).max() / np.abs(x).max())


@pytest.mark.parametrize("name", ORACLE["CLASSES"])
def test_each_class_is_loaded_and_written_as_it_was(name, tmp_path, golden):
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    for side in ORACLE["SIDES"]:
        start = f"{name}/outputs/{side}/"
        expected = {key.removeprefix(start): x for key, x in golden.items() if key.startswith(start)}
        assert_equal_outputs(name, run.apply(inputs(name, side)), expected, side)
    jaxnlp.export(run, tmp_path / "out")
    before, after = tensors_of(name, golden), safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    if name.endswith("Model") and "Head" not in name:  # comes back with the language model's head, and so its stem
        before = {f"transformer.{key}": x for key, x in before.items()}
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)
    settings, again = (json.loads((tmp_path / at / "config.json").read_text()) for at in ("in", "out"))
    kept = (set(again) & set(settings)) - {"architectures", "id2label", "label2id"}
    for key in sorted(kept):
        assert again[key] == settings[key], key
    assert len(kept) >= 11


def test_published_forms_are_read(tmp_path, golden):
    """Without the stem, with each layer's mask beside it, and the table of words a second time."""

    def published(tensors):
        n = json.loads(golden["GPTNeoForCausalLM/config"].tobytes())["max_position_embeddings"]
        past = np.tril(np.ones((1, 1, n, n), bool))
        made = {key.removeprefix("transformer."): x for key, x in tensors.items()}
        for i in range(ORACLE["L"]):
            band = past & ~np.tril(past, -ORACLE["WINDOW"]) if i % 2 else past
            made[f"h.{i}.attn.attention.bias"] = band
            made[f"h.{i}.attn.attention.masked_bias"] = np.array(-1e9, np.float32)
        return made | {"lm_head.weight": made["wte.weight"].copy()}

    name = "GPTNeoForCausalLM"
    run = jaxnlp.load(written(tmp_path / "in", name, golden, published))
    assert_equal_outputs(name, run.apply(inputs(name)), {"logits": golden[f"{name}/outputs/right/logits"]})


def test_a_second_name_of_the_same_function_is_read(tmp_path, golden):
    settings = {"activation_function": "gelu_pytorch_tanh"}
    for name in ("GPT2LMHeadModel", "GPTNeoForCausalLM"):
        run = jaxnlp.load(written(tmp_path / name, name, golden, **settings))
        assert_equal_outputs(name, run.apply(inputs(name)), {"logits": golden[f"{name}/outputs/right/logits"]})
        jaxnlp.export(run, tmp_path / name / "out")
        again = json.loads((tmp_path / name / "out" / "config.json").read_text())
        assert again["activation_function"] == "gelu_new"


def test_tasks_are_those_of_the_classes(tmp_path, golden):
    load = lambda name, **settings: jaxnlp.load(written(tmp_path / name, name, golden, **settings))  # noqa: E731
    n = ORACLE["T"] + 2
    assert load("GPT2Model").task == LanguageModeling(length=n)
    names = {"id2label": {"1": "good", "0": "bad", "2": "so so"}}
    task = load("OpenAIGPTForSequenceClassification", **names).task
    assert task == Classification(labels=("bad", "good", "so so"), length=n, ends=False)
    double = load("OpenAIGPTDoubleHeadsModel")
    assert double.task == MultipleChoice(length=n, auxiliary=0.5)
    (one,) = double.predict([("a b", ["c", "d e"])])
    assert one["choice"] in (0, 1) and sum(one["scores"]) == pytest.approx(1)
    config = load("GPTNeoForCausalLM").config
    assert (config.windows, config.qkv_bias, config.attention_scale) == ((None, ORACLE["WINDOW"]), False, 1.0)


@pytest.mark.parametrize("name", ["GPT2DoubleHeadsModel", "OpenAIGPTLMHeadModel", "GPTNeoForCausalLM"])
def test_what_speaks_generates(name, tmp_path, golden):
    """Token by token from a cache as from the whole text at once, with and without another head."""
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    (text,) = run.generate(["a b c d e"], max_new_tokens=4, temperature=0)
    ids = run.tokenizer.encode("a b c d e")
    words = run.config.build()
    for _ in range(4):
        logits = words.apply({"params": run.params}, jnp.array([ids]))["logits"]
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == run.tokenizer.eos_id:
            break
    told = [id for id in ids[5:] if id != run.tokenizer.eos_id]
    assert text.split() == run.tokenizer.decode(told).split()


def test_a_class_reads_what_transformers_reads(tmp_path, golden):
    """transformers' tokenizer puts nothing round a text, unless it was written so: then an end, here as there."""
    run = jaxnlp.load(written(tmp_path / "in", "GPT2ForSequenceClassification", golden))
    eos, ids = run.tokenizer.eos_id, run.tokenizer.encode("a b c")
    for ends in (False, True):
        run = dataclasses.replace(run, task=dataclasses.replace(run.task, ends=ends))
        jaxnlp.export(run, tmp_path / f"{ends}")
        read = Backend.from_file(str(tmp_path / f"{ends}" / "tokenizer.json")).encode("a b c").ids
        assert read == [*ids, *([eos] if ends else [])]
        logits = np.asarray(run.apply({"input_ids": [read]})["logits"][0], np.float64)
        again = jaxnlp.load(tmp_path / f"{ends}")
        assert again.task.ends == ends
        (found,) = again.predict(["a b c"])
        np.testing.assert_allclose(list(found["scores"].values()), np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    with pytest.raises(ValueError, match="a text without a token; allowed: one with a word"):
        jaxnlp.load(tmp_path / "False").predict(["a", ""])
    begun = Backend.from_file(str(tmp_path / "False" / "tokenizer.json"))
    end = ("<|endoftext|>", eos)
    begun.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[end])
    begun.save(str(tmp_path / "False" / "tokenizer.json"))
    with pytest.raises(DirectoryError, match=rf"tokenizer.json puts the tokens \(\[{eos}\], \[\]\) before and after"):
        jaxnlp.load(tmp_path / "False")
    both = dataclasses.replace(run.task, pair="b", symmetric=True)
    with pytest.raises(ValueError, match="task.symmetric=True, whose two orders transformers does not add up"):
        jaxnlp.export(dataclasses.replace(run, task=both), tmp_path / "both")


@pytest.mark.parametrize(
    ("name", "auxiliary"),
    [("GPT2ForSequenceClassification", 0.5), ("GPT2DoubleHeadsModel", 0.0), ("OpenAIGPTDoubleHeadsModel", 0.0)],
)
def test_a_language_model_beside_another_head_has_nothing_to_write(name, auxiliary, tmp_path, golden):
    """So a class takes it, or one alone is written with it."""
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    task = dataclasses.replace(run.task, auxiliary=auxiliary)
    jaxnlp.export(dataclasses.replace(run, task=task, model=run.config.build(task.heads)), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [name]
    before, after = tensors_of(name, golden), safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_tensors_of_half_width_are_read(kind, tmp_path, golden):
    """bfloat16 by hand: the upper half of a float32's bits."""
    name = "GPT2LMHeadModel"
    half = lambda tensors: {key: x.astype(kind) for key, x in tensors.items()}  # noqa: E731
    run = jaxnlp.load(written(tmp_path / "in", name, golden, half, dtype=kind))
    tensor = tensors_of(name, golden)["transformer.wpe.weight"]
    bits = (tensor.view(np.uint32) + 0x7FFF + (tensor.view(np.uint32) >> 16 & 1)) & 0xFFFF0000
    expected = bits.view(np.float32) if kind == "bfloat16" else tensor.astype(np.float16).astype(np.float32)
    assert run.params["embed"]["positions"].dtype == jnp.float32
    np.testing.assert_array_equal(run.params["embed"]["positions"], expected)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("GPT2LMHeadModel", {"scale_attn_weights": False}, "scale_attn_weights=False; allowed: True"),
        ("OpenAIGPTLMHeadModel", {"afn": "relu"}, "afn=relu; allowed: gelu"),
        ("OpenAIGPTDoubleHeadsModel", {"summary_type": "mean"}, "summary_type=mean; allowed: cls_index"),
        ("GPTNeoForCausalLM", {"activation_function": "relu"}, "activation_function=relu; allowed: gelu_new"),
        ("GPTNeoForCausalLM", {"attention_types": [[["global", "far"], 2]]}, "attention_types=.*global and local, 4"),
        ("GPTNeoForCausalLM", {"attention_types": [[["global"], 3]]}, "attention_types=.*global and local, 4 in all"),
        ("GPT2LMHeadModel", {"architectures": ["GPT2Other"]}, r"architectures=.*; allowed: GPT2LMHeadModel, GPT2Mod"),
    ],
)
def test_a_wrong_config_is_named(name, settings, message, tmp_path, golden):
    with pytest.raises(DirectoryError, match=message):
        jaxnlp.load(written(tmp_path / "in", name, golden, **settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": (None, 2)}, r"model.windows=\(None, 2\); GPT2 allows: None alone"),
        ({"norm_first": False, "d_ff": 12}, "model.d_ff=12; OpenAIGPT allows: None"),
        ({"qkv_bias": False}, "model.attention_scale=None; GPTNeo allows: 1.0"),
        ({"qkv_bias": False, "attention_scale": 1.0, "windows": (2, 3)}, r"windows=\(2, 3\); GPTNeo allows: None, and"),
        ({"d_head": 3}, "model.d_head=3; GPT2 allows: None"),
    ],
)
def test_what_transformers_has_not_is_named(changes, message, tmp_path):
    config = gpt.Config(**{"vocab_size": 37, "n_positions": 8, "n_layers": 2, "d_model": 8, "n_heads": 2} | changes)
    run = Run(config.build(), {}, tokenizer_of("GPT2"), LanguageModeling(length=8))
    with pytest.raises(ValueError, match=message):
        jaxnlp.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cycles_of_windows_are_the_shortest(tmp_path, golden):
    name = "GPTNeoForCausalLM"
    for types, windows in (
        ([[["global"], 4]], (None,)),
        ([[["local"], 2], [["local", "local"], 1]], (4,)),
        ([[["global", "local", "local"], 1], [["global"], 1]], (None, 4, 4, None)),
    ):
        path = written(tmp_path / str(len(windows) * 10 + (windows[0] or 0)), name, golden, attention_types=types)
        run = jaxnlp.load(path)
        assert run.config.windows == windows
        jaxnlp.export(run, path / "again")
        assert jaxnlp.load(path / "again").config == run.config


@pytest.mark.parity
@pytest.mark.parametrize("name", ORACLE["CLASSES"])
def test_transformers_reads_what_is_exported(name, tmp_path, golden, read_back):
    """Other weights than its own, of scanned layers, give it the same outputs; its tokenizer gives the same text."""
    run = jaxnlp.load(written(tmp_path / "in", name, golden))
    run, found = read_back(name, run, ORACLE["flat"](ORACLE["inputs"](name, "left")), "a B c")
    found.pop("kinds")
    assert found.pop("ids").tolist() == run.tokenizer.encode("a B c")
    assert_equal_outputs(name, run.apply(inputs(name, "left")), found, "left")
