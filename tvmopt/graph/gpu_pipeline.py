"""TVM's lowering of a GPU's kernels: scheduled TensorIR by one list of passes, what is written in TIRx by another.

A module may hold both. TVM picks one pipeline for all its functions, and neither takes the other's: TIRx says what each
thread does, and has no blocks to place. What MetaSchedule puts on tensor cores has `wmma` fragments. Where their sums
take the operands' place in shared memory, TVM 0.27 misses that they are fp32 there and the operands were fp16, and
refuses its own code ("tvm_access_ptr element type must match the source buffer"): such functions are lowered with its
other way of sharing memory.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.s_tir import SBlock
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline, tirx_pipeline
from tvm_ffi import structural_walk

from tvmopt.graph.gpu_compiler import compiling
from tvmopt.machine_gpu import has_async_copy
from tvmopt.nvcc import Code

NAME = "tvmopt-gpu"
# The attribute of a function that is written in TIRx.
IN_TIRX = "tvmopt.in_tirx"


def is_in_tirx(func: object) -> bool:
    """Whether `func` is a kernel written in TIRx: it needs no schedule."""
    return isinstance(func, tvm.tirx.PrimFunc) and func.attrs is not None and bool(func.attrs.get(IN_TIRX, False))


def has_fragments(func: object) -> bool:
    """Whether `func` is a scheduled kernel with `wmma` fragments."""
    if not isinstance(func, tvm.tirx.PrimFunc):
        return False
    blocks: list[SBlock] = []
    structural_walk(func.body, (SBlock, blocks.append))
    return any(buffer.scope().startswith("wmma") for block in blocks for buffer in block.alloc_buffers)


def _is_other(func: object) -> bool:
    return not is_in_tirx(func) and not has_fragments(func)


def _pipeline() -> tuple[tvm.transform.Pass, object, object]:
    # What follows, of host code and of device code, is the same for both.
    lower, finish_host, finish_device = default_s_tir_pipeline()
    lower_tirx, *_ = tirx_pipeline()

    def lower_fragments(module: tvm.IRModule) -> tvm.IRModule:
        around = tvm.transform.PassContext.current()
        config = {**around.config, "tirx.merge_static_smem": True}
        with tvm.transform.PassContext(around.opt_level, instruments=list(around.instruments), config=config):
            return lower(module)

    @tvm.transform.module_pass(opt_level=0, name="tvmopt.LowerEach")
    def lower_each(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        lowered = tvm.IRModule({}, attrs=module.attrs)
        for is_one, through in (is_in_tirx, lower_tirx), (has_fragments, lower_fragments), (_is_other, lower):
            part = {var: func for var, func in module.functions_items() if is_one(func)}
            if part:
                lowered.update(through(tvm.IRModule(part, attrs=module.attrs)))
        return lowered

    return lower_each, finish_host, finish_device


def compile_module(
    module: tvm.IRModule, target: tvm.target.Target, *, fast_math: bool = False, made: dict[str, Code] | None = None,
    **how: Any,
) -> Any:  # fmt: skip
    """`tvm.compile` for the GPU `target`: what its schedules mark as copied ahead is, where that GPU can.

    Where TVM's CUDA runtime loads, it has the code compiled here and now: by nvcc, which is noted in `made` (code by
    its source's digest). `how` goes to `tvm.compile`. The configuration and instruments of a pass context around the
    call hold.
    """
    register_tir_pipeline(NAME, _pipeline)
    around = tvm.transform.PassContext.current()
    arch = str(target.attrs["arch"])
    config = {**around.config, "tirx.use_async_copy": has_async_copy(arch)}
    own = compiling(arch, fast_math=fast_math, made=made)
    with own, target, tvm.transform.PassContext(around.opt_level, instruments=list(around.instruments), config=config):
        return tvm.compile(module, target=target, tir_pipeline=NAME, **how)
