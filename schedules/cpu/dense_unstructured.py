"""Product with unstructured weights, few rows (operators/dense_unstructured.py): a weight of every column at a time.

    for every task (panels of columns), in parallel:
        for every panel:
            sums[rows] = 0                                       # in registers, a column a lane
            for every k in the weights it keeps:
                w = values[k]; at = offsets[k]                   # vectors
                for r in rows:  sums[r] += gather(x[r], at) * w
            output = epilogue(sums)

A gather is 16 loads: 14 cycles a turn, where a dense product of one row takes 2.7 for its weights to come from L3. Two
cores of Zen 4, 1024 x 1024: dense 23.6 us; at 80, 90, 95, 99% zeros 29.5, 15.2, 8.5, 2.8; by blocks of 16 columns 25.3,
21.5, 15.2, 4.3.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import (
    LAST,
    Rung,
    divisors,
    find_block,
    fuse_epilogue,
    parallelize,
    pays_in_parallel,
    vectorize_unroll,
    write_panels,
)

LADDER = [
    Rung("lanes", "a column of the weights a lane, which gathers its inputs", {}),
    Rung("parallel", "panels of columns on all cores", {"parallel": "no", "panels": LAST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `dense_unstructured`; declines any other."""
    if kernel.op != "dense_unstructured":
        return None
    anchor = find_block(sch, "dense_unstructured")
    _, panels, lanes, _ = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    output = fuse_epilogue(sch, anchor)
    if output is None:
        return None
    write_panels(sch, output, lanes)
    options = divisors(panels)
    even = [p for p in options if panels // p % machine.cores == 0]
    chosen = choose("panels", options, even[-1] if even else 1)
    *leading, panel, _ = sch.get_loops(output)
    row = sch.fuse(*leading)
    task, panel = sch.split(panel, [None, chosen])
    sch.reorder(task, panel, row)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, panel, preserve_unit_loops=True)
    *_, row, block, lane, k = sch.get_loops(anchor)
    sch.reorder(k, row, block, lane)
    vectorize_unroll(sch, anchor, 2)
    vectorize_unroll(sch, output, 0)
    vectorize_unroll(sch, sch.decompose_reduction(anchor, k), 2)
    return sch
