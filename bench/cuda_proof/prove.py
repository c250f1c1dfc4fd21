"""Takes cases through their rules, step by step: one row of a result for every case and step.

nvcc runs in processes beside this one, as many as there are cores, while kernels are scheduled and executed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tvmopt.errors import TargetError, one_line
from tvmopt.machine import GpuMachine, available_cores, detect_gpu, named_gpu
from tvmopt.operators import GPU_PRODUCTS
from tvmopt.registry import Scheduled

from . import check, opencl
from .cases.base import Case
from .device import NVCC, NVDISASM, MachineCode, assemble

STEPS = ("compile", "execute", "gpu")
# What the CPU multiplies and adds in some seconds, a GPU's thread after the other.
MOST_FLOPS = 1e9
# Scheduled as for this GPU where it is executed on the CPU.
EXECUTED_AS = "sm_80"
TENSOR_CORES = ("HMMA", "HGMMA")

Row = dict[str, Any]


@dataclass(frozen=True)
class Waiting:
    """A case that nvcc compiles, and its row so far."""

    case: Case
    machine: GpuMachine
    row: Row
    code: Future[MachineCode]


def require(steps: Sequence[str]) -> None:
    """Raises TargetError, with how to mend it, where something that a step needs is missing."""
    others = "or leave {0} out of --steps"
    if "compile" in steps and NVCC is None:
        raise TargetError(f"nvcc is missing: install CUDA's toolkit, {others.format('compile')}")
    if "compile" in steps and NVDISASM is None:
        raise TargetError(f"nvdisasm is missing: pip install nvidia-cuda-nvdisasm, {others.format('compile')}")
    if "execute" in steps and opencl.queue() is None:
        raise TargetError(
            "PoCL is missing: pip install pyopencl, and Debian's pocl-opencl-icd with "
            f"OCL_ICD_VENDORS=/etc/OpenCL/vendors, {others.format('execute')}"
        )
    if "gpu" in steps:
        from tvmopt.runtime.gpu import runtime_missing

        if missing := runtime_missing():
            raise TargetError(f"{missing}: {others.format('gpu').removeprefix('or ')}")


def row(what: str, made: Scheduled | None, case: Case, arch: str) -> Row:
    """A row of which only the case is known."""
    rule, version = (made.rule.name, made.rule.version) if made is not None else ("none", 0)
    return {"what": what, "rule": rule, "version": version, "shape": case.label, "arch": arch, "problem": None}


def on_tensor_cores(case: Case) -> bool:
    """Whether it is a product in half precision: only a GPU can run what the rules make of it."""
    return str(case.func.params[0].dtype) in ("float16", "bfloat16") and case.kernel.op in GPU_PRODUCTS


def executes(case: Case) -> bool:
    """Whether the CPU runs it, and in seconds."""
    dtypes = {str(param.dtype) for param in case.func.params}
    return not on_tensor_cores(case) and case.kernel.flops <= MOST_FLOPS and all(map(opencl.has, dtypes))


def expected(cases: Sequence[Case], steps: Sequence[str], archs: Sequence[str]) -> dict[str, int]:
    """How many rows of each kind there will be."""
    compiled = len(cases) * len(archs) if "compile" in steps else 0
    executed = sum(map(executes, cases)) if "execute" in steps else 0
    executed += len(cases) if "gpu" in steps else 0
    return {what: count for what, count in (("compiled", compiled), ("executed", executed)) if count}


def prove(cases: Iterable[Case], steps: Sequence[str], archs: Sequence[str], done: Callable[[Row], None]) -> None:
    """Calls `done` with every row as it is there, in this thread. What an interrupt cuts short has no row.

    Raises:
        TargetError: the GPU answers this process no more; the last row says after what.
    """
    pool = ThreadPoolExecutor(available_cores())
    waiting: list[Waiting] = []
    try:
        for case in cases:
            if "compile" in steps:
                waiting += [_begin(case, arch, pool) for arch in archs]
            if "execute" in steps and executes(case):
                done(_judged(case, named_gpu(EXECUTED_AS), "opencl"))
            if "gpu" in steps:
                found = _on_gpu(case)
                done(found)
                _require_answer(found)
            # Not too far ahead of nvcc: every waiting kernel is some hundred kilobytes of source.
            waiting = _finish(waiting, len(waiting) - 4 * available_cores(), done)
        _finish(waiting, len(waiting), done)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(case: Case, arch: str, pool: ThreadPoolExecutor) -> Waiting:
    machine = named_gpu(arch)
    made = None
    try:
        made = check.scheduled(case, machine)
        assert made is not None, "every rule declines"
        source = check.source(made, machine)
    except Exception as error:  # as in _finish, which reports it
        failed: Future[MachineCode] = Future()
        failed.set_exception(error)
        return Waiting(case, machine, row("compiled", made, case, arch), failed)
    found = {**row("compiled", made, case, arch), "dynamic_shared": source.dynamic}
    return Waiting(case, machine, found, pool.submit(assemble, source.text, source.arch))


def _finish(waiting: list[Waiting], least: int, done: Callable[[Row], None]) -> list[Waiting]:
    """Reports those that are done, and waits for the first `least`; gives the others."""
    left = []
    for number, one in enumerate(waiting):
        if number >= least and not one.code.done():
            left.append(one)
            continue
        try:
            figures = _figures(one.code.result(), one)
        except Exception as error:  # one case's problem is not the others'
            figures = {"problem": _told(error)}
        done({**one.row, **figures})
    return left


def _figures(code: MachineCode, of: Waiting) -> Row:
    counts = code.instructions
    dynamic = of.row["dynamic_shared"]
    tensor_core = sum(n for name, n in counts.items() if name.startswith(TENSOR_CORES))
    problems = check.wrong(code, dynamic, of.machine)
    if on_tensor_cores(of.case) and not tensor_core:
        problems.append("no instruction of the tensor cores")
    return {
        "registers": code.registers,
        "spilled": code.spilled,
        "shared": code.shared + dynamic,
        "tensor_core": tensor_core,
        "async_copies": sum(n for name, n in counts.items() if name.startswith(("LDGSTS", "UBLKCP", "UTMALDG"))),
        "instructions": sum(counts.values()),
        "problem": "; ".join(problems) or None,
    }


def _judged(case: Case, machine: GpuMachine, where: str, run: check.Run | None = None) -> Row:
    made = None
    try:
        made = check.scheduled(case, machine)
        assert made is not None, "every rule declines"
        result = check.execute(case, made, run)
    except Exception as error:  # one case's problem is not the others'
        return {**row("executed", made, case, where), "problem": _told(error)}
    found = row("executed", made, case, where)
    # A comparison that is false for what is no number, too.
    right = result.error <= result.allowed
    problem = None if right else f"error {result.error:.1e}, allowed {result.allowed:.1e}"
    return {**found, "error": result.error, "allowed": result.allowed, "problem": problem}


def _on_gpu(case: Case) -> Row:
    from . import gpu

    machine = detect_gpu()
    assert machine is not None, "require() has seen one"
    return _judged(case, machine, machine.arch, lambda schedule, inputs: gpu.run(schedule, inputs, machine.target()))


def _told(error: Exception) -> str:
    """What a row says of what went wrong; what is asserted speaks for itself."""
    return one_line(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {one_line(error)}"


def _require_answer(found: Row) -> None:
    """Raises TargetError where the case of the row `found` has spoilt CUDA for this process."""
    if found["problem"] is None:
        return
    import tvm

    from tvmopt.runtime.gpu import answers

    if not answers(tvm.cuda(0)):
        raise TargetError(
            f"the GPU answers no more after {found['rule']}, {found['shape']} ({found['problem']}): the cases behind "
            "it were not run"
        )
