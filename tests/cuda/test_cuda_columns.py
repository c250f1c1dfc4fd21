"""Global pooling of NHWC images at boundary shapes, with what Relax fuses behind it."""

from __future__ import annotations

import pytest
from tvm import te, topi
from tvmopt.schedules.cuda import LADDERS

from bench.covering import covering
from bench.cuda_proof.cases.base import HALF, Case, random
from bench.cuda_proof.cases.columns import SHAPES, case, narrow, typical
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc, scheduled
from tvmopt.machine import named_gpu
from tvmopt.registry import Recorder, apply_rule, rules


@pytest.mark.parametrize("one", typical(), ids=lambda case: case.label)
def test_opencl_gives_pytorchs_results(one: Case) -> None:
    assert scheduled(one).rule.name == "columns"
    executed(one)


@pytest.mark.slow
def test_opencl_every_triple_of_boundary_values() -> None:
    for row in covering(SHAPES, 3, lambda _: True):
        executed(case(**row))


@pytest.mark.parametrize("index", range(len(LADDERS["columns"])), ids=[rung.name for rung in LADDERS["columns"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(case("mean", 3, 7, 8, 100), choose=Taken(LADDERS["columns"], index))


def test_opencl_other_choices() -> None:
    for down in (2, 32):
        executed(case("gate", 1, 7, 8, 40), choose=Recorder({"down": down}))


def test_cuda_declines_sums_that_are_used_twice() -> None:
    """The output reads the sum itself and what was made of it: two values, of which one is never stored."""
    data = te.placeholder((2, 5, 7, 16), name="data")
    total = topi.sum(data, axis=[1, 2], keepdims=True)
    half = te.compute(total.shape, lambda *i: total(*i) * te.const(0.5, "float32"), name="half")
    out = te.compute(data.shape, lambda n, y, x, c: data[n, y, x, c] * half[n, 0, 0, c] + total[n, 0, 0, c], name="out")
    one = Case("twice", 35, te.create_prim_func([data, out]), lambda: random((2, 5, 7, 16)), lambda x: x[0])
    assert apply_rule(one.kernel, named_gpu("sm_80"), rules("cuda")) is None


@needs_nvcc
@pytest.mark.parametrize("dtype", HALF)
def test_cuda_half_precision(dtype: str) -> None:
    """Sums in fp32, and nothing on the stack."""
    for one in (narrow("mean", 1, 7, 7, 2048, dtype), narrow("gate", 1, 8, 8, 64, dtype)):
        code = compiled(one, "sm_90")
        assert scheduled(one).rule.name == "columns" and code.spilled == 0 and not code.has("LDL"), one.label


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_instructions(arch: str) -> None:
    code = compiled(case("mean", 1, 7, 7, 2048), arch)
    assert code.spilled == 0 and code.registers <= 32 and not code.has("LDL")
    assert code.has("LDG.E.CONSTANT") and code.has("STG.E")
