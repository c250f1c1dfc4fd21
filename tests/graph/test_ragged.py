"""Loops over rows of unequal length are as long as the row, and read nothing behind its end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.script import ir as I
from tvm.script import tirx as T

from tests.graph.test_skip_borders import _among_no_numbers
from tests.kernels.support import side_by_side
from tests.kernels.test_unstructured import STRATEGY, thin
from tvmopt.graph.host_pipeline import compile_kernels
from tvmopt.graph.kernels import random_integers
from tvmopt.graph.pipeline import lower_model
from tvmopt.graph.ragged import ragged_loops
from tvmopt.machine import detect
from tvmopt.registry import rules
from tvmopt.variants import schedule_manual


@I.ir_module
class Rows:
    @T.prim_func(private=True, s_tir=True)
    def main(
        a: T.Buffer((64,), "float32"), ends: T.Buffer((4,), "int32"), sums: T.Buffer((4,), "float32"), y: T.int32
    ):
        for i in range(64):
            sums[0] = sums[0] + T.if_then_else(i < ends[y], a[i], T.float32(0))
            sums[1] = sums[1] + T.if_then_else(i < ends[y], a[i] * a[i], T.float32(0))
        # Two bounds; a statement without one; a bound that moves; one that the loop writes; another value than zero.
        for j in range(64):
            sums[0] = sums[0] + T.if_then_else(j < ends[y], a[j], T.float32(0))
            sums[1] = sums[1] + T.if_then_else(j < ends[y + 1], a[j], T.float32(0))
        for k in range(64):
            sums[0] = sums[0] + T.if_then_else(k < ends[y], a[k], T.float32(0))
            sums[1] = sums[1] + a[k]
        for m in range(64):
            sums[0] = sums[0] + T.if_then_else(m < ends[m % 4], a[m], T.float32(0))
        for n in range(64):
            sums[0] = sums[0] + T.if_then_else(n < T.Cast("int32", sums[0]), a[n], T.float32(0))
        for p in range(64):
            sums[0] = sums[0] + T.if_then_else(p < ends[y], a[p], T.float32(1))


def test_a_loop_ends_where_its_row_does() -> None:
    text = ragged_loops(Rows)["main"].script(show_meta=False)
    loops = [line.strip() for line in text.splitlines() if line.strip().startswith("for ")]
    assert loops == [
        "for i in range(T.min(64, ends[y])):", *(f"for {name} in range(64):" for name in "jkmnp"),
    ]  # fmt: skip
    lines = [line.strip() for line in text.splitlines()]
    start = lines.index(loops[0])
    assert lines[start + 1 : start + 3] == ["sums[0] = sums[0] + a[i]", "sums[1] = sums[1] + a[i] * a[i]"]
    assert text.count("if_then_else") == 6


def test_a_loop_without_a_turn_is_none() -> None:
    built = compile_kernels(tvm.IRModule({"main": Rows["main"].with_attr("global_symbol", "main")}), detect().target())
    sums = tvm.runtime.tensor(np.zeros(4, np.float32))
    ends = tvm.runtime.tensor(np.array([0, 0, -3, 64], np.int32))
    built.jit()["main"](tvm.runtime.tensor(np.ones(64, np.float32)), ends, sums, 2)
    # Of a bound under zero only the loops that have none add anything: j's second, k's, m's for the last end, p's ones.
    assert sums.numpy()[1] == 64 + 64


LAYERS = {
    "3x3": (nn.Conv2d(17, 33, 3, padding=1), (1, 17, 13, 9)),
    "strides": (nn.Conv2d(16, 16, 3, 2, padding=1), (2, 16, 9, 14)),
    "dilation": (nn.Conv2d(3, 16, 3, dilation=2, padding=3), (1, 3, 8, 8)),
    "1x1": (nn.Conv2d(48, 17, 1), (1, 48, 4, 4)),
    "1x1, ragged": (nn.Conv2d(48, 17, 1), (1, 48, 7, 7)),
    "bands": (nn.Conv2d(16, 16, 3, padding=1), (1, 16, 56, 56)),
    "one row": (nn.Linear(100, 40), (1, 100)),
    "rows": (nn.Linear(100, 40), (37, 100)),
    "tiles": (nn.Linear(33, 17), (449, 33)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_but_the_input_is_read(name: str) -> None:
    """Every array lies between values that are no numbers: a multiply-add with one of them would show."""
    layer, shape = LAYERS[name]
    model = side_by_side([layer], [shape])
    thin(layer, "some", 0)
    machine = detect()
    (kernel,) = (one for one in lower_model(model, machine, STRATEGY).kernels if "unstructured" in one.op)
    scheduled, _ = schedule_manual(kernel, machine, rules(machine.kind))
    library, plain = (
        compile_kernels(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), machine.target()).jit()
        for func in (scheduled, kernel.func)
    )
    generator = np.random.default_rng(0)
    arguments, surrounded = [], []
    for param in kernel.func.params:
        extents, dtype = [int(extent) for extent in param.shape], str(param.dtype)
        integers = dtype == "int32"
        drawn = random_integers(kernel.func, extents, generator) if integers else generator.standard_normal(extents)
        value = drawn.astype(dtype)
        arguments.append(tvm.runtime.tensor(value))
        surrounded.append(_among_no_numbers(value))
    library["main"](*surrounded)
    plain["main"](*arguments)
    assert torch.isfinite(torch.as_tensor(surrounded[-1].numpy())).all()
    np.testing.assert_allclose(surrounded[-1].numpy(), arguments[-1].numpy(), rtol=1e-4, atol=1e-4)
