"""Softmax and layer norm (operators/rows.py): a row at a time, all its passes while it is in the core's cache.

A row is read several times (its peak or mean, the powers or squares, the result) but comes from memory once. Its
reductions are in the lanes of one register, which is folded in the middle at the end until two values are left.

Measured: bench/results/amd-epyc-b521c9/ladders/rows.json
    softmax 2364x197 of the bandwidth: unscheduled 2%, row 6%, parallel 10%
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import LAST, Rung, block_names, divisors, extent, find_block, is_reduction, pays_in_parallel

# What is kept of a row between its passes; other stages without a reduction are computed where they are used.
_KEPT = ("row", "power", "centred", "scale", "inverse")

LADDER = [
    Rung("row", "all passes over a row while it is in cache, registers of partial results", {}),
    Rung("parallel", "rows on all cores", {"parallel": "no", "rows": LAST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a softmax or layer norm over the last axis; declines any other kernel."""
    if kernel.op not in ("softmax", "layer_norm"):
        return None
    output = find_block(sch, kernel.op)
    if output is None:  # over another axis than the last: TVM's own
        return None
    inline_row(sch, (kernel.op, *_KEPT))
    *lead, _ = sch.get_loops(output)
    count = math.prod(extent(sch, loop) for loop in lead)
    # Two tasks a core at least, so that one core does not wait long for the other.
    options = divisors(count)
    rows = choose("rows", options, max((r for r in options if count // r >= 2 * machine.cores), default=1))
    outer = sch.fuse(*lead) if lead else sch.add_unit_loop(output)
    task, row = sch.split(outer, [None, rows])
    if choose("parallel", ["yes", "no"], "yes" if pays_in_parallel(kernel) else "no") == "yes":
        sch.parallel(task)
    for name in reversed(block_names(sch)):
        if name != kernel.op:
            sch.compute_at(sch.get_sblock(name), row, preserve_unit_loops=True)
    for name in block_names(sch):
        _lanes(sch, sch.get_sblock(name), machine)
    return sch


def is_fold(name: str) -> bool:
    """Whether a block folds a register (or what is left of one) in the middle."""
    return "_half" in name


def inline_row(sch: Schedule, kept: Iterable[str]) -> None:
    """Compute a row's element-wise stages where they are used, but the `kept` ones and what belongs to a reduction."""
    for name in block_names(sch):
        block = sch.get_sblock(name)
        if name not in kept and not is_fold(name) and not is_reduction(sch, block):
            sch.compute_inline(block)


def _lanes(sch: Schedule, block: Any, machine: Machine) -> None:
    """Vectorise a stage of a row over its lanes; the last step of a reduction stays a loop over them."""
    name = sch.get(block).name_hint
    last = sch.get_loops(block)[-1]
    if is_fold(name):
        sch.vectorize(last)
        return
    if not is_reduction(sch, block):
        _, lane = sch.split(last, [None, machine.lanes]) if extent(sch, last) % machine.lanes == 0 else (None, None)
        if lane is not None:
            sch.vectorize(lane)
        return
    if name.endswith("_lanes"):
        lane = sch.get_loops(block)[-2]
        sch.reorder(last, lane)
        sch.vectorize(lane)
        init = sch.decompose_reduction(block, last)
        sch.vectorize(sch.get_loops(init)[-1])
    else:
        sch.unroll(last)
