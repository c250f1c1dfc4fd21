"""Dense layer (operators/dense.py): packed weights, any number of samples.

With one sample every weight is used once, and the layer is as fast as the weights come in from memory: the sums of
several panels are then in flight at once, so that several streams of weights are, and the panels are shared out over
the cores. With many samples it is the product of product.py, whose ladder is also this file's.

Where the weights do not stay in L3 every band of rows takes them from memory, which is what a product of 4096 waited
for (61% of the peak). Its bands are as tall as a core's part of L3 allows (product.py, `traffic`): 94%, and 2048 went
from 85% to 95%. With such bands the loops of GotoBLAS, which keep a chunk of the depth in L1, cost more than they save:
1 to 3% of the time of square products, 2 to 10% of others as deep (one thread, two, AVX2 alike). They are not here.

Measured: bench/results/amd-epyc-b521c9/ladders/dense.json
    gemm 1024x1024x1024: unscheduled 1% (unstable), lanes 13% (unstable), tile 49%, unroll 48%, parallel 97%
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import find_block, fuse_epilogue, parallelize, pays_in_parallel, vectorize_fill, write_panels
from .product import choose_tiling, finish, split_output


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `dense`; declines any other."""
    if kernel.op != "dense":
        return None
    anchor, pad = find_block(sch, "dense"), find_block(sch, "pad")
    rows, panels, lanes, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None:
        return None
    write_panels(sch, output, lanes)
    *leading, lno, lni = sch.get_loops(output)
    lm = sch.fuse(*leading)
    tiling = choose_tiling(
        batch=1, rows=rows, panels=panels, lanes=lanes, depth=depth, inner_depth=depth, machine=machine, choose=choose
    )
    task, tiles = split_output(sch, [], lno, lm, lni, tiling)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, tiles, preserve_unit_loops=True)
    if pad is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    finish(sch, anchor, output, spatial=3, order=[0, 1, 2], tiling=tiling)
    return sch

