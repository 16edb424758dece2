"""Plans: what a compiled program's text says, what shapes alone tell, and errors; with libtpu a real compilation."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxnlp import cli
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training import hlo, plan, report
from jaxnlp.training.experiment import Data, Experiment

GiB = 2**30

# Two loops: one of 3 rounds within one of 4 that counts in twos; each way in which XLA writes groups.
PROGRAM = """HloModule jit_step, is_scheduled=true

%inner_body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = bf16[8,16]{1,0} get-tuple-element(%p), index=1
  %f = bf16[8,16]{1,0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  %g = bf16[8,64]{1,0} all-gather(%f), replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %t = (s32[], bf16[8,16]{1,0}) tuple(%next, %f)
}

%inner_cond (q: (s32[], bf16[8,16])) -> pred[] {
  %q = (s32[], bf16[8,16]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%j, %three), direction=LT
}

%all-reduce-scatter.1 (r: f32[32]) -> f32[8] {
  %r = f32[32]{0} parameter(0)
  %s = f32[32]{0} all-reduce(%r), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %d = f32[8]{0} dynamic-slice(%s, %k), dynamic_slice_sizes={8}
}

%outer_body (u: (u32[], f32[32])) -> (u32[], f32[32]) {
  %u = (u32[], f32[32]{0}) parameter(0)
  %n = u32[]{:T(128)} get-tuple-element(%u), index=0
  %two = u32[]{:T(128)} constant(2)
  %m = u32[]{:T(128)} add(%n, %two)
  %v = f32[32]{0} get-tuple-element(%u), index=1
  %w = (s32[], bf16[8,16]{1,0}) while(%z), condition=%inner_cond, body=%inner_body
  %a = f32[8]{0} fusion(%v), kind=kCustom, calls=%all-reduce-scatter.1
  %c = (f32[32]{0}, f32[32]{0}, u32[], u32[]) collective-permute-start(%v), source_target_pairs={{0,1},{1,0}}
  ROOT %o = (u32[], f32[32]{0}) tuple(%m, %v)
}

%outer_cond (y: (u32[], f32[32])) -> pred[] {
  %y = (u32[], f32[32]{0}) parameter(0)
  %h = u32[]{:T(128)} get-tuple-element(%y), index=0
  %four = u32[]{:T(128)} constant(4)
  ROOT %l = pred[] compare(%h, %four), direction=LT
}

ENTRY %main (a: f32[32]) -> f32[32] {
  %a = f32[32]{0} parameter(0)
  %w = (u32[], f32[32]{0}) while(%a), condition=%outer_cond, body=%outer_body
  %k = f32[32]{0} custom-call(%a), custom_call_target="tpu_custom_call"
  %b = f32[32]{0} all-reduce(%a), replica_groups=mesh['x'=2,'y'=4] {'x','y'}, to_apply=%add
  ROOT %e = f32[32]{0} fusion(%b), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"7"}
}
"""


def test_what_runs_in_loops_counts_as_often_as_it_runs():
    program = hlo.read(PROGRAM)
    assert program.cycles == 2 * 3 * 100 + 7
    assert set(program.collectives) == {
        hlo.Collective("all-gather", group=4, size=8 * 64 * 2, times=6, hidden=False),
        hlo.Collective("reduce-scatter", group=4, size=32 * 4, times=2, hidden=False),
        hlo.Collective("collective-permute", group=2, size=32 * 4, times=2, hidden=True),
        hlo.Collective("all-reduce", group=8, size=32 * 4, times=1, hidden=False),
    }
    assert program.kernels == (("k", 1),)
    assert program.unknown_loops == ()


def test_a_loop_that_is_not_understood_is_named():
    assert hlo.read(PROGRAM.replace("constant(3)", "parameter(1)")).unknown_loops == ("w",)


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


@pytest.mark.usefixtures("_no_libtpu")
def test_what_cannot_fit_is_known_from_shapes_alone():
    big = dataclasses.replace(gpt.VARIANTS["gpt3-175b"], scan=True)
    p = plan.plan(dataclasses.replace(experiment(big), task=LanguageModeling(length=2048)), "v5e:4x4", "fsdp=16")
    assert p.fits is False
    assert "does not fit, by" in plan.text(p) and "more chips" in plan.text(p)


def test_gpus_and_cpus_are_not_compiled_for():
    p = plan.plan(experiment(), "h100:8", "fsdp=8")
    assert p.compile_seconds is None and "not compiled" in p.notes[0]
    assert "not compiled" in plan.text(plan.plan(experiment(), "cpu:2", "data=2"))


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


def test_flops_are_those_that_xla_counts():
    """Of a compiled gradient, unrolled: the products are nearly all there is; attention is counted whole there."""
    config = gpt.Config(n_layers=2, d_model=256, n_heads=4, vocab_size=4096, n_positions=128, dropout=0.0)
    model, task = config.build(), LanguageModeling(length=128)
    batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in task.shapes(4).items()}
    params = jax.eval_shape(model.init, jax.random.key(0), batch["input_ids"])["params"]

    def loss(params):
        return task.sums(lambda **inputs: model.apply({"params": params}, **inputs), batch, training=False)["loss"][0]

    counted = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(4 * 128 * (config.flops(128) + config.attention_flops(128)), rel=0.05)


def test_gpt3_has_the_papers_sizes():
    """Brown et al., 2020, table 2.1: parameters in millions, to the digits that it gives."""
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
        config = dataclasses.replace(gpt.VARIANTS[f"gpt3-{size}"], scan=True)
        shapes = jax.eval_shape(config.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        found = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) / 1e6
        # The paper's own products of its table: its XL has 24 heads of 128 at a width of 2,048.
        assert found == pytest.approx(millions, rel=0.17 if size == "xl" else 0.035), size


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
    found = plan.search(experiment(), "v5e:4x4", 60.0)
    assert [p.remat for p in found[:2]] == ["dots", "dots"] and not found[-1].fits
    assert {remat for _, remat in made} == {"dots", "full", "none"}
    assert len(set(made)) == len(made) > 10


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
