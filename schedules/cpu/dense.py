"""Dense layer (operators/dense.py): packed weights, any number of samples.

With one sample every weight is used once, and the layer is as fast as the weights come in from memory: the sums of
several panels are then in flight at once, so that several streams of weights are, and the panels are shared out over
the cores. With many samples it is the product of product.py; with many tiles of samples and a great depth the loops are
those of GotoBLAS, of which 1024 x 1024 x 1024 shows the steps (share of the peak):

    1. 75%   the product of product.py
    2. 82%   a chunk of the depth of one group of panels stays in L1 for all tiles of a band, the sums going through a
             buffer once a chunk; and the rows of a band are copied to where a tile's lie side by side in L1, and not
             in one set of it

Where the weights do not stay in L3 every band of rows takes them from memory, which is what a product of 4096 waited
for (61% of the peak). Its bands are as tall as a core's part of L3 allows (product.py, `traffic`): 92%, and 2048 went
from 85% to 94%.

Measured: bench/results/amd-epyc-b521c9/ladders/dense.json
    gemm 1024x1024x1024: unscheduled 1% (unstable), lanes 13% (unstable), tile 48%, unroll 48%, parallel 95%, chunk 92%
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.tirx import IndexMap

from tvmopt.machine import Machine

from .common import (
    LAST,
    Rung,
    divisors,
    extent,
    find_block,
    fuse_epilogue,
    parallelize,
    pays_in_parallel,
    vectorize_fill,
    vectorize_unroll,
)
from .product import LADDER as PRODUCT_LADDER
from .product import Tiling, choose_tiling, finish, split_output

# Ways of L1: a step of l1 / 8 bytes comes back to the same set, on every x86 core since 2008 (12 ways since Ice Lake).
L1_WAYS = 8

LADDER = [
    *PRODUCT_LADDER,
    Rung("chunk", "a chunk of the depth stays in L1 for a band of rows, which are copied apart", {"chunk": LAST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `dense`; declines any other."""
    if kernel.op != "dense":
        return None
    anchor, pad = find_block(sch, "dense"), find_block(sch, "pad")
    rows, panels, lanes, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None:
        return None
    if len(sch.get(output).iter_vars) != 3 or int(sch.get(output).iter_vars[-1].dom.extent) != lanes:
        # (..., columns): let the output be written panel by panel.
        panelwise = IndexMap.from_func(
            lambda *i: (*i[:-1], i[-1] // lanes, i[-1] % lanes), ndim=len(sch.get(output).iter_vars)
        )
        sch.transform_block_layout(output, panelwise)
    *leading, lno, lni = sch.get_loops(output)
    lm = sch.fuse(*leading)
    tiling = choose_tiling(
        batch=1, rows=rows, panels=panels, lanes=lanes, depth=depth, inner_depth=depth, machine=machine, choose=choose
    )
    task, tiles = split_output(sch, [], lno, lm, lni, tiling)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    chunk = choose_chunk(tiling, depth, lanes, machine, choose)
    if chunk < depth:
        copied = copy_rows(sch, anchor, chunk, machine)
        chunked(sch, anchor, output, tiling, chunk)
        sch.compute_at(copied, task, preserve_unit_loops=True)
        if pad is not None:
            sch.compute_inline(pad)
        vectorize_copy(sch, copied, machine)
        return sch
    sch.compute_at(anchor, tiles, preserve_unit_loops=True)
    if pad is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    finish(sch, anchor, output, spatial=3, order=[0, 1, 2], tiling=tiling)
    return sch


def choose_chunk(tiling: Tiling, depth: int, lanes: int, machine: Machine, choose: Any) -> int:
    """How much of the depth is summed up before the sums go back to memory; all of it where that makes no difference.

    The weights of one group of panels are read again for every tile of rows of the band; three quarters of L1 hold
    `fits` steps of them, the rest the rows of a tile. It pays where they take too much of L2, or where a tile's rows,
    as they lie, all fall into one set of L1. At 2048 x 256 x 256 it costs more (the copy) than it saves.
    """
    # Whole turns of the innermost loop: else every step of it would be guarded.
    whole = [c for c in divisors(depth) if c % tiling.unroll == 0]
    fits = max(c for c in whole if c == whole[0] or 4 * tiling.vectors * lanes * c <= machine.l1 * 3 / 4)
    chunks = [c for c in whole if 32 <= c <= 2 * fits]
    one_set = 4 * depth % (machine.l1 // L1_WAYS) == 0
    too_much = 4 * tiling.vectors * lanes * depth > machine.l2 / 4
    pays = tiling.band > 4 * tiling.rows and fits >= 32 and (one_set or too_much)
    return int(choose("chunk", [*chunks, depth], fits if pays else depth))


def copy_rows(sch: Schedule, anchor: Any, chunk: int, machine: Machine) -> Any:
    """A stage that copies a band of the left side to rows a chunk longer than a multiple of L1's way size.

    So the rows of a tile lie side by side in L1. As they are, those of 4 KiB (a depth of 1024) all fall into one set.
    """
    copied = sch.reindex(anchor, ("read", 0))
    sch.storage_align(copied, 0, axis=0, factor=machine.l1 // L1_WAYS // 4, offset=chunk)
    return copied


def vectorize_copy(sch: Schedule, copied: Any, machine: Machine) -> None:
    """Copy a register at a time, as far as the depth divides."""
    last = sch.get_loops(copied)[-1]
    width = max(d for d in divisors(extent(sch, last)) if d <= machine.lanes)
    _, lane = sch.split(last, [None, width])
    sch.vectorize(lane)


def chunked(sch: Schedule, anchor: Any, output: Any, tiling: Tiling, chunk: int) -> None:
    """The order of loops of GotoBLAS: one chunk of the weights stays in L1 for all tiles of the band."""
    _, group, tiles = sch.get_loops(output)[:3]
    sch.set_scope(anchor, 0, "global")
    sch.compute_at(anchor, group, preserve_unit_loops=True)
    rows, panel, lane, depth = sch.get_loops(anchor)[-4:]
    tiles, tile = sch.split(rows, [None, tiling.rows])
    chunks, outer, inner = sch.split(depth, [None, chunk // tiling.unroll, tiling.unroll])
    sch.reorder(chunks, tiles, outer, inner, tile, panel, lane)
    for loop in (inner, tile, panel):
        sch.unroll(loop)
    sch.vectorize(lane)
    vectorize_unroll(sch, output, 2)
    init = sch.decompose_reduction(anchor, chunks)
    vectorize_unroll(sch, init, 0)
