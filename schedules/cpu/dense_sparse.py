"""Block-sparse dense layer (operators/dense_sparse.py): sparse_nest.py over samples.

A single sample has no pixels to share a kept block among: several panels are summed at once, each with a pattern of
its own. Several samples are turned, a band of them per task, so that those of a tile lie side by side.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import divisors, find_block, fuse_epilogue, parallelize, pays_in_parallel, write_panels
from .sparse_nest import NO_SUMS, Sizes, band_stays, choose_tasks, choose_turn, choose_vectors, finish, stays

# Columns that are turned together: one line of the cache of every sample.
TURNED = 16


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `dense_sparse`; declines any other."""
    if kernel.op != "dense_sparse":
        return None
    anchor, turned = find_block(sch, "dense_sparse"), find_block(sch, "turned")
    samples, panels, lanes, kept, group = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    depth = int(sch.get(turned).iter_vars[0].dom.extent) if turned is not None else kept * group
    output = fuse_epilogue(sch, anchor, [turned] if turned is not None else [])
    if output is None:
        return None
    write_panels(sch, output, lanes)
    row_options = [r for r in divisors(samples) if r <= machine.registers - NO_SUMS]
    rows = choose("rows", row_options, row_options[-1])
    vectors = choose_vectors(panels, rows, machine.registers, choose)
    sizes = Sizes(
        batch=1, out_blocks=panels, pixels=samples, kept=kept * group,
        weight_bytes=4 * panels * lanes * kept * group, input_bytes=4 * depth,
    )  # fmt: skip
    bands = [b for b in divisors(samples) if b % rows == 0]
    band, share = choose_tasks(sizes, panels // vectors, bands, lambda _: 1.0, machine, choose, turned=True)
    unroll = choose_turn(kept, choose)

    *leading, lno, lni = sch.get_loops(output)
    lm = sch.fuse(*leading)
    n_share, n_group, n_vector = sch.split(lno, [share, None, vectors])
    m_band, m_tiles, m_tile = sch.split(lm, [None, band // rows, rows])
    # Weights beyond L2 would come in for every tile of the band, unless the band's tiles pass by each group of them:
    # at 32 samples of 1024 x 1024 that is 1.3 times as fast at 50% of zeros, and 1.6 times at 90%.
    beyond = sizes.weight_bytes / share > machine.l2 / 2 and band_stays(sizes, band, machine)
    between = [m_tiles, n_group] if stays(choose, default=not beyond) else [n_group, m_tiles]
    sch.reorder(n_share, m_band, *between, m_tile, n_vector, lni)
    task = sch.fuse(n_share, m_band)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, between[-1], preserve_unit_loops=True)
    if turned is not None:
        sch.compute_at(turned, task, preserve_unit_loops=True)
        *_, column, sample = sch.get_loops(turned)
        columns, column = sch.split(column, [None, max(d for d in divisors(depth) if d <= TURNED)])
        sch.reorder(columns, sample, column)
    finish(sch, anchor, output, spatial=3, order=[0, 1, 2], unroll=unroll)
    return sch
