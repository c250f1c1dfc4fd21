"""A lowered and scheduled module to an executable for a GPU, which need not be here.

The virtual machine runs the network: every kernel is a launch, and memory is planned ahead. The machine code comes
from nvcc and not from TVM, which would compile on the receiver's machine, with fast-math.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tvm
from tvm import relax, tirx

from tvmopt.errors import ModelError, one_line
from tvmopt.graph import gpu_pipeline
from tvmopt.graph.gpu_compiler import digest
from tvmopt.graph.gpu_default import schedule_default, unbound
from tvmopt.nvcc import Code, compile_source, find_nvcc

if TYPE_CHECKING:
    from tvmopt.machine import GpuMachine


@dataclass(frozen=True)
class GpuBuild:
    """`executable`; its CUDA `source`; `code` compiled from it, None where there is no nvcc (the source is shipped)."""

    executable: tvm.runtime.Executable
    source: str
    code: Code | None


def with_threads(module: tvm.IRModule, machine: GpuMachine) -> tvm.IRModule:
    """`module` with a default schedule for every kernel that has none.

    Raises:
        ModelError: a schedule that binds some of its kernel's loops only.
    """
    updated = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    for var, func in module.functions_items():
        if not isinstance(func, tirx.PrimFunc) or gpu_pipeline.is_in_tirx(func) or not unbound(func):
            continue
        if _is_partial(func):
            raise ModelError(f"kernel {var.name_hint}: its schedule leaves {', '.join(unbound(func))} to no thread")
        made = schedule_default(func, machine.target())
        symbol = func.attrs.get("global_symbol") if func.attrs is not None else None
        updated[var] = made.with_attr("global_symbol", symbol) if symbol is not None else made
    return updated


def _is_partial(func: tirx.PrimFunc) -> bool:
    from tvm_ffi import structural_walk

    loops: list[tirx.For] = []
    structural_walk(func.body, (tirx.For, loops.append))
    return any(loop.thread_binding is not None for loop in loops)


def memory_passes(cuda_graphs: bool) -> list[tvm.transform.Pass]:
    """Memory planned ahead of time, calls lowered to the virtual machine's.

    cuda_graphs: what the planned memory makes static is captured at the first call, and replayed as one launch.
    """
    transform = relax.transform
    return [
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        *([transform.RewriteCUDAGraph()] if cuda_graphs else []),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]


def generate(module: tvm.IRModule, machine: GpuMachine, *, fast_math: bool) -> GpuBuild:
    """Code for a module whose memory is planned.

    Raises:
        ModelError: TVM's code generator or nvcc refuses it.
    """
    made: dict[str, Code] = {}
    try:
        executable = gpu_pipeline.compile_module(
            module, machine.target(), fast_math=fast_math, made=made, relax_pipeline=None
        )
    except Exception as error:
        raise ModelError(f"code generation failed: {one_line(error)}") from error
    source = cuda_source(executable.mod)
    code = made.get(digest(source))
    if code is None and source and find_nvcc() is not None:
        code = compile_source(source, machine.arch, fast_math=fast_math)
    return GpuBuild(executable, source, code)


def cuda_source(module: tvm.runtime.Module) -> str:
    """The CUDA source in a built module and what it imports."""
    if module.kind == "cuda":
        return str(module.inspect_source("cuda") or module.inspect_source())
    return "".join(cuda_source(imported) for imported in module.imports)
