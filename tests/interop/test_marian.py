"""Marian directories in and out: against stored arrays of transformers, and live against it where it is installed."""

import dataclasses
import io
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
import sentencepiece

import jaxnlp
from jaxnlp.data.tokenizers import ByteBPE, Pair, Tokenizer
from jaxnlp.interop.huggingface import Directory, DirectoryError
from jaxnlp.models import rnn, transformer
from jaxnlp.run import Run
from jaxnlp.tasks.translation import Translation
from jaxnlp.training import loop
from jaxnlp.training.experiment import Data, Experiment, Pretrained

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "transformer.py"))
V, D = ORACLE["V"], ORACLE["D"]
TEXTS = [f"the {a} dog saw {b} cats, no {c}." for a in ("old", "young") for b in range(9) for c in ("bird", "fish")]
OTHERS = [f"der {a} Hund sah {b} Katzen, keinen {c}." for a in ("alte", "junge") for b in range(9) for c in "ab"]
SETTINGS = {
    "architectures": ["MarianMTModel"],
    "model_type": "marian",
    "vocab_size": V,
    "d_model": D,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "activation_function": "swish",
    "scale_embedding": True,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "max_position_embeddings": 32,
    "num_beams": 3,
    "decoder_start_token_id": V - 1,
    "eos_token_id": 0,
    "pad_token_id": V - 1,
}


def pieces(texts: list[str], size: int) -> bytes:
    model = io.BytesIO()
    options = {"vocab_size": size, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **options)
    return model.getvalue()


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))


@pytest.fixture(scope="module")
def tensors(golden):
    """As transformers names them."""
    head = "marian/params/"
    found = {name.removeprefix(head): x for name, x in golden.items() if name.startswith(head)}
    return found | {"final_logits_bias": found["final_logits_bias"][None]}


