"""Block-sparse 1x1 convolution (operators/conv2d_sparse.py, `_pointwise`): sparse_nest.py over an image's pixels."""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import divisors, find_block, fuse_epilogue, parallelize, pays_in_parallel, stage
from .product import pixel_loops
from .sparse_nest import (
    NO_SUMS,
    Sizes,
    choose_tasks,
    choose_turn,
    choose_vectors,
    finish,
    largest_tile,
    source_shape,
    stays,
)


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_sparse_pointwise`; declines any other."""
    if kernel.op != "conv2d_sparse_pointwise":
        return None
    anchor, pad = find_block(sch, "conv2d_sparse_pointwise"), find_block(sch, "pad")
    n, out_blocks, pixels, lanes, kept, group = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    source = source_shape(sch, anchor)
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None:
        return None
    row_options = [r for r in divisors(pixels) if r <= machine.registers - NO_SUMS]
    rows = choose("rows", row_options, largest_tile(row_options, 4 * source[1] * source[-1], machine))
    vectors = choose_vectors(out_blocks, rows, machine.registers, choose)
    sizes = Sizes(
        batch=n, out_blocks=out_blocks, pixels=pixels, kept=kept * group,
        weight_bytes=4 * out_blocks * lanes * kept * group, input_bytes=4 * source[1] * source[-1],
    )  # fmt: skip
    bands = [b for b in divisors(pixels) if b % rows == 0]
    band, share = choose_tasks(sizes, out_blocks // vectors, bands, lambda _: 1.0, machine, choose)
    unroll = choose_turn(kept, choose)

    ln, lco, lpixel, lci = pixel_loops(sch, output)
    co_share, co_group, co_vector = sch.split(lco, [share, None, vectors])
    p_band, p_tiles, p_tile = sch.split(lpixel, [None, band // rows, rows])
    between = [p_tiles, co_group] if stays(choose) else [co_group, p_tiles]
    sch.reorder(ln, co_share, p_band, *between, p_tile, co_vector, lci)
    task = sch.fuse(ln, co_share, p_band)
    parallel = parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, between[-1], preserve_unit_loops=True)
    if pad is not None:
        # Only where no tile divides the pixels. Per task it would be another distance between blocks of channels.
        stage(sch, pad, parallel)
    finish(sch, anchor, output, spatial=4, order=[0, 2, 1, 3], unroll=unroll)
    return sch
