"""What a compiled program's text says: loops, exchanges, conditionals."""

import pathlib

import numpy as np
import pytest

from jaxnlp.training import hlo
from jaxnlp.training.chips import CHIPS

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


@pytest.fixture(scope="module")
def compiler():
    """What libtpu printed: tests/golden/compiler.py."""
    return np.load(pathlib.Path(__file__).parents[1] / "golden" / "compiler.npz")


def test_a_real_programs_text(compiler):
    """Three layers' matrices of 256 x 256 bfloat16 numbers, cut in 4; then the branch that gathers all of them."""
    program = hlo.read(str(compiler["program"]))
    matrix = 256 * 256 * 2
    assert program.collectives == (
        hlo.Collective("all-gather", 4, matrix, times=3),
        hlo.Collective("reduce-scatter", 4, matrix, times=3),
        hlo.Collective("all-gather", 4, 3 * matrix),
    )
    assert program.unknown_loops == program.kernels == ()
    # 6 products of 256 x 256 by 16 rows in the layers, and the branch's 3 of 64 rows: no less than at the peak rate.
    least = 2 * 256 * 256 * (3 * 16 + 2 * 3 * 16 + 3 * 64) / (CHIPS["v5e"].peak / CHIPS["v5e"].clock)
    assert program.cycles > least


def line(instruction: str) -> str:
    return f"HloModule x, num_partitions=64\n\nENTRY %main (a: f32[8]) -> f32[8] {{\n  {instruction}\n}}\n"


@pytest.mark.parametrize(("array", "size"), [
    ("f8e4m3fn[8,16]", 128), ("s4[8,16]", 64), ("u64[16]", 128), ("(f64[2], pred[3])", 19), ("c64[4]", 32),
])  # fmt: skip
def test_arrays_of_every_dtype_count(array, size):
    [found] = hlo.read(line(f"%x = {array}{{0}} all-reduce(%a), replica_groups={{{{0,1}}}}")).collectives
    assert found.size == size


@pytest.mark.parametrize(("groups", "size"), [
    ("{}", 64),
    ("{{0,8,16},{1,2,3}}", 3),
    ("[16,4]<=[64]", 4),
    ("mesh['x'=8,'y'=8] {'y'}", 8),
    ("mesh['x'=8,'y'=8], device_ids=([8,8]T(1,0)) {'x':(2)4,'y'}", 32),
])  # fmt: skip
def test_groups_in_every_form_count(groups, size):
    [found] = hlo.read(line(f"%x = f32[8]{{0}} all-gather(%a), replica_groups={groups}, dimensions={{0}}")).collectives
    assert found.group == size


@pytest.mark.parametrize(
    "named", ["branch_computations={%few, %many}", "true_computation=%few, false_computation=%many"]
)
def test_of_a_conditional_the_branch_with_the_most_cycles_counts(named):
    body = '%y = f32[8]{0} fusion(%p), calls=%f, config={"estimated_cycles":"N"}'
    of = lambda name, n: f"%{name} (p: f32[8]) -> f32[8] {{\n  {body.replace('N', n)}\n}}\n"  # noqa: E731
    entry = line(f"%x = f32[8]{{0}} conditional(%a, %b, %b), {named}")
    assert hlo.read("HloModule x\n\n" + of("few", "5") + of("many", "9") + entry).cycles == 9


@pytest.mark.parametrize(("instruction", "message"), [
    ("%x = q3[8]{0} all-gather(%a), replica_groups={}", "an exchange of arrays of q3; allowed: pred"),
    ("%x = f32[8]{0} all-gather(%a), replica_groups=sphere", "devices that are not understood: %x = f32"),
])  # fmt: skip
def test_exchanges_that_are_not_understood_are_no_silent_zeros(instruction, message):
    with pytest.raises(ValueError, match=message):
        hlo.read(line(instruction))
