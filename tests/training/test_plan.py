"""Plans: what shapes alone tell, search, and errors; with libtpu a real compilation."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp import cli
from jaxnlp.models import gpt, transformer
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.translation import Translation
from jaxnlp.training import hlo, loop, parallel, plan, report
from jaxnlp.training.chips import CHIPS
from jaxnlp.training.experiment import Data, Experiment, Pretrained
from jaxnlp.training.optim import Optim
from jaxnlp.training.step import TrainState

GiB = 2**30


@pytest.fixture(scope="module")
def compiler():
    """What libtpu printed: tests/golden/compiler.py."""
    return np.load(pathlib.Path(__file__).parents[1] / "golden" / "compiler.npz")


def experiment(config=None, **fields) -> Experiment:
    config = config or gpt.Config(n_layers=2, d_model=64, n_heads=4, vocab_size=1000, n_positions=128)
    fields = {"batch_size": 16, "steps": 100, **fields}
    return Experiment(model=config, task=LanguageModeling(length=128), data=Data(train=[{"text": "a"}]), **fields)


@pytest.fixture
def _no_libtpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)


@pytest.mark.usefixtures("_no_libtpu")
def test_without_libtpu_shapes_tell_parameters_and_optimizer():
    p = plan.plan(experiment(), "v5e:4x4", "fsdp=8,tensor=2")
    widths = {"tokens": 1024 * 64, "positions": 128 * 64, "kernels": 2 * 12 * 64 * 64}  # cut 16, 8 and 16 times
    whole = 2 * (2 * 64 * 2 + 64 + 64) + 2 * 64  # norms and the biases of outputs
    half = 2 * (3 * 64 + 256)  # biases of heads and of the feed-forward part
    own = widths["tokens"] / 16 + widths["positions"] / 8 + widths["kernels"] / 16 + whole + half / 2
    assert p.memory_bytes["parameters"] == 4 * own
    assert p.memory_bytes["optimizer"] == 2 * 4 * own + 4 * 2  # and two counts of steps
    assert p.fits is None and any("pip install 'jaxnlp[tpu]'" in note for note in p.notes)
    per_token = 6 * (2 * 12 * 64 * 64 + 1000 * 64) + 6 * 2 * 64 * 128
    assert p.flops == per_token * 16 * 128
    assert p.step_seconds["roofline"] == pytest.approx(p.flops / 16 / 197e12)


def test_what_cannot_fit_is_known_from_shapes_alone():
    big = dataclasses.replace(gpt.VARIANTS["gpt3-175b"], scan=True)
    p = plan.plan(dataclasses.replace(experiment(big), task=LanguageModeling(length=2048)), "v5e:4x4", "fsdp=16")
    assert p.fits is False and p.compile_seconds is None and p.step_seconds == p.mfu == p.days == {}
    assert "does not fit, by at least" in plan.text(p) and "more chips" in plan.text(p)


def test_gpus_and_cpus_are_not_compiled_for():
    p = plan.plan(experiment(), "h100:8", "fsdp=8")
    assert p.compile_seconds is None and "not compiled" in p.notes[0]
    assert p.fits is None and p.mfu == {"roofline": 1.0}
    p = plan.plan(experiment(), "cpu:2", "data=2")
    assert "not compiled" in plan.text(p) and "nan" not in plan.text(p) + plan.line(p)
    assert p.fits is None and p.step_seconds == {} and "chip" not in p.memory_bytes
    assert report.plans_png([p])


def test_pmap_keeps_everything_whole_and_jit_is_for_one_chip():
    p = plan.plan(experiment(), "h100:4", "pmap")
    assert p.mesh == "data=4" and "pmap: planned as data=4" in p.notes[0]
    assert p.memory_bytes["parameters"] == 4 * p.parameters
    assert plan.plan(experiment(), "h100:1", "jit").memory_bytes == {**p.memory_bytes, "chip": 80e9}
    with pytest.raises(ValueError, match="parallel='jit' is for 1 chip, and h100:4 has 4; allowed: pmap, auto, a mesh"):
        plan.plan(experiment(), "h100:4", "jit")


# Memory that runs out -------------------------------------------------------------------------------------------------


def test_the_compilers_refusal_is_read(compiler):
    assert plan.out_of_memory(str(compiler["refusal"])) == (128 * GiB, 15.75 * GiB)
    older = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 900.50M of 2.00G hbm. Exceeded hbm by 1.00G"
    )
    assert plan.out_of_memory(older) == (900.5 * 2**20, 2 * GiB)
    assert plan.out_of_memory("INTERNAL: 2.00G of 1.00G") is None
    assert plan.out_of_memory("RESOURCE_EXHAUSTED: no sizes") is None


def compiled(monkeypatch, *result):
    monkeypatch.setattr(plan, "_devices", lambda where, notes: jax.devices() * (where.size // 8))
    monkeypatch.setattr(parallel, "make_mesh", lambda sizes, devices: jax.sharding.Mesh(np.array(devices), ("fsdp",)))
    monkeypatch.setattr(plan, "_compile", lambda *_: result)


def test_a_plan_between_usable_and_whole_memory_does_not_fit_by_what_is_missing(monkeypatch):
    compiled(monkeypatch, None, 15.9 * GiB, 15.75 * GiB, 1.0)
    p = plan.plan(experiment(), "v5e:4x4", "fsdp=16")
    assert p.fits is False and p.step_seconds == p.mfu == p.tokens_per_second == p.days == p.chip_hours == {}
    assert "peak                            15.90 of 16, 15.75 of them usable" in plan.text(p)
    assert "does not fit, by 0.15 GiB: activations take most: model.remat=full" in plan.text(p)


def test_advice():
    p = plan.plan(experiment(), "h100:16", "fsdp=16")
    chip = p.memory_bytes["chip"]
    full = dataclasses.replace(p, remat="full")
    assert plan.advice(full) == "activations take most: accumulate, more tensor or sequence, or more chips"
    assert "model.remat=full" in plan.advice(p)
    large = dataclasses.replace(p, memory_bytes={"parameters": chip / 4, "optimizer": chip / 3, "chip": chip})
    assert "more fsdp and less data" in plan.advice(large)


# Time -----------------------------------------------------------------------------------------------------------------


def test_attention_counts_as_often_as_its_kernels_run(monkeypatch):
    """Two layers; the formula has 2 + 4 products; remat runs 2 twice, the backward pass makes 3 + 4."""
    names = ("splash_mha_fwd_residuals.2", "splash_mha_fwd_residuals.3", "splash_mha_dq_no_residuals.1")
    kernels = tuple((name, 2) for name in (*names, "splash_mha_dkv_no_residuals.1"))
    compiled(monkeypatch, hlo.Program(1.5e9, (), (*kernels, ("other", 1)), ()), 1.0 * GiB, None, 1.0)
    p = plan.plan(experiment(), "v5e:4x4", "fsdp=16")
    attention = 6 * 2 * 64 * 128 * 16 * 128 / 16 / 197e12
    assert p.step_seconds["xla"] - 1.0 == pytest.approx(attention * (2 + 2 + 3 + 4) / 6, rel=1e-3)
    assert p.fits is True and any("the kernel other is not known" in note for note in p.notes)


def test_a_head_stands_in_place_of_the_product_with_the_vocabulary():
    config = gpt.Config(n_layers=2, d_model=64, n_heads=4, vocab_size=1000, n_positions=128)
    assert config.flops(128) - config.flops(128, vocabulary=False) == 6 * 64 * 1000
    changed = dataclasses.replace(experiment(config), task=Classification(labels=("a", "b"), length=128))
    assert plan.plan(changed, "h100:8", "fsdp=8").flops == config.flops(128, vocabulary=False) * 16 * 128
    frozen = dataclasses.replace(changed, optim=Optim(freeze="embed/.*"))
    assert any("optim.freeze" in note for note in plan.plan(frozen, "h100:8", "fsdp=8").notes)


@pytest.mark.parametrize(("task", "freeze", "vocabulary"), [
    (LanguageModeling(length=128), None, True),
    (Classification(labels=("a", "b"), length=128), None, False),
    (LanguageModeling(length=128), "embed/.*", None),
])  # fmt: skip
def test_mfu_while_training(monkeypatch, task, freeze, vocabulary):
    monkeypatch.setattr(loop, "chip_of", lambda device: CHIPS["v5e"])
    e = dataclasses.replace(experiment(), task=task, optim=Optim(freeze=freeze))
    sums = {"loss": (1.0, 1.0), "accuracy": (1.0, 1.0)}
    state = TrainState(step=None, params=None, opt_state=None, ema=None, sums=sums, bad_step=None)
    run = types.SimpleNamespace(
        experiment=e, trainer=loop.trainer_for(e), layout=parallel.Jit(), _write=lambda *arguments: None
    )
    metrics = loop._Loop._log(run, state, 1, 1000, 2.0)
    expected = None if vocabulary is None else e.model.flops(128, vocabulary=vocabulary) * 500 / 197e12
    assert metrics.get("mfu") == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("topology", "mesh", "message"),
    [
        ("v5q:4x4", None, "allowed: v4:XxYxZ and v5p:XxYxZ such as v5p:8x8x8"),
        ("v5e:4x4x4", None, "topology='v5e:4x4x4'"),
        ("v5e:4x4", "fsdp=8", "is for 8 devices, and there are 16; allowed: .*fsdp=16"),
        ("h100:8", "data=8,seqence=2", "found 'seqence=2'"),
        ("h100:6", "data=2,tensor=3", "heads=4 cannot be cut by tensor=3; allowed: 1, 2, 4"),
        ("h100:32", "fsdp=32", "batch_size=16 cannot be cut by fsdp=32; allowed: 32"),
    ],
)
def test_refused(topology, mesh, message):
    with pytest.raises(ValueError, match=message):
        plan.plan(experiment(), topology, mesh)


COUNTED = {  # the model, its task, tokens of a row, and the causal attention's part, which XLA counts once more
    "gpt": (
        gpt.Config(n_layers=2, d_model=256, n_heads=4, vocab_size=4096, n_positions=128, dropout=0.0),
        LanguageModeling(length=128),
        128,
        1,
    ),
    "transformer": (
        transformer.Config(
            vocab_size=4096, n_encoder_layers=2, n_decoder_layers=3, d_model=256, n_heads=4, d_ff=512, dropout=0.0
        ),
        Translation(length=128),
        256,
        1.5 / (2 + 1.5 + 3),
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_flops_are_those_that_xla_counts(name):
    """Of a compiled gradient, unrolled: the products are nearly all there is; attention is counted whole there."""
    config, task, tokens, causal = COUNTED[name]
    model = config.build()
    batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in task.shapes(4).items()}
    params = jax.eval_shape(model.init, jax.random.key(0), batch["input_ids"])["params"]

    def loss(params):
        return task.sums(lambda **inputs: model.apply({"params": params}, **inputs), batch, training=False)["loss"][0]

    counted = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    expected = config.flops(128) + causal * config.attention_flops(128)
    assert counted == pytest.approx(4 * tokens * expected, rel=0.05)


EXPERIMENTS = pathlib.Path(cli.EXPERIMENTS)


def gpt3(**arguments) -> Experiment:
    return cli.load_experiment(EXPERIMENTS / "gpt3.py")(**arguments)


@pytest.mark.parametrize("first_rows", [None, 16, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", ["small", "175b"])
def test_gpt3_reads_the_papers_tokens_with_a_ramp_and_without(size, first_rows):
    """Brown et al., 2020, appendix B: 300 billion tokens, of which 375 million warm up and 260 have a falling rate."""
    e = gpt3(size=size, first_rows=first_rows)
    e.validate()
    read = 2048 * np.cumsum([e.rows_at(step) for step in range(e.steps)])
    assert read[-1] == pytest.approx(300e9, rel=1e-3)
    assert read[round(e.optim.warmup * e.steps)] == pytest.approx(375e6, rel=0.01)
    assert read[round(e.optim.end_at * e.steps)] == pytest.approx(260e9, rel=1e-3)
    if first_rows is not None:
        assert e.rows_at(0) == first_rows
        whole = next(step for step in range(e.steps) if e.rows_at(step) == e.batch_size)
        assert read[whole - 1] == pytest.approx({"small": 4e9, "175b": 12e9}[size], rel=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_libtpu")
def test_gpt3_has_the_papers_sizes_and_each_can_be_planned():
    """Brown et al., 2020, table 2.1: parameters in millions, to the digits that it gives. 13B's width is odd: 5,140."""
    paper = {
        "small": 125,
        "medium": 350,
        "large": 760,
        "xl": 1300,
        "2.7b": 2700,
        "6.7b": 6700,
        "13b": 13000,
        "175b": 175000,
    }
    for size, millions in paper.items():
        p = plan.plan(gpt3(size=size), "v5p:4x4x4", "auto")
        found = p.parameters / 1e6
        whole = [note for note in p.notes if "lie whole" in note]
        assert bool(whole) == (size == "13b"), whole
        # The paper's own products of its table: its XL has 24 heads of 128 at a width of 2,048.
        assert found == pytest.approx(millions, rel=0.17 if size == "xl" else 0.035), size


