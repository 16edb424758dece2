"""GPT-2 directories in and out: against stored arrays of transformers, and live against it where it is installed."""

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

import jaxnlp
from jaxnlp.data.tokenizers import ByteBPE, Characters
from jaxnlp.interop.huggingface import Directory, DirectoryError
from jaxnlp.models import gpt
from jaxnlp.run import Run
from jaxnlp.tasks.language_modeling import LanguageModeling

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "gpt2.py"))
SETTINGS = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    **ORACLE["SIZES"],
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
}
IDS = {"input_ids": jnp.asarray(ORACLE["inputs"]()["plain"]["input_ids"], jnp.int32)}
TEXTS = ["the old dog saw a cat", "no bird", "the cat saw the old bird again"]


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))


@pytest.fixture(scope="module")
def tensors(golden):
    return {name.removeprefix("params/"): x for name, x in golden.items() if name.startswith("params/")}


def written(path, tensors, **settings):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SETTINGS | settings))
    Characters().build(TEXTS).save(path / "tokenizer.json")
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def assert_close(found, expected):
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("form", ["today's", "published"])
def test_a_directory_is_loaded_as_the_model_it_was(form, tmp_path, tensors, golden):
    if form == "published":  # without the stem, with masks, and with the tied table once more
        stem, T = "transformer.", SETTINGS["n_positions"]
        tensors = {name.removeprefix(stem): x for name, x in tensors.items()}
        for i in range(SETTINGS["n_layer"]):
            tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, T, T), np.float32))
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    run = jaxnlp.load(written(tmp_path / "gpt2", tensors))
    assert (run.config.n_layers, run.config.dropout, run.config.attention_dropout) == (2, 0.1, 0.0)
    assert isinstance(run.task, LanguageModeling) and run.task.length == SETTINGS["n_positions"]
    assert_close(run.apply(IDS)["logits"], golden["plain/logits"])


def test_export_gives_the_tensors_back(tmp_path, tensors):
    run = jaxnlp.load(written(tmp_path / "gpt2", tensors))
    jaxnlp.export(run, tmp_path / "again")
    found = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if name != "lm_head.weight"}
    assert found.keys() == kept.keys()
    for name in kept:
        np.testing.assert_array_equal(found[name], kept[name], err_msg=name)
    settings = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: settings[name] for name in SETTINGS} == SETTINGS
    assert jaxnlp.load(tmp_path / "again").tokenizer.encode(TEXTS[0]) == run.tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='?relu'?; allowed: gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True; allowed: False"),
        ({"embd_pdrop": 0.2}, "embd_pdrop=0.2; allowed: 0.1, as resid_pdrop"),
    ],
)
def test_a_wrong_config_is_named(settings, message, tmp_path, tensors):
    with pytest.raises(DirectoryError, match=message):
        jaxnlp.load(written(tmp_path / "gpt2", tensors, **settings))


def test_files_of_the_tokenizer_that_differ_are_named(tmp_path, tensors):
    """GPT2Tokenizer would begin with a space, where tokenizer.json has none; a class that reads that alone has none."""
    path, file = written(tmp_path / "gpt2", tensors, vocab_size=512), tmp_path / "gpt2" / "tokenizer_config.json"
    ByteBPE(vocab_size=257).build(TEXTS).save(path / "tokenizer.json")
    directory = Directory(path)
    for settings in ({"add_prefix_space": False}, {"add_prefix_space": True, "tokenizer_class": "TokenizersBackend"}):
        file.write_text(json.dumps(settings))
        assert directory.tokenizer().vocab_size == 257
    file.write_text(json.dumps({"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(
        DirectoryError, match="config.json: add_prefix_space=True; allowed: False, as tokenizer.json ha"
    ):
        directory.tokenizer()


LIVE = """
import sys, numpy as np, torch, transformers
model = transformers.GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer(sys.argv[2], return_tensors="pt").input_ids
with torch.no_grad():
    told = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)
    np.savez(sys.argv[3], ids=ids, logits=model(ids).logits, text=tokenizer.decode(told[0]))
"""


@pytest.mark.parity
def test_transformers_reads_what_is_exported(tmp_path):
    config = gpt.Config(vocab_size=300, n_positions=64, n_layers=2, d_model=32, n_heads=4, scan=True)
    params = config.build().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    run = Run(config.build(), params, ByteBPE(vocab_size=300).build(TEXTS), LanguageModeling(length=64))
    jaxnlp.export(run, tmp_path / "out")
    arguments = [sys.executable, "-c", LIVE, tmp_path / "out", TEXTS[2], tmp_path / "found.npz"]
    subprocess.run(arguments, check=True)
    found = np.load(tmp_path / "found.npz")
    assert found["ids"][0].tolist() == run.tokenizer.encode(TEXTS[2])
    assert_close(run.apply({"input_ids": found["ids"].astype(np.int32)})["logits"], found["logits"])
    (text,) = run.generate([TEXTS[2]], max_new_tokens=8, temperature=0)
    assert str(found["text"]).startswith(TEXTS[2] + text)
