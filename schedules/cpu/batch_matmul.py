"""Product of two computed tensors, as in attention (operators/dense.py, `batch_matmul`).

Nothing can be packed ahead of time. A task is one matrix of the batch and a band of its rows; the columns of the right
matrix stand in the lanes as they are in memory, in tiles of a few registers, and the rows are broadcast.

Where columns fill no registers, or no tile divides the rows (197 of a vision transformer are both), the operator makes
them even, and the nest is product.py's: a task copies its matrix into panels and its rows to where there are enough of
them, in the core's own cache, and crops its results from there.

Measured: bench/results/amd-epyc-b521c9/ladders/batch_matmul.json
    batch_matmul 12x197x64x197: unscheduled 2%, scalar 21%, lanes 21%, tile 38%, unroll 39%, parallel 75%
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import (
    FIRST,
    LAST,
    Rung,
    accumulator_tile,
    divisors,
    find_block,
    fuse_epilogue,
    inline_all_but,
    parallelize,
    pays_in_parallel,
    unroll_depth,
)
from .product import Tiling, finish, split_output

LADDER = [
    Rung("scalar", "one sum at a time, or one register of them where the operands are copied", {}),
    Rung("lanes", "columns of the right matrix in the lanes of a few registers", {"width": FIRST}),
    Rung("tile", "a tile of rows, for which a row of the right matrix is loaded once", {"rows": FIRST}),
    Rung("unroll", "several steps of the depth a turn of the innermost loop", {"unroll": FIRST}),
    Rung("parallel", "matrices and bands of rows on all cores", {"parallel": "no", "band": LAST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `batch_matmul`; declines any other, and epilogues of another shape."""
    if kernel.op != "batch_matmul":
        return None
    anchor = find_block(sch, "batch_matmul")
    if find_block(sch, "panels") is not None:
        return in_panels(sch, anchor, kernel, machine, choose)
    *_, rows, columns, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    spatial = len(sch.get(anchor).iter_vars) - 1
    output = fuse_epilogue(sch, anchor)
    if output is None or len(sch.get_loops(output)) != spatial:
        return None
    # Registers of columns side by side: up to 4, or one short vector where no register's width divides the columns.
    widths = [d for d in divisors(columns) if d <= 4 * machine.lanes]
    width = choose("width", widths, max([w for w in widths if w % machine.lanes == 0] or widths))
    vectors = -(-width // machine.lanes)
    row_options = [r for r in divisors(rows) if r * vectors + vectors + 1 <= machine.registers]
    tile = choose("rows", row_options, row_options[-1])
    bands = [b for b in divisors(rows) if b % tile == 0]
    band = choose("band", bands, next((b for b in bands if b >= 32), bands[-1]))
    unrolls = [u for u in divisors(depth) if u <= 8]
    unroll = choose("unroll", unrolls, unrolls[-1])

    *lead, lm, ln = sch.get_loops(output)
    m_band, m_tiles, m_tile = sch.split(lm, [None, band // tile, tile])
    n_tiles, n_lane = sch.split(ln, [None, width])
    sch.reorder(*lead, m_band, n_tiles, m_tiles, m_tile, n_lane)
    task = sch.fuse(*lead, m_band)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, m_tiles, preserve_unit_loops=True)
    *_, tm, tn, rk = sch.get_loops(anchor)
    k_outer, k_inner = sch.split(rk, [None, unroll])
    sch.reorder(k_outer, k_inner, tm, tn)
    sch.unroll(k_inner)
    sch.unroll(tm)
    sch.vectorize(tn)
    sch.unroll(m_tile)
    sch.vectorize(n_lane)
    init = sch.decompose_reduction(anchor, k_outer)
    *_, im, inn = sch.get_loops(init)
    sch.unroll(im)
    sch.vectorize(inn)
    return sch


def in_panels(sch: Schedule, anchor: Any, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule the product of copied operands; None for an epilogue that is no chain, or has a reduction."""
    outputs = sch.get_output_blocks("root")
    if len(outputs) != 1:
        return None
    if not inline_all_but(sch, {"batch_matmul", "panels", "pad", sch.get(outputs[0]).name_hint}):
        return None
    batch, rows, panels, lanes, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    vector_options = [v for v in (1, 2, 3, 4) if panels % v == 0]
    rows_default, vectors_default = accumulator_tile(rows, vector_options, machine.registers)
    vectors = choose("width", [lanes * v for v in vector_options], lanes * vectors_default) // lanes
    tile = choose("rows", [r for r in divisors(rows) if r <= machine.registers - 2], rows_default)
    bands = [b for b in divisors(rows) if b % tile == 0]
    # Whole matrices where there are enough of them: every band copies the right-hand side anew.
    fair = [b for b in bands if batch * (rows // b) >= 2 * machine.cores]
    band = choose("band", bands, fair[-1] if fair else bands[0])
    unrolls = [u for u in divisors(depth) if u <= 16]
    unroll = choose("unroll", unrolls, unroll_depth(unrolls, tile * vectors, vectors, machine.registers))
    tiling = Tiling(tile, vectors, band, 1, unroll)

    copy = sch.cache_write(anchor, 0, "local")
    lb, lm, lno, lni = sch.get_loops(copy)
    task, tiles = split_output(sch, [lb], lno, lm, lni, tiling)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.reverse_compute_at(outputs[0], task, preserve_unit_loops=True)
    sch.compute_at(anchor, tiles, preserve_unit_loops=True)
    for name in ("panels", "pad"):
        block = find_block(sch, name)
        if block is not None:
            sch.compute_at(block, task, preserve_unit_loops=True)
    finish(sch, anchor, copy, spatial=3, order=[0, 1, 2], tiling=tiling)
    return sch