@pytest.fixture(scope="module")
def tokenizer_files():
    """Two SentencePiece models and one numbering of the pieces that fit into V words."""
    models = {"source.spm": pieces(TEXTS, 34), "target.spm": pieces(OTHERS, 34)}
    names = ["</s>", "<unk>", ">>deu<<"]
    for model in models.values():
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        names += [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    names = [name for name in dict.fromkeys([*names, *(f"other{i}" for i in range(V))]) if name != "<s>"]
    vocabulary = {name: i for i, name in enumerate([*names[: V - 1], "<pad>"])}
    return models | {"vocab.json": json.dumps(vocabulary).encode()}


@pytest.fixture
def directory(tmp_path, tensors, tokenizer_files):
    return written(tmp_path / "opus", SETTINGS, tensors, tokenizer_files)


def written(path, settings, tensors, files):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        (path / name).write_bytes(content)
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def inputs():
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    return {name: jnp.asarray(ORACLE["batch"]("marian")[name], jnp.int32) for name in names}


def assert_close(found, expected):
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_directory_is_loaded_as_the_model_it_was(directory, golden):
    run = jaxnlp.load(directory)
    assert (run.config.n_encoder_layers, run.config.activation, run.config.dropout) == (3, "silu", 0.1)
    assert (run.task.n_beams, run.task.length, run.task.length_penalty) == (3, 32, 1.0)
    assert run.experiment is None
    out = run.apply(inputs())
    assert_close(out["logits"], golden["marian/logits"])
    assert not run.params["embed"]["tokens"][V:].any(), "what fills the table up is zero"


def test_shards_other_dtypes_and_doubles_of_tied_tensors(tmp_path, tensors, tokenizer_files, golden):
    path = written(tmp_path / "opus", SETTINGS, {}, tokenizer_files)
    (path / "model.safetensors").unlink()
    places = np.arange(32)
    rates = 10000.0 ** (-2 * np.arange(D // 2) / D)
    waves = np.concatenate([np.sin(places[:, None] * rates), np.cos(places[:, None] * rates)], 1)
    more = {"model.decoder.embed_positions.weight": waves.astype(np.float32)}
    more |= dict.fromkeys(("lm_head.weight", "model.decoder.embed_tokens.weight"), tensors["model.shared.weight"])
    everything = {**tensors, **more}
    everything["model.encoder.embed_tokens.weight"] = everything.pop("model.shared.weight")
    names = sorted(everything)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.numpy.save_file({name: everything[name] for name in part}, path / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_close(jaxnlp.load(path).apply(inputs())["logits"], golden["marian/logits"])
    half = jaxnlp.load(path, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    (path / "model-2.safetensors").unlink()
    with pytest.raises(DirectoryError, match=r"index.json names model-2.safetensors, not there"):
        jaxnlp.load(path)


def test_export_gives_the_tensors_and_the_tokenizer_back(directory, tensors, tmp_path):
    run = jaxnlp.load(directory)
    jaxnlp.export(run, tmp_path / "again")
    found = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(found[name], tensors[name], err_msg=name)
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes()
    settings = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: settings[name] for name in SETTINGS if name != "max_position_embeddings"} == {
        name: value for name, value in SETTINGS.items() if name != "max_position_embeddings"
    }
    generation = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert generation["bad_words_ids"] == [[V - 1]] and generation["num_beams"] == 3 and generation["max_length"] == 32
    assert all(generation[name] == SETTINGS[name] for name in SETTINGS if name.endswith("_token_id"))
    with pytest.raises(FileExistsError, match="again is there already; allowed: a new folder"):
        jaxnlp.export(run, tmp_path / "again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "opus"], "nothing else is left"


@pytest.mark.parametrize("scan", [False, True])
def test_own_models_come_back_from_their_export(scan, tmp_path):
    """Scanned layers, a width of heads of its own form, no bias of the logits, one byte-level tokenizer for both."""
    config = transformer.Config(
        vocab_size=300, n_encoder_layers=2, n_decoder_layers=2, d_model=16, n_heads=2, d_head=8, d_ff=24, scan=scan
    )
    params = config.build().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    tokenizer = ByteBPE(vocab_size=300).build(TEXTS)
    run = Run(config.build(), params, tokenizer, Translation(source="en", target="de", length=32))
    jaxnlp.export(run, tmp_path / "out")
    again = jaxnlp.load(tmp_path / "out")
    ids = {"input_ids": jnp.array([tokenizer.encode(TEXTS[0])]), "decoder_input_ids": jnp.array([[0, 7, 5]])}
    assert_close(again.apply(ids)["logits"], np.asarray(run.apply(ids)["logits"]))
    assert again.tokenizer.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])
    assert (again.task.source, again.task.target) == ("en", "de")


def test_a_table_for_each_language(tmp_path):
    config = transformer.Config(
        vocab_size=300, target_vocab_size=280, n_encoder_layers=1, n_decoder_layers=1, d_model=16, n_heads=2, d_ff=24
    )
    params = config.build().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    tokenizer = ByteBPE(vocab_size=280).build(TEXTS)
    run = Run(config.build(), params, tokenizer, Translation())
    jaxnlp.export(run, tmp_path / "out")
    again = jaxnlp.load(tmp_path / "out")
    assert (again.config.vocab_size, again.config.target_vocab_size) == (300, 280)
    ids = {"input_ids": jnp.array([[4, 290]]), "decoder_input_ids": jnp.array([[0, 7, 5]])}
    assert_close(again.apply(ids)["logits"], np.asarray(run.apply(ids)["logits"]))


def test_the_tokenizer_is_sentencepiece_with_marians_ids(directory, tokenizer_files):
    tokenizer = jaxnlp.load(directory).tokenizer
    vocabulary = json.loads(tokenizer_files["vocab.json"])
    for side, name, texts in ((tokenizer, "source.spm", TEXTS), (tokenizer.target, "target.spm", OTHERS)):
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_files[name])
        for text in (*texts[:3], "  many   spaces ", "", "汉字 unknown"):
            found = processor.encode(text, out_type=str)
            assert side.encode(text) == [vocabulary.get(piece, vocabulary["<unk>"]) for piece in found]
    text = tokenizer.target.decode([*tokenizer.target.encode(OTHERS[4]), tokenizer.eos_id, tokenizer.pad_id])
    target = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_files["target.spm"])
    known = target.encode(OTHERS[4], out_type=str)
    expected = "".join(piece if piece in vocabulary else " \u2047 " for piece in known).replace("\u2581", " ").strip()
    assert text == expected
    assert tokenizer.encode(">>deu<<" + TEXTS[0]) == [vocabulary[">>deu<<"], *tokenizer.encode(TEXTS[0])]
    assert tokenizer.encode(">>xyz<<")[0] == vocabulary["<unk>"]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id) == (0, V - 1, V - 1, 1)
    assert tokenizer.byte_lengths is None
    with pytest.raises(ValueError, match="is a SentencePiece model, which gives no places; allowed: tokenizer.json"):
        tokenizer.offsets(TEXTS[:1])
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.fingerprint == tokenizer.fingerprint
    assert again.target.encode(OTHERS[5]) == tokenizer.target.encode(OTHERS[5])


