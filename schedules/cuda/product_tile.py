"""The tiles of product.py: what a block of threads computes at once, what that takes, and which is the fastest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmopt.machine import GpuMachine

# Threads of a warp, of which LANE_ROWS are below each other, and the columns of one 128-bit load from shared memory.
WARP, LANE_ROWS, QUAD = 32, 4, 4

# Two warps for each of an SM's four schedulers: with fewer, latencies show.
WARPS_THAT_HIDE = 8

# A thread's registers besides its sums and operands: addresses, counters.
OTHER_REGISTERS = 40


@dataclass(frozen=True)
class Tile:
    """A block's tile: warps down and across, and each thread's rows and vectors of 4 columns.

    `lane_rows`: how many of a warp's 32 threads are below each other.
    """

    warps_down: int
    warps_across: int
    rows: int
    vectors: int
    lane_rows: int = LANE_ROWS

    @property
    def height(self) -> int:
        """Rows of the result that a block computes."""
        return self.warps_down * self.lane_rows * self.rows

    @property
    def width(self) -> int:
        """Columns of the result that a block computes."""
        return self.warps_across * self.warp_columns * self.vectors

    @property
    def lane_columns(self) -> int:
        """How many of a warp's threads are side by side."""
        return WARP // self.lane_rows

    @property
    def warp_columns(self) -> int:
        """Columns of one vector of all of them."""
        return self.lane_columns * QUAD

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self.warps_down * self.warps_across

    @property
    def registers(self) -> int:
        """Registers of a thread: sums, 4 elements of the depth of its rows, one of its columns."""
        return self.rows * self.vectors * QUAD + self.rows * QUAD + self.vectors * QUAD + OTHER_REGISTERS

    def shared_bytes(self, depth: int, skew: int) -> int:
        """Bytes of one step's tiles of both operands."""
        return 4 * (self.height * (depth + skew) + self.width * depth)


def tile_cost(tile: Tile, sizes: Sequence[int], machine: GpuMachine) -> tuple[float, int]:
    """Time of `tile` for a product of `sizes` (batch, rows, columns), were all blocks to run in turns; its threads."""
    batch, rows, columns = sizes
    blocks = batch * math.ceil(rows / tile.height) * math.ceil(columns / tile.width)
    turns = math.ceil(blocks / machine.sms)
    resident = min(turns, machine.registers_per_sm // (tile.registers * tile.threads), 4)
    warps = max(resident, 1) * tile.threads // WARP
    loads = 1 / tile.rows + 1 / (QUAD * tile.vectors) + 1 / tile.height + 1 / tile.width
    # Of equals the one with fewer threads that compute what is cropped.
    return turns * tile.height * tile.width * (0.25 + loads) * max(1.0, WARPS_THAT_HIDE / warps), blocks * tile.threads


def best_tile(sizes: Sequence[int], machine: GpuMachine) -> Tile:
    """The tile of the least time: large ones load less, small ones fill all SMs."""
    options = [
        Tile(down, across, height, vectors)
        for down in (1, 2, 4) for across in (1, 2, 4) for height in (1, 2, 4, 8) for vectors in (1, 2)
        if down * across <= WARPS_THAT_HIDE
    ]  # fmt: skip
    return min(options, key=lambda tile: tile_cost(tile, sizes, machine))


def choose_tile(sizes: Sequence[int], machine: GpuMachine, choose: Any) -> Tile:
    """The best tile, or what search chooses."""
    best = best_tile(sizes, machine)
    down = choose("warps_down", [1, 2, 4], best.warps_down)
    across = choose("warps_across", [a for a in (1, 2, 4) if a * down <= WARPS_THAT_HIDE], best.warps_across)
    rows, vectors = choose("rows", [1, 2, 4, 8], best.rows), choose("vectors", [1, 2], best.vectors)
    # Not a choice of search's: only the ladder takes it back.
    return Tile(down, across, rows, vectors, choose("lane_rows", [LANE_ROWS], LANE_ROWS))
