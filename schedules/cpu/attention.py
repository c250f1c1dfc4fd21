"""Attention (operators/attention.py): both products and the softmax between them, a tile of rows at a time.

    for every matrix of the batch and band of rows, in parallel:
        for every tile of `rows` rows:
            for every panel of keys:     scores[rows][lanes] = Q K^T       # in registers, then to L1
            for every row:               peak, exp, 1 / total              # as in rows.py
            for every panel of values:   weighted[rows][lanes]             # in registers
            output = weighted / total

One register of a panel stands against the tile's rows: both products then share the tile, and a core that broadcasts
from memory loads two values a multiply-add unit and cycle, which is what it can.

Keys that fill no register are masked once, on their way out of the registers, and a row is divided by its total once:
12 x 197 x 64 (ViT-B/16) took 675 us on two Zen 4 cores with this, the shorter exp and rows.py's folds, 770 without.

Measured: bench/results/amd-epyc-b521c9/ladders/attention.json
    attention 12x197x64: unscheduled 1%, lanes 16%, tile 41%, unroll 41%, parallel 82%
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import (
    FIRST,
    LAST,
    UNROLLED,
    Rung,
    block_names,
    divisors,
    find_block,
    pays_in_parallel,
    vectorize_unroll,
)
from .rows import inline_row, is_fold

LADDER = [
    Rung("lanes", "one row at a time, a panel of keys or values in the lanes of a register", {}),
    Rung("tile", "a tile of rows in registers, for which a row of a panel is loaded once", {"rows": FIRST}),
    Rung("unroll", "several steps of the depth a turn of the innermost loops", {"unroll": FIRST}),
    Rung("parallel", "matrices and bands of rows on all cores", {"parallel": "no", "band": LAST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel of whole attention; declines any other."""
    if kernel.op != "attention":
        return None
    output, scores, weighted = (sch.get_sblock(name) for name in ("attention", "scores", "weighted"))
    inline_row(sch, ("attention", "masked", "power", "inverse"))
    # What brings the scores out of the registers also masks them: once a panel, where each pass over a row would again.
    masked = find_block(sch, "masked")
    if masked is None:
        masked = sch.cache_write(scores, 0, "local")
    else:
        sch.set_scope(scores, 0, "local")
    batch, count, _, _ = (int(iv.dom.extent) for iv in sch.get(output).iter_vars)
    depth = int(sch.get(scores).iter_vars[-1].dom.extent)
    # A sum for every row, the panel's register and one to spare for what is broadcast.
    options = [r for r in divisors(count) if r <= machine.registers - 2]
    tile = choose("rows", options, options[-1])
    bands = [b for b in divisors(count) if b % tile == 0]
    fair = [b for b in bands if batch * count // b >= 2 * machine.cores]
    band = choose("band", bands, fair[-1] if fair else bands[0])
    # As many steps a turn for both products as divide both depths: keys' channels and a register of keys.
    unrolls = [u for u in divisors(machine.lanes) if depth % u == 0]
    unroll = choose("unroll", unrolls, max(u for u in unrolls if u == 1 or u * tile <= UNROLLED))

    lb, lm, lno, lni = sch.get_loops(output)
    m_band, m_tiles, m_tile = sch.split(lm, [None, band // tile, tile])
    task = sch.fuse(lb, m_band)
    if choose("parallel", ["yes", "no"], "yes" if pays_in_parallel(kernel) else "no") == "yes":
        sch.parallel(task)
    sch.reorder(task, m_tiles, lno, m_tile, lni)
    sch.unroll(m_tile)
    sch.vectorize(lni)
    sch.compute_at(weighted, lno, preserve_unit_loops=True)
    sch.set_scope(weighted, 0, "local")
    for name in reversed(block_names(sch)):
        if name not in ("attention", "weighted", "scores"):
            sch.compute_at(sch.get_sblock(name), m_tiles, preserve_unit_loops=True)
    _product(sch, weighted, unroll)
    rows, panel, lane = sch.get_loops(masked)[-3:]
    sch.reorder(panel, rows, lane)
    sch.compute_at(scores, panel, preserve_unit_loops=True)
    _product(sch, scores, unroll)
    vectorize_unroll(sch, masked, 1)
    for name in ("peak_lanes", "total_lanes"):
        block = find_block(sch, name)
        lane, last = sch.get_loops(block)[-2:]
        sch.reorder(last, lane)
        sch.vectorize(lane)
        init = sch.decompose_reduction(block, last)
        sch.vectorize(sch.get_loops(init)[-1])
    for name in block_names(sch):
        if name == "power" or is_fold(name):
            sch.vectorize(sch.get_loops(sch.get_sblock(name))[-1])
    return sch


def _product(sch: Schedule, block: Any, unroll: int) -> None:
    """One panel against a tile of rows, summed in registers, `unroll` steps of the depth a turn."""
    reductions = sum(int(iv.iter_type) == 2 for iv in sch.get(block).iter_vars)
    loops = sch.get_loops(block)
    reduction = loops[-reductions:]
    _batch, rows, _panel, lane = loops[-reductions - 4 : -reductions]
    outer, inner = sch.split(reduction[-1], [None, unroll])
    sch.reorder(*reduction[:-1], outer, inner, rows, lane)
    sch.unroll(inner)
    sch.unroll(rows)
    sch.vectorize(lane)
    init = sch.decompose_reduction(block, reduction[0] if reductions > 1 else outer)
    vectorize_unroll(sch, init, 0)
    loops = sch.get_loops(init)
    sch.unroll(loops[-3])