def test_a_target_vocabulary_with_more_words_than_the_table_is_refused(directory, tokenizer_files):
    words = json.loads(tokenizer_files["vocab.json"])
    (directory / "target_vocab.json").write_text(json.dumps(words | {"more": V}))
    with pytest.raises(DirectoryError, match=f"decoder_vocab_size={V}; allowed: {V + 1}, the tokenizer's, and more"):
        Directory(directory).tokenizer()


def test_it_translates_and_never_writes_padding(directory):
    run = jaxnlp.load(directory)
    bias = {at: run.params["output_bias"].at[at].set(100.0) for at in (V - 1, 5)}
    told, padded, other = (
        [
            one["translation"]
            for one in dataclasses.replace(run, params=run.params | {"output_bias": b}).predict(TEXTS[:5])
        ]
        for b in (run.params["output_bias"], bias[V - 1], bias[5])
    )
    assert told == padded != other
    rows = [{"source": x, "target": y} for x, y in zip(TEXTS[:4], OTHERS[:4], strict=True)]
    assert np.isfinite(jaxnlp.evaluate(run, source=rows)["loss"])
    with pytest.raises(ValueError, match="the run names no validation part"):
        jaxnlp.evaluate(run)


@pytest.mark.slow
def test_it_is_fine_tuned(directory, tmp_path):
    rows = [{"source": x, "target": y} for x, y in zip(TEXTS, OTHERS, strict=True)]
    experiment = Experiment(
        task=Translation(source="source", target="target", length=64),
        data=Data(train=rows),
        init=Pretrained(str(directory)),
        steps=2,
        batch_size=4,
    )
    started = jaxnlp.load(directory)
    run = jaxnlp.train(experiment, tmp_path / "run")
    assert run.config == started.config
    assert run.tokenizer.fingerprint == started.tokenizer.fingerprint
    change = jnp.abs(run.params["embed"]["tokens"] - started.params["embed"]["tokens"]).max()
    assert 0 < change < 0.01, "two steps from where it was"
    with pytest.raises(ValueError, match=r"init.step='best', ema=False of .*opus, which is no run"):
        init = Pretrained(str(directory), step="best")
        loop.train(dataclasses.replace(experiment, init=init), tmp_path / "other")


def changed(directory, **settings):
    found = json.loads((directory / "config.json").read_text()) | settings
    (directory / "config.json").write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_type": "t5"},
            r"config.json: model_type='t5'; allowed: bert, .*, marian",
        ),
        ({"architectures": ["MarianForCausalLM"]}, r"architectures=\['MarianForCausalLM'\]; allowed: MarianMTModel"),
        ({"scale_embedding": False}, r"config.json: scale_embedding=False; allowed: True"),
        ({"normalize_before": True}, r"normalize_before=True; allowed: False"),
        ({"d_model": ...}, r"config.json: d_model is absent"),
        ({"d_model": "16"}, r"config.json: "),
        ({"decoder_ffn_dim": 25}, r"decoder_ffn_dim=25; allowed: 24, as encoder_ffn_dim"),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, r"n_heads=5 does not divide model.d_model=16"),
        ({"activation_function": "mish"}, r"activation_function='mish'; allowed: swish"),
        ({"decoder_start_token_id": 5}, rf"decoder_start_token_id=5; allowed: {V - 1}, as the tokenizer"),
    ],
)
def test_a_wrong_config_is_named(settings, message, directory):
    changed(directory, **settings)
    with pytest.raises(DirectoryError, match=message):
        jaxnlp.load(directory)


