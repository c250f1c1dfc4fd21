"""Steps that several rules for GPUs take: blocks and their operands, the epilogue, widths of loads, threads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tvm import DataType, tirx
from tvm.ir import Expr, TensorLoad
from tvm.s_tir import Schedule
from tvm.tirx import IndexMap
from tvm_ffi import structural_walk

from ..cpu.common import block_names, extents, is_reduction

# The widest load and store of one thread, and the most one asynchronous copy moves: LDG.128, LDGSTS.128.
VECTOR_BYTES = 16

# Threads of a block that has nothing to share: eight warps, of which several blocks fill an SM.
THREADS = 256

# What a kernel may declare as shared memory without asking the driver, on every GPU.
STATIC_SHARED = 48 << 10


def widest(contiguous: int, dtype: str) -> int:
    """Elements of one load: as many as VECTOR_BYTES hold and as divide a contiguous run, so that all are aligned."""
    most = max(1, VECTOR_BYTES * 8 // DataType(dtype).bits)
    return math.gcd(contiguous, most)


def widest_written(sch: Schedule, block: Any, contiguous: int) -> int:
    """The widest store of `block`, in elements, of which its code can be made.

    What is computed on the way counts too, but for what is only loaded and cast: TVM's CUDA has no vector of more than
    four fp32 that is made of a constant.
    """
    stage = sch.get(block)
    written = str(stage.writes[0].source.dtype)
    computed: set[str] = set()

    def visit(node: Any) -> None:
        if not isinstance(node, (TensorLoad, tirx.Cast, tirx.Var)):
            computed.add(str(getattr(node.ty, "dtype", "")))

    structural_walk(stage.body, (Expr, visit))
    fractions = {dtype for dtype in computed if dtype.startswith(("float", "bfloat"))}
    return min(widest(contiguous, dtype) for dtype in {written, *fractions})


def constants(sch: Schedule, block: Any) -> set[str]:
    """The dtypes of the fractions that `block` has among its terms."""
    found: list[tirx.FloatImm] = []
    structural_walk(sch.get(block).body, (tirx.FloatImm, found.append))
    return {str(number.ty.dtype) for number in found}


def operand_width(sch: Schedule, stage: Any) -> int:
    """The widest load of the tensor that `stage` reads (its last axis is contiguous)."""
    source = sch.get(stage).reads[0].source
    return widest(int(source.shape[-1]), str(source.dtype))


def inline_producers(sch: Schedule, names: Iterable[str]) -> None:
    """Inline the stages called `names`, where they are there, into what reads them."""
    there = set(block_names(sch))
    for name in names:
        if name in there:
            sch.compute_inline(sch.get_sblock(name))


def inline_consumers(sch: Schedule, anchor: Any, keep: Sequence[Any] = (), last: Any = None) -> Any | None:
    """Inline everything after `anchor` into the last block and return that; None where there is none.

    None also if the kernel is no chain of element-wise stages: a second reduction, two outputs. `last`: the block in
    which the chain ends, where others follow that are not touched.
    """
    kept = {sch.get(block).name_hint for block in (anchor, *keep)}
    if last is not None:
        names = block_names(sch)
        for name in names[names.index(sch.get(anchor).name_hint) + 1 : names.index(sch.get(last).name_hint)]:
            sch.compute_inline(sch.get_sblock(name))
        return last
    outputs = sch.get_output_blocks("root")
    if len(outputs) != 1:
        return None
    output_name = sch.get(outputs[0]).name_hint
    if output_name in kept:
        return None
    names = block_names(sch)
    for name in names[names.index(sch.get(anchor).name_hint) + 1 :]:
        block = sch.get_sblock(name)
        if is_reduction(sch, block):
            return None
        if name not in kept and name != output_name:
            sch.compute_inline(block)
    return sch.get_sblock(output_name)


def regroup(sch: Schedule, block: Any, sizes: Sequence[int]) -> bool:
    """Rewrite the loops of `block`, row-major, as loops of the given `sizes`; False where its axes do not group so."""
    own = [int(iv.dom.extent) for iv in sch.get(block).iter_vars]
    groups: list[list[int]] = []
    axis = 0
    for size in sizes:
        group: list[int] = []
        while axis < len(own) and (math.prod(own[a] for a in group) < size or not group or own[axis] == 1):
            group.append(axis)
            axis += 1
        if not group or math.prod(own[a] for a in group) != size:
            return False
        groups.append(group)
    if axis != len(own):
        return False

    def fused(*i: Any) -> list[Any]:
        found = []
        for group in groups:
            index = i[group[0]]
            for a in group[1:]:
                index = index * own[a] + i[a]
            found.append(index)
        return found

    if len(groups) != len(own):
        dtype = str(sch.get(block).iter_vars[0].var.ty.dtype)
        sch.transform_block_layout(block, IndexMap.from_func(fused, ndim=len(own), index_dtype=dtype))
    return True


def annotate_pipeline(sch: Schedule, loop: Any, copies: int, stages: int) -> None:
    """Copy for step i + stages - 1 of `loop` while step i is computed: its first `copies` blocks are the copies.

    Where the GPU has `cp.async` these become asynchronous (graph/gpu_pipeline.py); a step then waits only for its own.
    """
    sch.annotate(loop, "software_pipeline_stage", [0] * copies + [stages - 1])
    sch.annotate(loop, "software_pipeline_order", list(range(copies + 1)))
    sch.annotate(loop, "software_pipeline_async_stages", [0])


def bind_elementwise(sch: Schedule, block: Any, width: int = 1, threads: int = THREADS) -> Any:
    """A thread for every `width` neighbouring elements of a block without reduction; returns the loop over threads."""
    loops = sch.get_loops(block) or [sch.add_unit_loop(block)]
    total = math.prod(extents(sch, block))
    blocks, thread, lane = sch.split(sch.fuse(*loops), [None, min(threads, max(1, total // width)), width])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if width > 1:
        sch.vectorize(lane)
    return thread


def one_result_a_thread(sch: Schedule, anchor: Any, stored: Any = None, *, beside: bool = True) -> Schedule | None:
    """The ladder's first steps: each thread has a sum of its own, neighbours side by side or below each other."""
    output = inline_consumers(sch, anchor, last=stored)
    if output is None:
        return None
    inline_producers(sch, ["left", "right"])
    sch.set_scope(anchor, 0, "local")
    if not beside:
        *rows, column = sch.get_loops(output)
        sch.reorder(column, *rows)
    bind_elementwise(sch, output)
    sch.compute_at(anchor, sch.get_loops(output)[1], preserve_unit_loops=True)
    return sch
