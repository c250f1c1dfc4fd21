"""A case through a rule: compiled to machine code, or executed through PoCL and compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm

from tests.cuda import opencl
from tests.cuda.cases import Case
from tests.cuda.counts import count
from tests.cuda.device import NVCC, NVDISASM, MachineCode, assemble
from tvmopt.graph import gpu_pipeline
from tvmopt.machine import named_gpu
from tvmopt.registry import Scheduled, apply_rule, rules, write_kernels

# nvcc takes seconds a kernel: so many of the pairs of boundary values are compiled for each architecture, others each.
COMPILED = 24

ARCHITECTURES = ("sm_80", "sm_90")
SPILLED = 32
ASYNC_COPIES = {"tirx.use_async_copy": True}

needs_nvcc = pytest.mark.skipif(NVCC is None or NVDISASM is None, reason="no nvcc, or no nvdisasm (PyPI has it)")


@cache
def has_pocl() -> bool:
    """Whether PoCL is here, asked when a test needs it."""
    return opencl.queue() is not None


def scheduled(case: Case, arch: str = "sm_80", choose: Callable[..., Any] | None = None) -> Scheduled:
    """The case by the first rule that takes it; every rule's cases must be taken."""
    found = apply_rule(case.kernel, named_gpu(arch), rules("cuda"), choose)
    assert found is not None, f"{case.label}: every rule declines"
    return found


def compiled(case: Case, arch: str, choose: Callable[..., Any] | None = None) -> MachineCode:
    """The case's machine code for `arch`; asserts what holds for every kernel."""
    machine = named_gpu(arch)
    made = scheduled(case, arch, choose)
    with machine.target(), tvm.transform.PassContext(config=ASYNC_COPIES):
        module = write_kernels(made.schedule.mod)
        built = tvm.compile(module, target=machine.target(), tir_pipeline=gpu_pipeline.register())
    source = built.mod.imports[0].inspect_source()
    # What only Hopper has needs the architecture's own name, as tvmopt.nvcc gives it.
    code = assemble(source, f"{arch}a" if "wgmma" in source else arch)
    # ptxas keeps an address of a scattered 4-byte copy on the stack now and then, which costs nothing beside the copy.
    assert code.spilled <= SPILLED, f"{case.label}: {code.spilled} bytes spilled"
    assert code.shared <= 48 << 10
    flushing = [name for name in code.instructions if ".FTZ" in name]
    # An exact division, which fast-math has none of, looks for what is no number by comparisons of that kind.
    assert not flushing or code.has("FCHK"), f"fast-math: {flushing}"
    assert not any(name.startswith(("FFMA", "FMUL")) for name in flushing), f"fast-math: {flushing}"
    count("compiled", made.rule.name, case.label, arch)
    return code


def executed(case: Case, choose: Callable[..., Any] | None = None) -> None:
    """Run the case through PoCL: the result is PyTorch's, and nothing else was written."""
    if not has_pocl():
        pytest.skip("no PoCL or no pyopencl")
    made = scheduled(case, choose=choose)
    inputs = case.inputs()
    wanted = case.expected(inputs)
    got = opencl.run(made.schedule, inputs)[-1]
    scale = max(1.0, float(np.abs(wanted).max()))
    error = float(np.abs(got.astype("float64") - wanted.reshape(got.shape)).max()) / scale
    assert error <= 2e-6 * np.sqrt(case.depth), f"{case.label} {made.choices}: {error:.2e}"
    count("executed", made.rule.name, case.label, "opencl")
