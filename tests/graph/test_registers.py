"""Where the compiler puts what a schedule keeps in registers: read from the code it makes."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.s_tir import Schedule

from bench.kernel_cases import layer
from bench.kernel_contenders import main_kernel
from bench.kernel_sparsity import pruned
from tvmopt.graph.host_pipeline import compile_kernels
from tvmopt.graph.pipeline import lower_model
from tvmopt.graph.registers import MOST_BYTES
from tvmopt.machine import detect
from tvmopt.registry import apply_rule, rules

POOL = "TVMBackendAllocWorkspace"


def tiled_sums(tile: int, scope: str) -> tvm.IRModule:
    """Sums over the rows of (64, 4096), `tile` columns at a time in a buffer of `scope`, then doubled."""
    data = te.placeholder((64, 4096), name="data")
    k = te.reduce_axis((0, 64), "k")
    sums = te.compute((4096,), lambda x: te.sum(data[k, x], axis=k), name="sums")
    doubled = te.compute((4096,), lambda x: sums[x] * 2.0, name="doubled")
    schedule = Schedule(te.create_prim_func([data, doubled]))
    block = schedule.get_sblock("sums")
    outer, _ = schedule.split(schedule.get_loops(schedule.get_sblock("doubled"))[0], [None, tile])
    schedule.compute_at(block, outer)
    schedule.set_scope(block, 0, scope)
    return tvm.IRModule({"main": schedule.mod["main"].with_attr("global_symbol", "main")})


@pytest.mark.parametrize(
    ("tile", "scope", "from_the_pool"),
    [
        (MOST_BYTES // 4, "local", False),
        (2 * MOST_BYTES // 4, "local", True),
        # Not a schedule's registers: as TVM has it.
        (MOST_BYTES // 4, "global", True),
    ],
)
def test_small_locals_are_on_the_stack_and_others_in_the_pool(tile: int, scope: str, from_the_pool: bool) -> None:
    built = compile_kernels(tiled_sums(tile, scope), detect().target())
    assert (POOL in built.mod.inspect_source("ll")) is from_the_pool
    data = np.random.default_rng(0).standard_normal((64, 4096), dtype=np.float32)
    out = tvm.runtime.empty((4096,), "float32")
    built.jit()["main"](tvm.runtime.tensor(data), out)
    np.testing.assert_allclose(out.numpy(), 2 * data.astype("float64").sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "shape", "sparsity"),
    [
        ("conv2d", "1x64x56x56,64,1", 0.0), ("conv2d", "1x64x56x56,64,1", 0.9), ("conv2d", "1x16x32x32,16,3,1,1", 0.8),
        ("gemm", "32x64x256", 0.0), ("gemm", "1x1024x1024", 0.8),
    ],
)  # fmt: skip
def test_the_sums_of_a_rule_are_in_no_memory(op: str, shape: str, sparsity: float) -> None:
    machine = detect()
    strategy = {"conv2d" if op == "conv2d" else "dense": "sparse"} if sparsity else {}
    lowered = lower_model(pruned(op, shape, sparsity, "block-16x1"), machine, strategy)
    kernel = main_kernel(lowered, layer(op, shape))
    assert ("sparse" in kernel.op) is bool(sparsity)
    made = apply_rule(kernel, machine, rules(machine.kind))
    assert made is not None and "local" in made.schedule.mod.script()
    module = tvm.IRModule({"main": made.schedule.mod["main"].with_attr("global_symbol", "main")})
    plain = tvm.compile(module, target=machine.target()).mod.inspect_source("ll")
    ours = compile_kernels(module, machine.target()).mod.inspect_source("ll")
    # What a task has of the border of an image, or of turned samples, is memory: it is not the sums'.
    others = len(re.findall(r"alloca \[\d+ x float\]|alloca \[\d+ x <", ours))
    assert ours.count(f"load ptr, ptr @__{POOL}") < plain.count(f"load ptr, ptr @__{POOL}")
    assert others == 0
