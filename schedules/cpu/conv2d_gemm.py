"""Convolution as a matrix product (operators/conv2d_gemm.py): rows are the patches of the image (im2col).

The nest is product.py's. The matrix of patches is not built as a whole, which would cost `kh x kw` times the image in
memory traffic: every task builds the rows of its own band, in its core's L2, and multiplies them while they are there.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import find_block, fuse_epilogue, parallelize, pays_in_parallel, vectorize_fill
from .product import choose_tiling, finish, pixel_loops, split_output


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_gemm`; declines any other."""
    if kernel.op != "conv2d_gemm":
        return None
    anchor, patches = find_block(sch, "conv2d_gemm"), find_block(sch, "im2col")
    n, panels, pixels, lanes, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    output = fuse_epilogue(sch, anchor, [patches])
    if output is None:
        return None
    ln, lco, lpixel, lci = pixel_loops(sch, output)
    tiling = choose_tiling(
        batch=n, rows=pixels, panels=panels, lanes=lanes, depth=depth, inner_depth=depth, machine=machine, choose=choose
    )
    task, tiles = split_output(sch, [ln], lco, lpixel, lci, tiling)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, tiles, preserve_unit_loops=True)
    sch.compute_at(patches, task, preserve_unit_loops=True)
    # The channels of a patch stand side by side in the blocked input: copied a register at a time.
    lk = sch.get_loops(patches)[-1]
    if depth % machine.lanes == 0:
        _, lane = sch.split(lk, [None, machine.lanes])
        sch.vectorize(lane)
    else:
        vectorize_fill(sch, patches)
    finish(sch, anchor, output, spatial=4, order=[0, 2, 1, 3], tiling=tiling)
    return sch
