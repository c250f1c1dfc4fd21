"""1x1 convolution (operators/conv2d_direct.py, `_pointwise`): a matrix product whose rows are the image's pixels.

The input stays in the blocked layout; a tile may begin and end anywhere in the image, so a 7x7 image is 7 tiles of 7
pixels and a 14x14 one 14 tiles of 14. The nest is product.py's.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import find_block, fuse_epilogue, parallelize, pays_in_parallel, vectorize_fill
from .product import choose_tiling, finish, pixel_loops, split_output


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_pointwise`; declines any other."""
    if kernel.op != "conv2d_pointwise":
        return None
    anchor, pad = find_block(sch, "conv2d_pointwise"), find_block(sch, "pad")
    n, panels, pixels, lanes, in_blocks, in_lanes = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None:
        return None
    ln, lco, lpixel, lci = pixel_loops(sch, output)
    tiling = choose_tiling(
        batch=n, rows=pixels, panels=panels, lanes=lanes, depth=in_blocks * in_lanes, inner_depth=in_lanes,
        machine=machine, choose=choose,
    )  # fmt: skip
    task, tiles = split_output(sch, [ln], lco, lpixel, lci, tiling)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, tiles, preserve_unit_loops=True)
    if pad is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    finish(sch, anchor, output, spatial=4, order=[0, 2, 1, 3], tiling=tiling)
    return sch
