"""LoRA: what it adds by the paper's equation, what it leaves alone, and a folder that names its base."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxnlp
from jaxnlp import cli
from jaxnlp.data.tokenizers import Characters
from jaxnlp.models import gpt
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training import loop, lora, pretrained
from jaxnlp.training.checkpoint import load_params
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.folder import FolderError
from jaxnlp.training.lora import LoRA
from jaxnlp.training.optim import Optim

TEXTS = [{"text": f"{a} and {b} make {a + b}.", "label": (a + b) % 3} for a in range(8) for b in range(8)]
TINY = gpt.Config(vocab_size=40, n_positions=32, n_layers=2, d_model=16, n_heads=2, dropout=0.1)
EVERY = LoRA(rank=3, alpha=6.0, paths=r".*/kernel")
BASE = Experiment(
    model=TINY,
    task=LanguageModeling(length=16),
    data=Data(train=TEXTS),
    tokenizer=Characters(),
    optim=Optim(lr=1e-2),
    steps=4,
    batch_size=8,
)
ADAPT = Experiment(
    task=Classification(labels=("0", "1", "2"), length=32),
    data=Data(train=TEXTS[:48], validation=TEXTS[48:]),
    optim=Optim(lr=1e-2),
    steps=6,
    batch_size=8,
    log_every=0.5,
    evaluate_every=1.0,
    save_every=0.5,
    ema=0.9,
    lora=LoRA(rank=2),
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "base"
    loop.train(BASE, folder)
    return folder


@pytest.fixture(scope="module")
def adapting(base):
    return dataclasses.replace(ADAPT, init=Pretrained(str(base), fresh=r"heads/.*"))


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """Trained beside its base, which it names as it is seen from there; read from elsewhere."""
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base.parent)
        return folder, jaxnlp.train(dataclasses.replace(ADAPT, init=Pretrained("base", fresh=r"heads/.*")), folder)


def parts(scan):
    """Trained matrices with a B that is not zero, their base, and both flat."""
    model = dataclasses.replace(TINY, scan=scan, dropout=0.0).build()
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    trained, kept = lora.apart(EVERY, params, lambda path: False, jax.random.key(1))
    trained = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), trained)
    return model, trained, kept


def test_nothing_is_added_at_first():
    params = TINY.build().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    trained, kept = lora.apart(EVERY, params, lambda path: path.startswith("norm/"), jax.random.key(1))
    assert set(trained) == {"lora", "norm"} and "norm" not in kept
    jax.tree.map(np.testing.assert_array_equal, lora.merged(EVERY, trained, kept), params)
    a = trained["lora"]["blocks"]["0"]["mlp"]["out"]["kernel"]["a"]
    assert a.shape == (3, 64) and np.std(a) == pytest.approx(64**-0.5, rel=0.2)


@pytest.mark.parametrize("scan", [False, True])
def test_each_matrix_is_w_plus_b_a(scan):
    """The paper's equation, on matrices cut out of the arrays one by one."""
    _, trained, kept = parts(scan)
    whole = lora.merged(EVERY, trained, kept)
    whole, flat, trained = (flatten_dict(jax.tree.map(np.asarray, x), sep="/") for x in (whole, kept, trained))
    seen = 0
    for path, w in flat.items():
        if not path.endswith("/kernel"):
            np.testing.assert_array_equal(whole[path], w)
            continue
        layers = range(len(w)) if scan else [...]
        for layer in layers:
            a, b, old, new = (x[layer] for x in (trained[f"lora/{path}/a"], trained[f"lora/{path}/b"], w, whole[path]))
            if "qkv" in path:  # [H, 3, K, D]: three matrices, from D to H K
                for i in range(3):
                    expected = old[:, i].reshape(16, 16) + 2 * b[i].reshape(16, 3) @ a[i]
                    np.testing.assert_allclose(new[:, i].reshape(16, 16), expected, atol=1e-6)
                    seen += 1
            else:  # [D, H, K] from H K to D, or [m, n]
                rows, rank = len(old), 3
                expected = old.reshape(rows, -1) + 2 * b @ a.reshape(rank, -1)
                np.testing.assert_allclose(new.reshape(rows, -1), expected, atol=1e-6)
                seen += 1
    assert seen == 2 * 6