def test_settings_that_are_null_or_lists_of_one_are_understood(directory):
    changed(directory, forced_eos_token_id=None, eos_token_id=[0], activation_dropout=None, length_penalty=0.5)
    changed(directory, share_encoder_decoder_embeddings=None, num_beams=None)
    (directory / "generation_config.json").write_text('{"length_penalty": null, "eos_token_id": [0]}')
    run = jaxnlp.load(directory)
    assert (run.config.target_vocab_size, run.task.length_penalty, run.task.n_beams) == (None, 1.0, 4)
    assert len(run.predict(["the old dog"])) == 1


def test_tensors_that_are_missing_of_another_shape_or_not_known_are_listed(directory, tensors):
    bad = dict(tensors)
    bad.pop("model.encoder.layers.1.fc1.bias")
    bad["model.encoder.layers.0.fc1.weight"] = bad["model.encoder.layers.0.fc1.weight"].T.copy()
    bad["model.decoder.layers.7.fc1.bias"] = np.zeros(24, np.float32)
    bad["lm_head.weight"] = bad["model.shared.weight"] + 1
    bad["model.encoder.embed_positions.weight"] = np.zeros((32, D), np.float32)
    safetensors.numpy.save_file(bad, directory / "model.safetensors")
    with pytest.raises(DirectoryError) as error:
        jaxnlp.load(directory)
    assert str(error.value).splitlines() == [
        f"{directory} does not hold a MarianMTModel as its config.json describes it, at 5 tensors:",
        "  model.encoder.layers.1.fc1.bias: missing",
        "  model.encoder.layers.0.fc1.weight: shape (16, 24); allowed: (24, 16)",
        *sorted(
            [
                "  lm_head.weight: differs from model.shared.weight; allowed: the same values",
                "  model.decoder.layers.7.fc1.bias: not known",
                "  model.encoder.embed_positions.weight: not the constant that it is; allowed: that, or nothing",
            ]
        ),
    ]


