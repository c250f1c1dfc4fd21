"""Block-sparse convolution (operators/conv2d_sparse.py): sparse_nest.py over the rows and columns of an image.

The border is made per task, in the core's own cache, as for the dense convolution: of the rows it has, TVM knows that a
kept block lies in as many as the window is high. It is copied by registers: lane by lane, the copy took most of the
time at stride 2 (16 to 32 channels, 32x32, 76% zeros: 10.8 us, now 4.1; 128 channels, 56x56, 80%: 347 us, now 226).
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.sym import detect_linear_equation

from tvmopt.machine import Machine

from .common import (
    Rung,
    divisors,
    extent,
    find_block,
    fuse_epilogue,
    parallelize,
    pays_in_parallel,
    place_pad,
)
from .sparse_nest import LADDER as NEST_LADDER
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

LADDER = [*NEST_LADDER, Rung("pad", "the border made per task, in the core's own cache", {"pad": "stage"})]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_sparse`; declines any other."""
    if kernel.op != "conv2d_sparse":
        return None
    anchor, pad = find_block(sch, "conv2d_sparse"), find_block(sch, "pad")
    n, out_blocks, height, width, lanes, kept, group = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    source = source_shape(sch, anchor)
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None:
        return None
    stride = row_stride(sch, anchor, pad)
    taps = int(sch.get(pad).iter_vars[1].dom.extent) - (height - 1) * stride if pad is not None else stride

    # Register tile: pixels of one row, and several rows only where a row leaves registers empty.
    most = machine.registers - NO_SUMS
    column_options = [c for c in divisors(width) if c <= most]
    # Of the border every task makes a copy of its own, which it writes and reads once more.
    row_bytes = 4 * source[1] * source[3] * lanes if pad is None else 3 * 4 * source[2] * source[3]
    # A pixel's input is read again for every tap of the window, which the border's rows tell to be so high.
    pixel_bytes = row_bytes / width / (1 if pad is None else 3 * taps**2)
    columns = choose("columns", column_options, largest_tile(column_options, pixel_bytes, machine))
    row_options = [r for r in divisors(height) if r == 1 or (columns == width and r * columns <= most)]
    rows = choose("rows", row_options, row_options[-1])
    vectors = choose_vectors(out_blocks, rows * columns, machine.registers, choose)
    sizes = Sizes(
        batch=n, out_blocks=out_blocks, pixels=height, kept=kept * group,
        weight_bytes=4 * out_blocks * lanes * kept * group, input_bytes=row_bytes * stride,
    )  # fmt: skip
    bands = [b for b in divisors(height) if b % rows == 0]
    band, share = choose_tasks(
        sizes, out_blocks // vectors, bands, lambda b: ((b - 1) * stride + taps) / (b * stride), machine, choose
    )
    unroll = choose_turn(kept, choose)

    ln, lco, ly, lx, lci = sch.get_loops(output)
    co_share, co_group, co_vector = sch.split(lco, [share, None, vectors])
    y_band, y_rows, y_tile = sch.split(ly, [None, band // rows, rows])
    x_tiles, x_tile = sch.split(lx, [None, columns])
    between = [y_rows, x_tiles, co_group] if stays(choose) else [co_group, y_rows, x_tiles]
    sch.reorder(ln, co_share, y_band, *between, y_tile, x_tile, co_vector, lci)
    task = sch.fuse(ln, co_share, y_band)
    parallel = parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, between[-1], preserve_unit_loops=True)
    if pad is not None:
        place_pad(sch, pad, task, parallel, choose)
        fill_by_blocks(sch, pad)
    finish(sch, anchor, output, spatial=5, order=[0, 2, 3, 1, 4], unroll=unroll)
    return sch


def row_stride(sch: Schedule, anchor: Any, pad: Any) -> int:
    """How many rows of the input lie between two neighbouring rows of the output."""
    block = sch.get(anchor)
    index = block.reads[0].region[1 if pad is not None else 2].min
    return int(detect_linear_equation(index, [block.iter_vars[2].var])[0])


def fill_by_blocks(sch: Schedule, pad: Any) -> None:
    """Fill a border's rows block by block and column by column, so that no index is divided out again."""
    *_, row, _lane = sch.get_loops(pad)
    blocks = int(sch.get(pad).reads[0].source.ty.shape[1])
    if extent(sch, row) == int(sch.get(pad).iter_vars[2].dom.extent):
        sch.split(row, [blocks, None])