@pytest.mark.usefixtures("_no_libtpu")
def test_the_commands_of_the_docstrings_can_be_planned(capsys):
    for name in ("gpt2", "gpt3"):
        docstring = cli.load_experiment(EXPERIMENTS / f"{name}.py").__globals__["__doc__"]
        for command in re.findall(r"^ +jaxnlp plan (.*)$", docstring, re.MULTILINE):
            assert cli.main(["plan", *command.split()]) == 0
            assert "175,1" in (said := capsys.readouterr().out) or "174,6" in said


# A width that no power of two divides ---------------------------------------------------------------------------------

ODD = gpt.Config(
    n_layers=1, d_model=20, n_heads=4, d_head=8, vocab_size=120, n_positions=16, dropout=0.0, attention_dropout=0.0
)


def test_another_axis_is_cut_where_the_width_does_not_divide():
    sizes = {**parallel.Jit.sizes, "fsdp": 8, "tensor": 2}
    spec = lambda path, *shape: tuple(parallel.spec(path, shape, sizes))  # noqa: E731
    assert spec("mlp/in/kernel", 80, 24) == ("tensor", ("fsdp", "sequence"))
    assert spec("mlp/in/kernel", 80, 20) == (("tensor", "fsdp"), "sequence")
    assert spec("mlp/in/kernel", 72, 20) == ("tensor", "sequence")  # 36 and 20 are no multiples of 8
    assert spec("params/attention/out/kernel", 20, 4, 8) == ("sequence", "tensor", "fsdp")
    shapes = {"mlp": {"in": {"kernel": jax.ShapeDtypeStruct((72, 20), jnp.float32)}}}
    assert parallel.uncut(shapes, sizes) == {"mlp/in/kernel": 72 * 20 * 4 * (1 / 2 - 1 / 16)}
    assert parallel.uncut({"mlp": {"in": {"kernel": jax.ShapeDtypeStruct((80, 20), jnp.float32)}}}, sizes) == {}


