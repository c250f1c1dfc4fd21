"""Dense layer (operators/dense.py): packed weights, any number of samples.

With many samples it is the product of product.py. With one, every weight is used once and the layer is as fast as the
weights come in from memory: the sums of several panels are then in flight at once, so that several streams of weights
are, and the panels are shared out over the cores.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.tirx import IndexMap

from tvmopt.machine import Machine

from .common import find_block, fuse_epilogue, parallelize, vectorize_fill
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
    parallelize(sch, task, kernel, choose)
    sch.compute_at(anchor, tiles, preserve_unit_loops=True)
    if pad is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    finish(sch, anchor, output, spatial=3, order=[0, 1, 2], tiling=tiling)
    return sch
