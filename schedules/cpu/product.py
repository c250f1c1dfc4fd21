"""The matrix-product nest that 1x1 convolutions, im2col convolutions and dense layers share.

Rows are pixels or samples, columns stand in the lanes of `vectors` registers:

    for every task (a band of rows, a share of the column panels), in parallel:
        for every group of `vectors` panels:
            for every tile of `rows` rows:
                sums[rows][vectors] = 0                        # in registers
                for k in depth:                                # `unroll` of them a turn
                    w[0..vectors] = panel[k]
                    for r in rows:  sums[r][..] += broadcast(a[r][k]) * w
                output = epilogue(sums)

"Anatomy of High-Performance Matrix Multiplication" (Goto and van de Geijn, 2008); here the panels are packed ahead
of time, and the epilogue is applied while the sums are in registers.

Measured: bench/results/amd-epyc-b521c9/ladders/product.json
    conv2d 1x256x14x14,1024,1 direct: unscheduled 1%, lanes 15%, tile 49%, unroll 49%, parallel 97%
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.tirx import IndexMap

from tvmopt.machine import Machine

from .common import FIRST, LAST, Rung, accumulator_tile, divisors, task_split, unroll_depth

# What a byte from memory costs beside one from L3: 50 GB/s beside 190 on two cores of Zen 4 (`bench MODEL --profile`
# lists what it measured).
MEMORY_COST = 4

LADDER = [
    Rung("lanes", "one row at a time, a panel of columns in the lanes of a register", {}),
    Rung("tile", "a tile of rows and panels summed in registers", {"vectors": FIRST, "rows": FIRST}),
    Rung("unroll", "several steps of the depth a turn of the innermost loop", {"unroll": FIRST}),
    Rung("parallel", "bands of rows and shares of the columns on all cores",
         {"parallel": "no", "band": LAST, "share": FIRST}),
]  # fmt: skip


@dataclass(frozen=True)
class Tiling:
    """The numbers of the nest above."""

    rows: int
    vectors: int
    band: int
    share: int
    unroll: int


def choose_tiling(
    *, batch: int, rows: int, panels: int, lanes: int, depth: int, inner_depth: int, machine: Machine, choose: Any
) -> Tiling:
    """Decide the tiling of `batch` products (rows, depth) by (panels x lanes, depth), `inner_depth` innermost."""
    vector_options = [v for v in (1, 2, 3, 4) if panels % v == 0]
    rows_default, vectors_default = accumulator_tile(rows, vector_options, machine.registers)
    vectors = choose("vectors", vector_options, vectors_default)
    tile_rows = choose("rows", [r for r in divisors(rows) if r <= machine.registers - 2], rows_default)
    groups = panels // vectors
    weight_bytes = 4 * panels * lanes * depth
    row_bytes = 4 * depth

    def traffic(band: int, share: int) -> float:
        # As in conv2d_direct: what does not fit half of L2 comes in again for every band, or every group. From memory
        # come rows that do not fit a quarter of L3 (weights stream through the rest), and weights where rows and
        # weights do not fit half.
        weights = weight_bytes * (1 if weight_bytes / share <= machine.l2 / 2 else rows // band)
        fits = row_bytes * band <= machine.l2 / 2
        read = row_bytes * rows * share * (1 if fits else groups // share)
        held = machine.cores * row_bytes * band
        weights *= MEMORY_COST if held + weight_bytes > machine.l3 / 2 else 1
        return weights + read * (MEMORY_COST if held > machine.l3 / 4 else 1)

    bands = [b for b in divisors(rows) if b % tile_rows == 0]
    shares = [s for s in divisors(groups) if s <= 8 * machine.cores] if rows > 1 else divisors(groups)
    steps = batch * rows * panels * depth
    band_default, share_default = task_split(bands, shares, rows, batch, machine, traffic, steps)
    band = choose("band", bands, band_default)
    share = choose("share", shares, share_default)
    unrolls = [u for u in divisors(inner_depth) if u <= 16]
    unroll_default = unroll_depth(unrolls, tile_rows * vectors, vectors, machine.registers)
    return Tiling(tile_rows, vectors, band, share, choose("unroll", unrolls, unroll_default))


def pixel_loops(sch: Schedule, output: Any) -> list[Any]:
    """The output's loops as (image, channel block, pixel, lane), rows and columns of the image being one loop.

    The block itself is rewritten over pixels: had only its loops been fused, TVM could not tell that a tile that ends
    in the middle of a row needs no more than its own pixels.
    """
    if len(sch.get(output).iter_vars) == 5:
        width = int(sch.get(output).iter_vars[3].dom.extent)
        by_pixel = IndexMap.from_func(lambda n, co, y, x, ci: (n, co, y * width + x, ci))
        sch.transform_block_layout(output, by_pixel)
    return list(sch.get_loops(output))


def split_output(
    sch: Schedule, batch: list[Any], columns: Any, rows: Any, lane: Any, tiling: Tiling
) -> tuple[Any, Any]:
    """Tile the output's loops; returns (the loop over tasks, the loop round one register tile)."""
    share, group, vector = sch.split(columns, [tiling.share, None, tiling.vectors])
    band, tiles, tile = sch.split(rows, [None, tiling.band // tiling.rows, tiling.rows])
    sch.reorder(*batch, share, band, group, tiles, tile, vector, lane)
    task = sch.fuse(*batch, share, band)
    return task, tiles


def finish(sch: Schedule, anchor: Any, output: Any, spatial: int, order: list[int], tiling: Tiling) -> None:
    """Order, unroll and vectorise the register tile.

    The last loops of `anchor` are `spatial` tile loops, taken in `order`, and then the reduction loops.
    """
    own = sch.get_loops(anchor)
    reduction_count = sum(int(iv.iter_type) == 2 for iv in sch.get(anchor).iter_vars)
    tile_loops = own[len(own) - reduction_count - spatial : len(own) - reduction_count]
    reduction = own[len(own) - reduction_count :]
    outer, inner = sch.split(reduction[-1], [None, tiling.unroll])
    sch.reorder(*reduction[:-1], outer, inner, *[tile_loops[i] for i in order])
    for loop in [inner, *[tile_loops[i] for i in order[:-1]]]:
        sch.unroll(loop)
    sch.vectorize(tile_loops[order[-1]])
    loops = sch.get_loops(output)
    sch.vectorize(loops[-1])
    for loop in loops[-3:-1]:
        sch.unroll(loop)
    first = reduction[0] if reduction_count > 1 else outer
    init = sch.decompose_reduction(anchor, first)
    loops = sch.get_loops(init)
    sch.vectorize(loops[-1])
    for loop in loops[-spatial:-1]:
        sch.unroll(loop)
