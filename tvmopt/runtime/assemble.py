"""A scheduled module to something that can be called: on this CPU, or on a GPU that may not be here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.graph.pipeline import build, build_for_gpu
from tvmopt.machine import GpuMachine
from tvmopt.registry import write_kernels
from tvmopt.runtime.executable import Compiled
from tvmopt.runtime.gpu import CompiledForGpu
from tvmopt.runtime.signature import Signature

if TYPE_CHECKING:
    import tvm
    from torch.export import ExportedProgram

    from tvmopt.machine import AnyMachine


def assemble(
    module: tvm.IRModule,
    program: ExportedProgram,
    machine: AnyMachine,
    meta: dict[str, Any],
    *,
    dump_dir: Path | None = None,
    cuda_graphs: bool = False,
    fast_math: bool = False,
    started: float | None = None,
) -> Compiled:
    """Builds `module`, a network of scheduled kernels, with `meta` and what is known here of the build.

    started: when compiling began (`time.perf_counter`), by default now. `cuda_graphs` and `fast_math` are of a GPU's
    code only.

    Raises:
        ModelError: a code generator refuses it.
    """
    started = time.perf_counter() if started is None else started
    meta = {**meta, "target": str(machine.target()), "machine": machine, "threads": machine.cores}
    signature = Signature.from_exported(program)
    if isinstance(machine, GpuMachine):
        module = write_kernels(module, machine.kind)
        built = build_for_gpu(module, machine, dump_dir, cuda_graphs=cuda_graphs, fast_math=fast_math)
        meta |= {"cuda_graphs": cuda_graphs, "fast_math": fast_math, "compile_s": time.perf_counter() - started}
        return CompiledForGpu(built.executable, signature, meta, built.source, built.code)
    executable = build(module, machine, dump_dir)
    return Compiled(executable, signature, {**meta, "compile_s": time.perf_counter() - started})
