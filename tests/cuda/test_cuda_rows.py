"""Softmax, layer norm and reductions over the last axes: rows below, at and above a warp, a block and what it holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax, te, tirx, topi
from tvm.relax import transform
from tvm.s_tir import Schedule
from tvm.script import relax as R
from tvmopt.schedules.cuda import LADDERS

from bench.ladder import Taken
from tests.cuda import opencl
from tests.cuda.cases import Arrays, Case, random
from tests.cuda.support import ARCHITECTURES, compiled, executed, has_pocl, needs_nvcc, scheduled
from tests.kernels.covering import covering
from tvmopt.graph.gpu_default import schedule_default
from tvmopt.machine import named_gpu
from tvmopt.registry import Recorder, apply_rule, rules

Emit = Callable[[relax.BlockBuilder, list[relax.Var]], relax.Expr]


def fused(label: str, shapes: list[tuple[int, ...]], depth: int, emit: Emit, expected: Any) -> Case:
    """What Relax makes of `emit`, as one kernel."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"p{i}", R.Tensor(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", params):
        with builder.dataflow():
            value = builder.emit_output(emit(builder, params))
        builder.emit_func_output(value)
    passes = [transform.LegalizeOps(), transform.AnnotateTIROpPattern(), transform.FuseOps(), transform.FuseTIR()]
    module = tvm.transform.Sequential(passes)(builder.get())
    functions = [f for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc)]
    assert len(functions) == 1, label

    def wanted(inputs: Arrays) -> np.ndarray:
        return expected(*(torch.from_numpy(x.astype("float64")) for x in inputs)).numpy()

    return Case(label, depth, functions[0], partial(random, *shapes), wanted)


def _halved(data: te.Tensor) -> te.Tensor:
    return topi.nn.softmax(te.compute(data.shape, lambda *i: data(*i) * te.const(0.5, data.dtype), name="half"))


def case(kind: str, lead: tuple[int, ...], length: int) -> Case:
    """A `kind` of kernel over the last axis of (*lead, length)."""
    shape = (*lead, length)
    label = f"{kind} {'x'.join(map(str, shape))}"
    op, functional = relax.op, torch.nn.functional
    one: dict[str, tuple[Emit, Any]] = {
        "softmax": (lambda b, p: op.nn.softmax(p[0]), lambda x: torch.softmax(x, -1)),
        "log_softmax": (lambda b, p: op.nn.log_softmax(p[0]), lambda x: torch.log_softmax(x, -1)),
        "mean": (lambda b, p: op.mean(p[0], -1), lambda x: x.mean(-1)),
        "sum": (lambda b, p: op.sum(p[0], -1, keepdims=True), lambda x: x.sum(-1, keepdim=True)),
        "max": (lambda b, p: op.max(p[0], -1), lambda x: x.amax(-1)),
        # What comes before is computed once, and kept as the row.
        "halved": (lambda b, p: b.emit_te(_halved, p[0]), lambda x: torch.softmax(x / 2, -1)),
    }  # fmt: skip
    if kind == "layer_norm":
        emit: Emit = lambda b, p: op.nn.layer_norm(*p, axes=[-1])  # noqa: E731
        expected = lambda x, g, b: functional.layer_norm(x, (length,), g, b)  # noqa: E731
        return fused(label, [shape, (length,), (length,)], length, emit, expected)
    if kind == "layer_norm_2d":
        # Over an image and its channels: two axes are one row.
        whole = (*lead, 3, length)
        emit = lambda b, p: op.nn.layer_norm(*p, axes=[-2, -1])  # noqa: E731
        expected = lambda x, g, b: functional.layer_norm(x, (3, length), g, b)  # noqa: E731
        return fused(label, [whole, (3, length), (3, length)], 3 * length, emit, expected)
    return fused(label, [shape], length, *one[kind])


KINDS = ["softmax", "log_softmax", "layer_norm", "layer_norm_2d", "mean", "sum", "max", "halved"]
SHAPES: dict[str, list[Any]] = {
    "kind": KINDS,
    "lead": [(1,), (3,), (129,), (2, 5), (2, 3, 67)],
    "length": [2, 3, 17, 31, 32, 33, 197, 768, 1000, 1024, 4097],
}


def cases(strength: int) -> list[Case]:
    """Kernels in which every `strength` boundary values occur together."""
    return [case(**row) for row in covering(SHAPES, strength, lambda _: True)]


FEW = [
    case("softmax", (3,), 3), case("softmax", (129,), 17), case("softmax", (2, 3, 67), 197),
    case("softmax", (1,), 4097), case("log_softmax", (1,), 1000), case("layer_norm", (2, 197), 768),
    case("layer_norm", (129,), 33),
    case("layer_norm_2d", (3,), 31), case("mean", (2, 5), 32), case("sum", (129,), 1000), case("max", (3,), 31),
    case("halved", (2, 5), 1024),
]  # fmt: skip


@pytest.mark.parametrize("one", FEW, ids=lambda case: case.label)
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