def test_such_a_mesh_agrees_with_plain_jit():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 120, (1, 8, 17)).astype(np.int32)
    batch = {"input_ids": ids[..., :-1], "labels": ids[..., 1:], "weights": np.ones((1, 8, 16), np.float32)}

    def step(form):
        layout = parallel.layout(form)
        trainer = loop.trainer_for(experiment(ODD, optim=Optim(epsilon=1.0, lr=1.0, warmup=0.0)))

        def init(key):
            params = trainer.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
            return trainer.init(params, jax.tree.map(lambda x: x[0], batch))

        state, sums = layout.update(trainer.train_steps)(layout.make(init, jax.random.key(0)), layout.place(batch, 8))
        return jax.device_get((state.params, sums["loss"]))

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

    jax.tree.map(close, step("fsdp=8"), step("jit"))


def test_the_cost_of_such_a_width_is_said():
    """MLP matrices of 13B lie whole along fsdp=64: 4 bytes of each number thrice, in place of a 64th of it."""
    p = plan.plan(gpt3(size="13b"), "h100:64", "fsdp=64")
    [note] = [note for note in p.notes if "lie whole" in note]
    mlp = 2 * 40 * 5140 * 20560 * 12 * (1 - 1 / 64) / GiB
    assert "fsdp=64 does not divide the width 5140: blocks/layers/mlp/in/kernel, blocks/layers/mlp/out/" in note
    assert f"{mlp:.2f} GiB a chip more" in note and "fsdp=4 and data for the rest cuts all" in note
    assert not any("lie whole" in note for note in plan.plan(gpt3(size="13b"), "h100:64", "data=16,fsdp=4").notes)
    odd = dataclasses.replace(gpt3(size="13b"), batch_size=1022)
    with pytest.raises(ValueError, match=r"width=5140 cannot be cut by fsdp=7; allowed: 1, 2, 4, 5, 10, 20"):
        plan.plan(odd, "h100:7", "fsdp=7")