def test_pickles_are_refused_with_how_to_convert_them(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(DirectoryError, match="vocab.json; allowed: model.safetensors, or parts of it"):
        jaxnlp.load(directory)
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(DirectoryError) as error:
        jaxnlp.load(directory)
    assert "pytorch_model.bin may run any program when it is read, and is not" in str(error.value)
    assert f"t.MarianMTModel.from_pretrained('{directory}').save_pretrained('{directory}')" in str(error.value)


def test_files_that_are_damaged_are_named(directory):
    whole = (directory / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b""):
        (directory / "model.safetensors").write_bytes(damaged)
        with pytest.raises(DirectoryError, match="model.safetensors: cannot be read, perhaps cut off or damaged"):
            jaxnlp.load(directory)
    (directory / "model.safetensors").write_bytes(whole)
    (index := directory / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": 3}}')
    with pytest.raises(DirectoryError, match="index.json: no index of tensors"):
        jaxnlp.load(directory)
    index.unlink()
    (directory / "source.spm").write_bytes(b"no model")
    with pytest.raises(ValueError, match="source.spm with vocab.json: not a SentencePiece model"):
        jaxnlp.load(directory)
    (directory / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="source.spm with vocab.json: "):
        jaxnlp.load(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(DirectoryError, match="config.json: not JSON"):
        jaxnlp.load(directory)
    with pytest.raises(DirectoryError, match="no config.json; allowed: a directory as transformers writes it"):
        Directory(directory.parent)


def run_of(config, tokenizer=None):
    params = config.build().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return Run(config.build(), params, tokenizer or ByteBPE(vocab_size=280).build(TEXTS), Translation())


SMALL = transformer.Config(vocab_size=300, n_encoder_layers=1, n_decoder_layers=1, d_model=16, n_heads=2, d_ff=24)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(SMALL, norm_first=True), "model.norm_first=True; Marian allows: False"),
        (dataclasses.replace(SMALL, epsilon=1e-6), "model.epsilon=1e-06; Marian allows: 1e-05"),
        (dataclasses.replace(SMALL, d_head=4), "model.d_head=4; Marian allows: None"),
        (dataclasses.replace(SMALL, n_decoder_layers=0), "a half of a Transformer; Marian has both"),
        (
            rnn.Config(vocab_size=300, d_embed=8, d_model=8),
            "the model jaxnlp.models.rnn; allowed with format='huggingface': bert, .*, marian",
        ),
    ],
)
def test_what_marian_has_not_is_refused_and_nothing_is_written(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        jaxnlp.export(run_of(config), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_two_tokenizers_of_other_kinds_are_refused(tmp_path):
    pair = Pair(ByteBPE(vocab_size=270), ByteBPE(vocab_size=270)).build([*TEXTS, *OTHERS])
    with pytest.raises(ValueError, match="two tokenizers that are no SentencePiece models"):
        jaxnlp.export(run_of(SMALL, pair), tmp_path / "out")
    with pytest.raises(ValueError, match="format='onnx'; allowed: huggingface"):
        jaxnlp.export(run_of(SMALL), tmp_path / "out", format="onnx")


def test_a_mesh_takes_the_parameters(directory, golden):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = jaxnlp.load(directory, mesh=mesh)
    assert len(run.params["embed"]["tokens"].sharding.device_set) == 8
    assert_close(run.apply(inputs())["logits"], golden["marian/logits"])


LIVE = """
import sys, numpy as np, torch, transformers
texts = [line.rstrip("\\n") for line in open(sys.argv[2])]
model = transformers.MarianMTModel.from_pretrained(sys.argv[1]).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
assert not sum(p.isnan().any() for p in model.parameters())
ids = tokenizer(texts, padding=True, return_tensors="pt")
start = torch.full((len(texts), 1), model.config.decoder_start_token_id)
with torch.no_grad():
    logits = model(input_ids=ids.input_ids, attention_mask=ids.attention_mask, decoder_input_ids=start).logits
    told = model.generate(input_ids=ids.input_ids, attention_mask=ids.attention_mask, num_beams=1, do_sample=False,
                          max_new_tokens=12, forced_eos_token_id=None)
np.savez(sys.argv[3], logits=logits[:, 0], ids=ids.input_ids, mask=ids.attention_mask,
         texts=np.array(tokenizer.batch_decode(told, skip_special_tokens=True)))
"""


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["marian", "own"])
def test_transformers_reads_what_is_exported(kind, directory, tmp_path):
    """Tokens, logits and greedy translations; of Marian's own tokenizer and of a byte-level one."""
    run = jaxnlp.load(directory) if kind == "marian" else run_of(dataclasses.replace(SMALL, activation="gelu"))
    run = dataclasses.replace(run, params=jax.tree.map(lambda x: x * 1.3, run.params))
    if kind == "marian":  # it would write padding
        run.params["output_bias"] = run.params["output_bias"].at[V - 1].set(5.0)
    jaxnlp.export(run, tmp_path / "out")
    texts = [*TEXTS[:6], "no cats"]
    (tmp_path / "texts").write_text("\n".join(texts))
    arguments = [sys.executable, "-c", LIVE, tmp_path / "out", tmp_path / "texts", tmp_path / "found.npz"]
    subprocess.run(arguments, check=True)
    found = np.load(tmp_path / "found.npz")
    ids = [[*tokens, run.tokenizer.eos_id] for tokens in run.tokenizer.encode_batch(texts)]
    assert [list(row[m == 1]) for row, m in zip(found["ids"], found["mask"], strict=True)] == ids
    start = jnp.full((len(texts), 1), run.tokenizer.target.bos_id)
    given = {"input_ids": found["ids"].astype(np.int32), "attention_mask": found["mask"].astype(np.int32)}
    assert_close(run.apply({**given, "decoder_input_ids": start})["logits"][:, 0], found["logits"])
    greedy = dataclasses.replace(run.task, n_beams=1, max_new_tokens=12)
    own = [one["translation"] for one in run.predict(texts, task=greedy)]
    strip = lambda text: text.replace("\u2047", "").replace(" ", "")  # noqa: E731
    assert list(map(strip, own)) == list(map(strip, found["texts"]))
