"""Matrix products of few rows and a long depth, on the fp32 units: the depth is split among the threads of a block.

A classifier (1 x 2048 x 1000) or a 1x1 convolution at 7x7 has too few results to fill the SMs with tiles, and each of
them is a long chain of additions. Here `shares` threads sum up a result, each its part of the depth, and put their sums
together in shared memory at the end: one kernel, no second pass over partial results in memory.

    for k in range(thread_y, depth, shares):             # the depth, `shares` elements at a time
        b = right[k][column of thread_x]                 # a warp reads whole sectors of memory
        for r in rows:  sums[r] += left[r][k] * b        # one address for all columns: a broadcast
    output[r] = epilogue(allreduce over thread_y (sums[r]))

It is taken where the best tile's blocks are fewer than the SMs, and the estimate that chose that tile (product_tile.py)
says that this is faster: it loads more for every multiply-add, but from all SMs. Search may take either (ways.py).

No GPU has timed them yet; OpenCL on a CPU has run all steps:

    1. columns  a thread for each column and share, a row at a time
    2. rows     several rows a thread: an element of the right side is loaded once for them
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, divisors, find_block
from .common import THREADS, inline_consumers, inline_producers, regroup
from .product import OPS
from .product_tile import WARPS_THAT_HIDE, best_tile, tile_cost

# Rows a thread sums: with as many elements of the left side in flight they are a quarter of a full SM's registers.
MOST_ROWS = 8

# Columns of a block: 8 neighbours are one sector of 32 bytes, the least that memory moves; 32 one line.
ACROSS = (8, 16, 32)

# Elements of the depth that a share has at least, so that its loop is longer than the reduction at its end.
LEAST_TERMS = 16

LADDER = [
    Rung("columns", "a thread for each column and share of the depth, a row at a time", {}),
    Rung("rows", "several rows a thread", {"rows": FIRST}),
]


@dataclass(frozen=True)
class Split:
    """A product that leaves SMs idle as tiles, and how it can be split among threads."""

    anchor: Any
    rows: int
    columns: int
    heights: list[int]
    shares: list[int]
    tiles_s: float

    def best(self, machine: GpuMachine) -> tuple[int, int]:
        """Rows of a thread and columns of a block in the least time."""
        options = ((height, across) for height in self.heights for across in ACROSS)
        return min(options, key=lambda option: self.cost(option, machine))

    def cost(self, option: tuple[int, int], machine: GpuMachine) -> float:
        """Time in the units of product_tile.tile_cost."""
        height, across = option
        turns = math.ceil(self.rows // height * math.ceil(self.columns / across) / machine.sms)
        warps = min(turns, 4) * across * shares_for(self.shares, across) / 32
        return turns * height * across * (0.25 + 1 + 1 / height) * max(1.0, WARPS_THAT_HIDE / warps)

    def is_faster(self, machine: GpuMachine) -> bool:
        """Whether the estimate says so of the best split beside the best tile."""
        return self.cost(self.best(machine), machine) < self.tiles_s


def find_split(sch: Schedule, kernel: Any, machine: GpuMachine) -> Split | None:
    """How a product in fp32 can be split; None where it cannot, or where tiles fill all SMs."""
    if kernel.op not in OPS:
        return None
    anchor = find_block(sch, kernel.op)
    batch, rows, columns, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    if batch > 1 or str(sch.get(anchor).reads[0].source.dtype) != "float32":
        return None
    # Parts of unequal length would be guarded, and TensorIR loses that guard between both reductions.
    shares = [s for s in (4, 8, 16, 32) if depth % s == 0 and depth >= s * LEAST_TERMS]
    tile = best_tile((batch, rows, columns), machine)
    time, threads = tile_cost(tile, (batch, rows, columns), machine)
    if not shares or threads >= machine.sms * tile.threads:
        return None
    return Split(anchor, rows, columns, [r for r in divisors(rows) if r <= MOST_ROWS], shares, time)


def schedule_split(sch: Schedule, split: Split, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule it by the best split, or what search chooses."""
    best = split.best(machine)
    height = choose("rows", split.heights, best[0])
    across = choose("across", list(ACROSS), best[1])
    share = choose("shares", split.shares, shares_for(split.shares, across))
    return schedule_shares(sch, split.anchor, height, across, share)


def shares_for(shares: list[int], across: int) -> int:
    """As many parts of the depth as make a block of THREADS, warps enough to hide each other's latencies."""
    return max(s for s in shares if s * across <= THREADS or s == shares[0])


def schedule_shares(sch: Schedule, anchor: Any, height: int, across: int, shares: int) -> Schedule | None:
    """Bind `across` columns and `shares` parts of the depth to a block's threads, each with `height` rows."""
    rows, columns = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars[1:3])
    output = inline_consumers(sch, anchor)
    if output is None or not regroup(sch, output, [rows, columns]):
        return None
    inline_producers(sch, ["left", "right"])
    _, share = sch.split(sch.get_loops(anchor)[-1], [None, shares])
    part = sch.rfactor(share, 0)
    row, column = sch.get_loops(output)
    block_row, row = sch.split(row, [None, height])
    block, thread = sch.split(column, [None, across])
    sch.reorder(block_row, block, thread, row)
    # The grid's x may be the longer: y ends at 65535.
    sch.bind(block_row, "blockIdx.x")
    sch.bind(block, "blockIdx.y")
    sch.bind(thread, "threadIdx.x")
    # All shares' threads have the sums, one of them writes.
    _, writer = sch.split(sch.add_unit_loop(row), [None, shares])
    sch.bind(writer, "threadIdx.y")
    sch.unroll(row)
    for stage in (anchor, part):
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
    share, *own = sch.get_loops(anchor)[-4:]
    sch.reorder(*own, share)
    # nvcc unrolls the loop over rows: of one buffer TVM makes one reduction over threads only.
    sch.bind(share, "threadIdx.y")
    share, *own, k = sch.get_loops(part)[-5:]
    sch.bind(share, "threadIdx.y")
    sch.reorder(share, k, *own)
    for loop in own:
        sch.unroll(loop)
    sch.decompose_reduction(part, k)
    return sch