def test_picture_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    picture = tmp_path / "plan.png"
    arguments = ["plan", "gpt3", "--size", "175b", "--batch-size", "512", "--topology", "v5p:8x8x8", "--json"]
    assert cli.main([*arguments, "--mesh", "fsdp=64,tensor=8", "--picture", str(picture)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"fits", "mfu", "memory_bytes", "step_seconds", "tokens_per_second"} <= shown.keys()
    assert shown["parameters"] == pytest.approx(175e9, rel=0.01)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert report.plans_png([plan.plan(experiment(), "v5e:4x4", "fsdp=16")])


def test_json_of_what_is_not_known(capsys):
    assert cli.main(["plan", "gpt_char_shakespeare", "--topology", "cpu:4", "--mesh", "fsdp=4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert shown["fits"] is None and shown["mfu"] == shown["step_seconds"] == {} and shown["flops"] > 0


@pytest.mark.parametrize(("options", "message"), [
    (["--search", "--mesh", "fsdp=4"], "--mesh fsdp=4 with --search, which tries meshes of its own"),
    (["--seconds", "5"], "--seconds 5.0; allowed: more than 0, and with --search alone"),
    (["--best", "2"], "--best 2; allowed"),
    (["--search", "--seconds", "0"], "--seconds 0.0; allowed"),
])  # fmt: skip
def test_options_that_would_do_nothing_are_refused(options, message, capsys):
    assert cli.main(["plan", "gpt_char_shakespeare", "--topology", "h100:4", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_environment_is_as_it_was(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_ID", "7")
    before = dict(os.environ)
    with hlo.without_tpu():
        assert os.environ["TPU_WORKER_ID"] == "7" and os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ == before
    plan.plan(experiment(), "h100:8", "fsdp=8")
    monkeypatch.setitem(sys.modules, "libtpu", None)
    plan.plan(experiment(), "v5e:4x4", "fsdp=16")
    assert os.environ == before


def test_search_prefers_what_fits_and_is_fast(monkeypatch):
    real, made = plan.plan(experiment(), "cpu:16", "fsdp=16"), []

    def quick(changed, topology, mesh):
        if mesh == "fsdp=16":
            raise ValueError("cannot be cut")
        remat = changed.model.remat
        made.append((mesh, remat))
        times = {"xla": {"none": 1.0, "dots": 2.0, "full": 3.0}[remat], "roofline": 0.5}
        memory = {"peak": 2.0 if remat == "none" else 0.4, "chip": 1.0}
        fits = memory["peak"] < 1
        return dataclasses.replace(real, mesh=mesh, remat=remat, fits=fits, step_seconds=times, memory_bytes=memory)

    monkeypatch.setattr(plan, "plan", quick)
    monkeypatch.setattr(plan, "_devices", lambda where, notes: None)
    found = plan.search(experiment(), "v5e:4x4", 60.0)
    assert [p.remat for p in found[:2]] == ["dots", "dots"] and not found[-1].fits
    assert {remat for _, remat in made} == {"dots", "full", "none"}
    assert len(set(made)) == len(made) > 10


def test_meshes_cut_rows_and_positions_and_the_likeliest_are_first():
    few = list(plan.meshes(experiment(), plan.topology("v5e:4x4")))
    assert few[:3] == ["fsdp=16", "fsdp=8,tensor=2", "fsdp=4,tensor=4"]
    assert few.index("data=2,fsdp=8") < few.index("fsdp=8,sequence=2") < few.index("data=2,fsdp=4,sequence=2")
    many = list(plan.meshes(gpt3(size="175b"), plan.topology("v5p:8x8x8")))
    assert many[0] == "fsdp=128,tensor=4" and len(set(many)) == len(many)
    # Fewer rows than chips: heads or positions are cut as well.
    assert "fsdp=16,sequence=4" in list(plan.meshes(experiment(), plan.topology("v5e:8x8")))
    odd = dataclasses.replace(experiment(), task=LanguageModeling(length=127))
    assert not any("sequence" in mesh for mesh in plan.meshes(odd, plan.topology("v5e:4x4")))


def test_a_search_that_finds_nothing_says_why(monkeypatch):
    whole = dataclasses.replace(experiment(), batch_size=17, task=LanguageModeling(length=127))
    with pytest.raises(ValueError, match=r"h100:64 found no mesh in 60 s: no mesh cuts batch_size=17"):
        plan.search(whole, "h100:64", 60.0)
    with monkeypatch.context() as patched:
        patched.setattr(plan, "plan", lambda e, topology, mesh: parallel.parse("none"))
        with pytest.raises(ValueError, match=r"h100:8 found no mesh in 60 s: fsdp=8: parallel='none': found"):
            plan.search(experiment(), "h100:8", 60.0)
    borrowed = dataclasses.replace(experiment(), model=None, init=Pretrained("runs/other"))
    for search in (lambda e: plan.search(e, "h100:8", 60.0), lambda e: plan.plan(e, "h100:8", "fsdp=8")):
        with pytest.raises(ValueError, match="the experiment takes its model from a checkpoint"):
            search(borrowed)

    def unknown(where, notes):
        raise ValueError("libtpu does not know it")

    monkeypatch.setattr(plan, "_devices", unknown)
    with pytest.raises(ValueError, match="^libtpu does not know it"):
        plan.search(experiment(), "v5e:3x5", 60.0)


@pytest.mark.slow
def test_a_real_compilation():
    """In a process of its own, as libtpu is loaded once."""
    pytest.importorskip("libtpu")
    code = """
import json, sys
from jaxnlp import cli
sys.exit(cli.main(["plan", "gpt_char_shakespeare", "--topology", "v5e:2x2", "--json", "--batch-size", "16"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    assert shown["fits"] is True and 0 < shown["mfu"]["xla"] < shown["mfu"]["roofline"] <= 1
    assert shown["memory_bytes"]["parameters"] < shown["memory_bytes"]["peak"] < 16 * GiB
