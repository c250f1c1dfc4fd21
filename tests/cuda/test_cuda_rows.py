"""Softmax, layer norm and reductions over the last axes: rows below, at and above a warp, a block and what it holds."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import tvm
from tvm import te, tirx, topi
from tvm.s_tir import Schedule
from tvmopt.schedules.cuda import LADDERS

from bench.cuda_proof import opencl
from bench.cuda_proof.cases.base import HALF, Arrays, Case, random
from bench.cuda_proof.cases.rows import case, cases, narrow, typical
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, compiled, executed, has_pocl, needs_nvcc, scheduled
from tvmopt.graph.gpu_default import schedule_default
from tvmopt.machine import named_gpu
from tvmopt.registry import Recorder, apply_rule, rules


@pytest.mark.parametrize("one", typical(), ids=lambda case: case.label)
def test_opencl_gives_pytorchs_results(one: Case) -> None:
    assert scheduled(one).rule.name == "rows"
    executed(one)


@pytest.mark.slow
def test_opencl_every_combination_of_boundary_values() -> None:
    for one in cases(3):
        executed(one)


@pytest.mark.parametrize("index", range(len(LADDERS["rows"])), ids=[rung.name for rung in LADDERS["rows"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(case("layer_norm", (530,), 36), choose=Taken(LADDERS["rows"], index))


def test_opencl_other_choices() -> None:
    # What search may choose, far from the rule's own.
    for given in ({"threads": 1, "rows": 32}, {"threads": 8, "width": 2, "rows": 4}):
        executed(case("softmax", (67,), 20), choose=Recorder(given))


def test_opencl_softmax_whose_rows_are_chosen() -> None:
    """As masked attention has it: what comes behind reads a value of each row, and another tensor of all elements."""
    shapes = [(2, 3, 37, 37), (2, 3, 37, 1), (2, 3, 37, 37)]
    data, chosen, other = (te.placeholder(shape, name=name) for shape, name in zip(shapes, "XCO", strict=True))
    power = topi.nn.softmax(data)
    wide = te.compute(shapes[0], lambda b, h, i, j: chosen[b, h, i, 0], name="wide")
    zero = te.const(0, "float32")
    out = te.compute(shapes[0], lambda *i: tirx.Select(wide(*i) > zero, power(*i), other(*i)), name="out")

    def wanted(inputs: Arrays) -> np.ndarray:
        x, c, o = (torch.from_numpy(array.astype("float64")) for array in inputs)
        return torch.where(c > 0, torch.softmax(x, -1), o).numpy()

    one = Case("masked", 37, te.create_prim_func([data, chosen, other, out]), partial(random, *shapes), wanted)
    assert scheduled(one).rule.name == "rows"
    executed(one)


def test_opencl_rows_too_long_for_registers() -> None:
    long = case("softmax", (2,), 40000)
    assert scheduled(long).choices["keep"] == "no"
    executed(long)


def test_cuda_declines_what_has_no_rows() -> None:
    """Rows of one element, and a sum over the first axis."""
    data = te.placeholder((8, 16), name="data")
    k = te.reduce_axis((0, 8), "k")
    first = te.create_prim_func([data, te.compute((16,), lambda i: te.sum(data[k, i], axis=k), name="down")])
    ours = [rule for rule in rules("cuda") if rule.name == "rows"]
    declined = [case("softmax", (5,), 1), Case("down", 8, first, lambda: random((8, 16)), lambda x: x[0].sum(0))]
    for one in declined:
        assert apply_rule(one.kernel, named_gpu("sm_80"), ours) is None, one.label


def test_opencl_rows_of_one_element_by_default() -> None:
    if not has_pocl():
        pytest.skip("no PoCL or no pyopencl")
    one = case("softmax", (5,), 1)
    default = schedule_default(one.func, named_gpu("sm_80").target())
    sch = Schedule(tvm.IRModule({"main": default.with_attr("global_symbol", "main")}))
    assert np.array_equal(opencl.run(sch, one.inputs())[-1], np.ones((5, 1), "float32"))


@needs_nvcc
@pytest.mark.parametrize("dtype", HALF)
def test_cuda_half_precision(dtype: str) -> None:
    """Sums in fp32, and nothing on the stack."""
    for one in (narrow("softmax", (2, 8, 128), 1024, dtype), narrow("mean", (129,), 768, dtype)):
        code = compiled(one, "sm_90")
        assert scheduled(one).rule.name == "rows" and code.spilled == 0 and not code.has("LDL"), one.label


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["softmax", "layer_norm", "max"])
def test_cuda_instructions(kind: str, arch: str) -> None:
    """The row is read once, 128 bits at a time, and stays in registers: nothing is on the stack."""
    code = compiled(case(kind, (2, 8, 128), 1024), arch)
    # A full SM leaves a thread 32 registers of each of its 2048; the kept row takes as many again.
    assert code.spilled == 0 and code.registers <= 64
    assert not code.has("LDL") and not code.has("STL")
    loads = {"softmax": 4, "layer_norm": 12, "max": 4}[kind]
    assert sum(n for name, n in code.instructions.items() if name.startswith("LDG")) == loads
    stores = "STG.E" if kind == "max" else "STG.E.128"
    assert code.has("LDG.E.128.CONSTANT") and code.has(stores) and code.has("SHFL.DOWN")


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_a_warp_needs_no_barrier(arch: str) -> None:
    code = compiled(case("softmax", (1182,), 197), arch)
    assert code.has("SHFL.DOWN") and not code.has("BAR.SYNC") and not code.has("LDL") and code.shared == 0


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_boundary_shapes_compile(arch: str) -> None:
    for one in cases(2)[:: 2 if arch == "sm_80" else 3]:
        code = compiled(one, arch)
        assert not code.has("LDL"), one.label
