"""Block-sparse convolution (operators/conv2d_sparse.py): sparse_nest.py over the rows and columns of an image.

The input is read as it is. A tap that lies outside of the image is left out for the pixels that it is outside for,
which lowering makes of a condition at every multiply-add (tvmopt/graph/borders.py): a branch for a row of pixels, and
one for the first and the last. Kept blocks are sorted so that these branches seldom change. Pixels are inside the
blocks of output channels of a tile, as each of those has taps of its own.

Before, every task made a copy of its rows with a border, in its own cache: over 16 channels at 32x32, 61% zeros, one
thread took 17.3 us and takes 15.2; 32 at 16x16, 75%: 11.0 and 9.4; 64 at 8x8, 83%: 7.3 and 5.9; 512 at 7x7, 80%: 408
and 338; 64 at 56x56, 80%: 425 and 396. It is more than the copy: of a 3x3 window over 8x8 pixels, 16% of the
multiply-adds are with the border.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.sym import detect_linear_equation

from tvmopt.machine import Machine

from .common import (
    divisors,
    find_block,
    fuse_epilogue,
    parallelize,
    pays_in_parallel,
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
    source,
    source_shape,
    stays,
)

LADDER = NEST_LADDER


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_sparse`; declines any other."""
    if kernel.op != "conv2d_sparse":
        return None
    anchor = find_block(sch, "conv2d_sparse")
    n, out_blocks, height, width, lanes, kept, group = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    shape = source_shape(sch, anchor)
    output = fuse_epilogue(sch, anchor)
    if output is None:
        return None
    stride, taps = row_stride(sch, anchor), window(sch, anchor)
    # Rows between those that are read come along: a band has not less input for that.
    span = max(taps, stride)

    # Register tile: pixels of one row, and several rows only where a row leaves registers empty.
    most = machine.registers - NO_SUMS
    column_options = [c for c in divisors(width) if c <= most]
    row_bytes = 4 * shape[1] * shape[3] * lanes
    # A pixel's input is read again for every tap of the window.
    pixel_bytes = row_bytes / width / taps**2
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
        sizes, out_blocks // vectors, bands, lambda b: ((b - 1) * stride + span) / (b * stride), machine, choose
    )
    unroll = choose_turn(kept, choose)

    ln, lco, ly, lx, lci = sch.get_loops(output)
    co_share, co_group, co_vector = sch.split(lco, [share, None, vectors])
    y_band, y_rows, y_tile = sch.split(ly, [None, band // rows, rows])
    x_tiles, x_tile = sch.split(lx, [None, columns])
    between = [y_rows, x_tiles, co_group] if stays(choose) else [co_group, y_rows, x_tiles]
    sch.reorder(ln, co_share, y_band, *between, y_tile, x_tile, co_vector, lci)
    task = sch.fuse(ln, co_share, y_band)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, between[-1], preserve_unit_loops=True)
    finish(sch, anchor, output, spatial=5, order=[0, 1, 2, 3, 4], unroll=unroll)
    return sch


def row_stride(sch: Schedule, anchor: Any) -> int:
    """How many rows of the input lie between two neighbouring rows of the output."""
    index = source(sch, anchor).region[2].min
    return int(detect_linear_equation(index, [sch.get(anchor).iter_vars[2].var])[0])


def window(sch: Schedule, anchor: Any) -> int:
    """Rows of the window, by the grid of its offsets: columns, rows, blocks of channels, channels."""
    _, rows, *_ = str(sch.get(anchor).annotations["tvmopt.offsets"]).split(",")
    return int(rows.partition("x")[0])
