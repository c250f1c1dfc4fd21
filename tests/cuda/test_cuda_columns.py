"""Global pooling of NHWC images at boundary shapes, with what Relax fuses behind it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax, te, tirx, topi
from tvm.relax import transform
from tvm.script import relax as R
from tvmopt.schedules.cuda import LADDERS

from bench.ladder import Taken
from tests.cuda.cases import Arrays, Case, random
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc, scheduled
from tests.cuda.test_cuda_pool import pool
from tests.kernels.covering import covering
from tvmopt.machine import named_gpu
from tvmopt.registry import Recorder, apply_rule, rules


def case(kind: str, batch: int, height: int, width: int, channels: int) -> Case:
    """The mean over an image ("mean"), or the image times the sigmoid of it ("gate"); its largest values ("max")."""
    shape = (batch, height, width, channels)
    builder, op = relax.BlockBuilder(), relax.op
    data = relax.Var("data", R.Tensor(shape, "float32"))
    with builder.function("main", [data]):
        with builder.dataflow():
            reduce = op.max if kind == "max" else op.mean
            value = builder.emit(reduce(data, axis=[1, 2], keepdims=True))
            if kind == "gate":
                value = builder.emit(op.multiply(data, builder.emit(op.sigmoid(value))))
            out = builder.emit_output(value)
        builder.emit_func_output(out)
    passes = [transform.LegalizeOps(), transform.AnnotateTIROpPattern(), transform.FuseOps(), transform.FuseTIR()]
    module = tvm.transform.Sequential(passes)(builder.get())
    functions = [f for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc)]
    assert len(functions) == 1
    label = f"{kind} {'x'.join(map(str, shape))}"
    return Case(label, height * width, functions[0], partial(random, shape), partial(_expected, kind=kind))


def _expected(inputs: Arrays, kind: str) -> np.ndarray:
    image = torch.from_numpy(inputs[0].astype("float64"))
    reduced = image.amax((1, 2), keepdim=True) if kind == "max" else image.mean((1, 2), keepdim=True)
    return (image * torch.sigmoid(reduced) if kind == "gate" else reduced).numpy()


SHAPES: dict[str, list[Any]] = {
    "kind": ["mean", "gate", "max"],
    "batch": [1, 3],
    "height": [1, 7, 8, 13],
    "width": [2, 7, 32],
    "channels": [3, 17, 31, 32, 33, 197, 1000, 2048],
}
FEW = [
    case("mean", 1, 7, 7, 2048), case("mean", 3, 13, 2, 33), case("max", 1, 8, 7, 3), case("gate", 3, 7, 7, 31),
    case("gate", 1, 8, 8, 64), case("mean", 3, 1, 32, 1000),
    # More taps than a window has that is unrolled.
    pool("avg", (1, 13, 13, 40), 13, 1, 0),
]  # fmt: skip


@pytest.mark.parametrize("one", FEW, ids=lambda case: case.label)
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
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_instructions(arch: str) -> None:
    code = compiled(case("mean", 1, 7, 7, 2048), arch)
    assert code.spilled == 0 and code.registers <= 32 and not code.has("LDL")
    assert code.has("LDG.E.CONSTANT") and code.has("STG.E")
