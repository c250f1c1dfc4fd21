"""A case through a rule, and what has to hold of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from bench.cuda_proof import check, opencl
from bench.cuda_proof.cases.base import Case
from bench.cuda_proof.device import NVCC, NVDISASM, MachineCode, assemble
from tests.cuda.counts import count
from tvmopt.machine import named_gpu
from tvmopt.registry import Scheduled

# nvcc takes seconds a kernel: so many of the pairs of boundary values are compiled for each architecture, others each.
COMPILED = 24

ARCHITECTURES = ("sm_80", "sm_90")

needs_nvcc = pytest.mark.skipif(NVCC is None or NVDISASM is None, reason="no nvcc, or no nvdisasm (PyPI has it)")


@cache
def has_pocl() -> bool:
    """Whether PoCL is here, asked when a test needs it."""
    return opencl.queue() is not None


def scheduled(case: Case, arch: str = "sm_80", choose: Callable[..., Any] | None = None) -> Scheduled:
    """The case by the first rule that takes it; every rule's cases must be taken."""
    found = check.scheduled(case, named_gpu(arch), choose)
    assert found is not None, f"{case.label}: every rule declines"
    return found


def compiled(case: Case, arch: str, choose: Callable[..., Any] | None = None) -> MachineCode:
    """The case's machine code for `arch`; asserts what holds for every kernel."""
    made = scheduled(case, arch, choose)
    machine = named_gpu(arch)
    source = check.source(made, machine)
    code = assemble(source.text, source.arch)
    problems = check.wrong(code, source.dynamic, machine)
    assert not problems, f"{case.label}: {problems}"
    count("compiled", made.rule.name, case.label, arch)
    return code


def executed(case: Case, choose: Callable[..., Any] | None = None) -> None:
    """Run the case through PoCL, if it has the dtypes: the result is PyTorch's, and nothing else was written."""
    if not has_pocl():
        pytest.skip("no PoCL or no pyopencl")
    made = scheduled(case, choose=choose)
    if not all(opencl.has(str(param.dtype)) for param in case.func.params):
        return  # half precision: only compiled here
    found = check.execute(case, made)
    assert found.error <= found.allowed, f"{case.label} {made.choices}: {found.error:.2e}"
    count("executed", made.rule.name, case.label, "opencl")
