"""Product of many rows with unstructured weights (operators/dense_unstructured.py): rows in the lanes.

    for every column of the input, in parallel: its rows side by side
    for every task (a tile of rows, a share of the output columns), in parallel:
        for every register of output columns:
            for every column of it:
                sums[vectors] = 0                                # in registers: all rows of the tile
                for every weight it keeps:
                    w = broadcast(value); x = turned + offset
                    for v in vectors:  sums[v] += x[v] * w       # a multiply-add reads its rows from memory
            output = epilogue(sums), row by row

Two cores of Zen 4, 32 rows, 1024 x 1024: dense 292 us; at 80, 90, 95, 99% zeros 130, 76, 49, 29, of which turning the
rows there and back is 22; by blocks of 16 columns 313, 274, 205, 81.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import (
    FIRST,
    Rung,
    divisors,
    find_block,
    inline_all_but,
    parallelize,
    pays_in_parallel,
    vectorize_unroll,
)

LADDER = [
    Rung("lanes", "rows in the lanes, a register of them at a time", {}),
    Rung("parallel", "tiles of rows and shares of the columns on all cores", {"parallel": "no", "share": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `dense_unstructured_rows`; declines any other."""
    if kernel.op != "dense_unstructured_rows":
        return None
    anchor, turned = find_block(sch, "dense_unstructured_rows"), find_block(sch, "turned")
    columns, tiles, vectors, lanes, _ = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    outputs = sch.get_output_blocks("root")
    if len(outputs) != 1 or int(sch.get(sch.get_loops(outputs[0])[-1]).extent) != columns:
        return None
    output = outputs[0]
    if not inline_all_but(sch, {sch.get(block).name_hint for block in (anchor, turned, output)}):
        return None
    # Columns that are written side by side.
    together = max(d for d in divisors(columns) if d <= lanes)
    shares = divisors(columns // together)
    even = [s for s in shares if s * tiles % machine.cores == 0]
    share = choose("share", shares, next(iter(even), shares[-1]))

    *leading, column = sch.get_loops(output)
    rows = sch.fuse(*leading)
    tile, row = sch.split(rows, [None, vectors * lanes]) if tiles > 1 else sch.split(rows, [1, None])
    part, group, column = sch.split(column, [share, None, together])
    sch.reorder(tile, part, group, row, column)
    task = sch.fuse(tile, part)
    parallel = parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, group, preserve_unit_loops=True)
    *_, own, _, vector, lane, k = sch.get_loops(anchor)
    sch.reorder(own, k, vector, lane)
    written = sch.cache_write(anchor, 0, "local")
    sch.reverse_compute_at(written, own, preserve_unit_loops=True)
    for block in (anchor, written):
        vectorize_unroll(sch, block, 1)
    vectorize_unroll(sch, sch.decompose_reduction(anchor, k), 1)
    vectorize_unroll(sch, output, 0)

    # Every task turns the rows of its tile, in its core's cache, unless several share one.
    place = choose("turned", ["task", "stage"], "task" if share == 1 else "stage")
    if place == "task":
        sch.compute_at(turned, task, preserve_unit_loops=True)
    *_, depth, row = sch.get_loops(turned)
    # A line of the cache of every row at a time.
    outer, inner = sch.split(depth, [None, max(d for d in divisors(int(sch.get(depth).extent)) if d <= lanes)])
    sch.reorder(outer, row, inner)
    if parallel and place == "stage":
        sch.parallel(outer)
    return sch