def test_gradients_are_those_of_the_product():
    """dA = s B' dW and dB = s dW A', with dW of the whole model."""
    model, trained, kept = parts(False)
    ids = jnp.arange(12).reshape(2, 6)

    def loss(params):
        return jnp.square(model.apply({"params": params}, ids)["logits"]).mean()

    whole = lora.merged(EVERY, trained, kept)
    dw = jax.jit(jax.grad(loss))(whole)["blocks"]["1"]["mlp"]["in"]["kernel"]
    found = jax.jit(jax.grad(lambda t: loss(lora.merged(EVERY, t, kept))))(trained)
    at = lambda tree: tree["lora"]["blocks"]["1"]["mlp"]["in"]["kernel"]  # noqa: E731
    a, b = at(trained)["a"], at(trained)["b"]
    for name, expected in (("a", 2 * b.T @ dw), ("b", 2 * dw @ a.T)):
        np.testing.assert_allclose(at(found)[name], expected, atol=1e-5 * np.abs(expected).max())


def test_the_folder_holds_what_is_added_and_names_its_base(base, adapted):
    folder, run = adapted
    manifest = json.loads((folder / "checkpoints" / "6.json").read_text())["manifest"]
    leaves = {path for path in manifest["leaves"] if path.startswith(("params/", "ema/"))}
    assert {path.split("/")[1] for path in leaves} == {"lora", "heads"}
    assert {path.rsplit("/", 1)[1] for path in leaves if "/lora/" in path} == {"a", "b"}
    assert json.loads((folder / "base.json").read_text())["run"] == str(base)
    theirs, own = (flatten_dict(x, sep="/") for x in (jaxnlp.load(base).params, run.params))
    for path, x in theirs.items():
        changed = np.abs(own[path] - x).max() > 0
        assert changed == ("attention/" in path and path.endswith("kernel")), path


def test_the_base_comes_back_bit_for_bit(base, adapted):
    """And what is merged is it plus (alpha / r) B A, each matrix multiplied on its own."""
    folder, run = adapted
    found, theirs = pretrained.unmerged(folder), jaxnlp.load(base).params
    assert lora.fingerprint(found) == lora.fingerprint(theirs)
    for path, x in (theirs := flatten_dict(theirs, sep="/")).items():
        assert np.asarray(x).tobytes() == np.asarray(flatten_dict(found, sep="/")[path]).tobytes(), path
    trained = load_params(folder / "checkpoints", "latest", ema=True)[0]["lora"]["blocks"]["1"]["attention"]
    w, (a, b) = theirs["blocks/1/attention/out/kernel"], (trained["out"]["kernel"][name] for name in "ab")
    expected = w + 16 / 2 * (b @ a.reshape(2, -1)).reshape(w.shape)
    whole = jaxnlp.load(folder, ema=True).params["blocks"]["1"]["attention"]["out"]["kernel"]
    assert np.abs(whole - w).max() > 0
    np.testing.assert_array_equal(whole, expected)
    with pytest.raises(ValueError, match="base adapts nothing; allowed: a run with LoRA"):
        pretrained.unmerged(base)


def test_what_is_loaded_was_measured_in_training(adapted):
    folder, run = adapted
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert jaxnlp.evaluate(run)["loss"] == pytest.approx(lines[-1]["loss"], rel=1e-6)
    assert lines[-1]["split"] == "validation"


