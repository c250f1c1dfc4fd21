"""A case through a rule: compiled to machine code and looked at, or executed through PoCL and compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir.instrument import pass_instrument
from tvm_ffi import structural_walk

from tvmopt.graph import gpu_pipeline
from tvmopt.machine import GpuMachine
from tvmopt.registry import Scheduled, apply_rule, rules, write_kernels

from . import opencl
from .cases.base import Case
from .device import MachineCode

# ptxas keeps an address of a scattered 4-byte copy on the stack now and then, which costs nothing beside the copy.
SPILLED = 32
# What a block has without asking for more.
SHARED = 48 << 10

# Relative to the value, which is at most the largest value that errors are divided by.
HALF_AN_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}

Choose = Callable[..., Any]
Run = Callable[[Any, list[np.ndarray]], np.ndarray]


def scheduled(case: Case, machine: GpuMachine, choose: Choose | None = None) -> Scheduled | None:
    """The case by the first rule that takes it; None where all decline."""
    return apply_rule(case.kernel, machine, rules("cuda"), choose)


@dataclass(frozen=True)
class Source:
    """CUDA source of a scheduled kernel, and what nvcc is to compile it for.

    Bytes of shared memory, the most of any of its kernels: `static` is declared in the source, `dynamic` asked for by
    the launch, of which ptxas knows nothing.
    """

    text: str
    arch: str
    static: int
    dynamic: int


def source(made: Any, machine: GpuMachine) -> Source:
    """What TVM makes of a scheduled kernel: a rule's, or a candidate of either search, all with a `schedule`."""
    static, dynamic = [0], [0]

    @pass_instrument
    class Split:
        def run_after_pass(self, module: tvm.IRModule, info: Any) -> None:
            if info.name.endswith("SplitHostDevice"):
                static.extend(_allocated(func, "shared") for func in module.functions.values())
                dynamic.extend(_allocated(func, "shared.dyn") for func in module.functions.values())

    with tvm.transform.PassContext(instruments=[Split()]):
        built = gpu_pipeline.compile_module(write_kernels(made.schedule.mod), machine.target())
    text = str(built.mod.imports[0].inspect_source())
    # What only Hopper has needs the architecture's own name, as tvmopt.nvcc gives it.
    return Source(text, f"{machine.arch}a" if "wgmma" in text else machine.arch, max(static), max(dynamic))


def _allocated(func: tirx.PrimFunc, scope: str) -> int:
    nodes: list[Any] = []
    structural_walk(func.body, (tirx.AllocBuffer, nodes.append))
    buffers = [node.buffer for node in nodes if node.buffer.scope() == scope]
    return sum(math.prod(map(int, b.shape)) * tvm.DataType(str(b.dtype)).itemsize for b in buffers)


def too_much_shared(static: int, dynamic: int, machine: GpuMachine) -> list[str]:
    """What the launch would be refused for: bytes of shared memory, declared and asked for, beyond the GPU's limits."""
    found = []
    if static > SHARED:
        found.append(f"{static} bytes of static shared memory, at most {SHARED}")
    if static + dynamic > machine.shared_per_block:
        limit = f"{machine.arch} gives a block {machine.shared_per_block}"
        found.append(f"{static + dynamic} bytes of shared memory, {limit}")
    return found


def wrong(code: MachineCode, dynamic: int, machine: GpuMachine) -> list[str]:
    """What may not be in any kernel's machine code, or its launch, and is in this one's."""
    found = too_much_shared(code.shared, dynamic, machine)
    if code.spilled > SPILLED:
        found.append(f"{code.spilled} bytes spilled")
    # An exact division (FCHK) or reciprocal, of which fast-math has none, looks for what is no number by comparisons
    # and additions of that kind; a reciprocal has no instruction to know it by, but its PTX flushes nothing.
    unexplained = code.flushing and not code.has("FCHK") and code.flushes
    if unexplained or any(name.startswith(("FFMA", "FMUL")) for name in code.flushing):
        found.append(f"fast-math: {', '.join(code.flushing)}")
    return found


@dataclass(frozen=True)
class Execution:
    """The largest error against PyTorch in float64, relative to the largest value, and how large it may be."""

    error: float
    allowed: float


def execute(case: Case, made: Any, run: Run | None = None) -> Execution:
    """Runs a scheduled kernel, by default on the CPU; raises AssertionError where it wrote outside of its buffers."""
    inputs = case.inputs()
    wanted = case.expected(inputs)
    got = run(made.schedule, inputs) if run is not None else opencl.run(made.schedule, inputs)[-1]
    scale = max(1.0, float(np.abs(wanted).max()))
    error = float(np.abs(got.astype("float64") - wanted.reshape(got.shape)).max()) / scale
    # Sums are in float32 everywhere; in half precision what is summed is rounded, and what the epilogue makes of it,
    # also where float32 is handed out in the end.
    rounding = case.roundings * HALF_AN_ULP.get(str(case.func.params[0].dtype), 0.0)
    return Execution(error, 2e-6 * float(np.sqrt(case.depth)) + rounding)
