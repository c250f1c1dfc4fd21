"""Block-sparse product for NVIDIA GPUs (operators/dense_sparse.py): dense layers, 1x1 convolutions over NHWC pixels.

Two kernels, of which the first is only there for several rows:

    turned   the left side with its rows side by side, so that what a warp reads of one column is one line of memory
    product  a thread sums `rows` rows of a panel of 16 columns:
        for k in the kept blocks of the panel:
            w[16] = values[panel][k]                     # one address for all threads: 128-bit loads, broadcast
            for r in rows:  sums[r][16] += turned[offsets[panel][k]][row r] * w

A kept block costs a thread 4 loads of weights, one of the offset and one a row, for 16 multiply-adds a row. What is
zero is neither stored nor read. With few rows the columns stand in the threads instead, and a row's values are what all
read at one address.

The steps, each building on the one before (what they buy is not measured: no GPU yet):

    1. turned   a row a thread: what a warp reads of a column of the left side is one line of memory
    2. rows     several rows a thread: a kept block's weights, once loaded, serve all of them
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm.s_tir import Schedule
from tvm.tirx import IndexMap

from ..cpu.common import FIRST, Rung, find_block
from .common import inline_consumers, inline_producers

# Threads of a block: four warps, one for each of an SM's schedulers; blocks are small, so that there are many.
THREADS = 128

# Elements of a 128-bit load.
QUAD = 4

# Rows and columns of a tile that is turned, in shared memory, and how many rows of it a block's threads copy at once.
TILE, TURN_ROWS = 32, 8

# Rows from which a warp has one for each of its threads.
MANY_ROWS = 32

LADDER = [
    Rung("turned", "a row a thread: what a warp reads of a column of the left side is one line", {}),
    Rung("rows", "several rows a thread: a kept block's weights serve all of them", {"rows": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: Any, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `dense_sparse`; declines any other."""
    if kernel.op != "dense_sparse":
        return None
    # The pixels that a stride leaves are read where they are, not copied.
    inline_producers(sch, ["picked"])
    anchor, turned = find_block(sch, "dense_sparse"), find_block(sch, "turned")
    rows, panels, lanes = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars[:3])
    output = inline_consumers(sch, anchor, [turned] if turned is not None else [])
    if output is None:
        return None
    if turned is not None:
        turn(sch, turned)
    # All leading dimensions as one: a tile of rows may begin and end anywhere in an image.
    *lead, columns = (int(iv.dom.extent) for iv in sch.get(output).iter_vars)
    if len(lead) > 1:
        flat = IndexMap.from_func(lambda *i: (as_one(i[:-1], lead), i[-1]), ndim=len(lead) + 1)
        sch.transform_block_layout(output, flat)
    own, column = sch.get_loops(output)
    panel, lane = sch.split(column, [None, lanes])
    if rows >= MANY_ROWS:
        options = [r for r in (1, 2, QUAD) if rows % r == 0]
        per_thread = choose("rows", options, rows_a_thread(options, rows, panels, machine))
        # A block of few rows has no more threads: with more, each would ask at every step whether it has a row.
        threads = min(THREADS, rows // per_thread)
        block, thread, row = sch.split(own, [None, threads, per_thread])
        sch.reorder(block, panel, thread, row, lane)
        sch.bind(block, "blockIdx.x")
        sch.bind(panel, "blockIdx.y")
    else:
        # Not one loop with the rows: a panel's index would be a remainder that TensorIR cannot prove to be its own.
        block, thread = sch.split(sch.fuse(panel, lane), [None, THREADS])
        sch.bind(block, "blockIdx.x")
        sch.bind(own, "blockIdx.y")
    sch.bind(thread, "threadIdx.x")
    sch.set_scope(anchor, 0, "local")
    sch.compute_at(anchor, thread, preserve_unit_loops=True)
    row, panel, lane, k, g = sch.get_loops(anchor)[-5:]
    sch.reorder(k, g, panel, lane, row)
    if rows >= MANY_ROWS:
        # A thread's rows side by side, in its registers as in the left side: one load for all of them.
        sch.transform_layout(anchor, ("write", 0), lambda m, no, ni: (no, ni, m))
        weights_in_registers(sch, anchor, k)
        sch.vectorize(row)
        own, wide = sch.get_loops(output)[-2:]
        outer, wide = sch.split(wide, [None, math.gcd(columns, lanes, QUAD)])
        for loop in (own, outer):
            sch.unroll(loop)
        sch.vectorize(wide)
    for loop in (g, panel, lane):
        sch.unroll(loop)
    init = sch.decompose_reduction(anchor, k)
    for loop in sch.get_loops(init)[-3:]:
        sch.unroll(loop)
    return sch


def as_one(index: Sequence[Any], sizes: Sequence[int]) -> Any:
    """An index of several dimensions, row-major, as one."""
    flat = index[0]
    for i, size in zip(index[1:], sizes[1:], strict=True):
        flat = flat * size + i
    return flat


def weights_in_registers(sch: Schedule, anchor: Any, k: Any) -> None:
    """A kept block's weights are loaded once for all rows of a thread, 4 at a time."""
    place = next(i for i, read in enumerate(sch.get(anchor).reads) if len(read.source.shape) == 4)
    weights = sch.cache_read(anchor, place, "local")
    sch.compute_at(weights, k, preserve_unit_loops=True)
    outer, lane = sch.split(sch.get_loops(weights)[-1], [None, QUAD])
    sch.unroll(outer)
    sch.vectorize(lane)


def rows_a_thread(options: list[int], rows: int, panels: int, machine: Any) -> int:
    """As many neighbouring rows as leave two blocks for every SM: a kept block's weights serve all of them."""
    return max((r for r in options if panels * (rows // (THREADS * r)) >= 2 * machine.sms), default=1)


def turn(sch: Schedule, turned: Any) -> None:
    """Turn tiles in shared memory: both what is read and what is written lie side by side."""
    column, row = sch.get_loops(turned)
    tile_column, column = sch.split(column, [None, TILE])
    tile_row, row = sch.split(row, [None, TILE])
    sch.reorder(tile_row, tile_column, column, row)
    tile = sch.fuse(tile_row, tile_column)
    sch.bind(tile, "blockIdx.x")
    shared = sch.reindex(turned, ("read", 0))
    sch.set_scope(shared, 0, "shared")
    sch.compute_at(shared, tile, preserve_unit_loops=True)
    copy_column, copy_row = sch.get_loops(shared)[-2:]
    sch.reorder(copy_row, copy_column)
    sch.storage_align(shared, 0, axis=0, factor=TILE, offset=1)
    for outer, inner in ((copy_row, copy_column), (column, row)):
        # A matrix with fewer rows or columns than a tile: both copies must still be of the same threads.
        _, inner = sch.split(inner, [None, TILE])
        turns, down = sch.split(outer, [None, TURN_ROWS])
        sch.bind(down, "threadIdx.y")
        sch.bind(inner, "threadIdx.x")
        sch.unroll(turns)