def test_a_stopped_run_goes_on_as_if_nothing_had_been(adapting, adapted, tmp_path, monkeypatch):
    original = loop.Progress.update

    def stop(self, step, metrics):
        original(self, step, metrics)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(loop.Progress, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            loop.train(adapting, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, jaxnlp.train(adapting, tmp_path).params, adapted[1].params)


@pytest.mark.parametrize("form", ["data=2,fsdp=2,tensor=2", "pmap"])
@pytest.mark.slow
def test_meshes_and_pmap_agree_with_plain_jit(form, adapting, tmp_path, assert_same_run):
    plain = dataclasses.replace(TINY, dropout=0.0, attention_dropout=0.0)
    one = dataclasses.replace(adapting, model=plain, optim=Optim(lr=1e-3), steps=3)
    loop.train(one, tmp_path / "one")
    loop.train(dataclasses.replace(one, parallel=form), tmp_path / "many")
    assert_same_run(tmp_path / "many", tmp_path / "one", 1e-5)


def test_merged_it_needs_no_base(adapted, base, tmp_path, monkeypatch):
    folder, run = adapted
    assert cli.main(["export", str(folder), str(tmp_path / "whole"), "--merge", "--ema"]) == 0
    hidden = base.rename(base.with_name("away"))
    try:
        whole = jaxnlp.load(tmp_path / "whole")
        with pytest.raises(FolderError, match=f"adapts {base}, its base, .*base: no such folder.* in .*base.json as"):
            jaxnlp.load(folder)
        known = (folder / "base.json").read_text()
        (folder / "base.json").write_text(known.replace(str(base), str(hidden)))
        moved = jaxnlp.load(folder, ema=True)
        loop.train(run.experiment, folder)
        (folder / "base.json").write_text(known)
    finally:
        hidden.rename(base)
    jax.tree.map(np.testing.assert_array_equal, moved.params, run.params)
    jax.tree.map(np.testing.assert_array_equal, whole.params, run.params)
    assert whole.experiment.lora is None and whole.step == 6
    assert whole.predict(["1 and 2 make 3."]) == run.predict(["1 and 2 make 3."])
    with pytest.raises(FileExistsError, match="is there already"):
        jaxnlp.export(run, tmp_path / "whole", format="run")


def test_a_run_starts_from_an_adapted_one(adapted, tmp_path):
    folder, _ = adapted
    again = dataclasses.replace(ADAPT, init=Pretrained(str(folder), ema=True), lora=None, steps=1, ema=None)
    begun = jaxnlp.train(dataclasses.replace(again, optim=Optim(lr=1e-30)), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, begun.params, jaxnlp.load(folder, ema=True).params)


def test_another_body_is_refused(adapted, base, tmp_path):
    folder, _ = adapted
    other, hidden = jaxnlp.load(base), base.with_name("away")
    params = jax.tree.map(lambda x: 1.5 * x, other.params)
    base.rename(hidden)
    try:
        pretrained.write(base, other.experiment, other.tokenizer, params, 4)
        with pytest.raises(FolderError, match=r"adapted adapts .*sha256.* now; allowed: the parameters that it began"):
            jaxnlp.load(folder)
    finally:
        base.rename(tmp_path / "other")
        hidden.rename(base)
    (folder / "base.json").rename(tmp_path / "kept.json")
    with pytest.raises(
        FolderError, match=r"base.json, which says what .* cannot be read: .*; allowed: {.run., .sha256"
    ):
        jaxnlp.load(folder)
    (tmp_path / "kept.json").rename(folder / "base.json")


def test_a_run_is_written_in_float32(adapted, tmp_path):
    """However it was loaded: as its experiment computes."""
    half = jaxnlp.load(adapted[0], ema=True, dtype="bfloat16")
    jaxnlp.export(half, tmp_path / "whole", format="run")
    again = jaxnlp.load(tmp_path / "whole")
    assert (half.config.dtype, again.config.dtype) == ("bfloat16", "float32")
    for x, expected in zip(jax.tree.leaves(again.params), jax.tree.leaves(half.params), strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, expected.astype(jnp.float32))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init": None}, "lora with init=None, .* allowed: an init to adapt"),
        ({"optim": Optim(freeze="embed/.*")}, "optim.freeze='embed/.*', .*; allowed: an init to adapt, and neither"),
        ({"optim": Optim(layer_decay=0.8)}, "optim.layer_decay=0.8; allowed: an init to adapt, and neither"),
        ({"lora": LoRA(paths="blocks/.*/query")}, "lora.paths='blocks/.*/query' matches no parameter of the base"),
        ({"lora": LoRA(paths="embed/.*")}, "embed/tokens is no array of a block's matrices; allowed: "),
    ],
)
def test_what_cannot_be_adapted_is_refused(changed, message, adapting, tmp_path):
    with pytest.raises(ValueError, match=message):
        loop.train(dataclasses.replace(adapting, model=TINY, tokenizer=Characters(), **changed), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora.rank=0; allowed: 1 and more"),
        ({"alpha": 0.0}, "lora.alpha=0.0; allowed: more than 0"),
        ({"paths": "("}, r"lora.paths='\(' is no regex"),
    ],
)
def test_numbers_that_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**options)
