"""The nest that block-sparse convolutions and products share (operators/sparse.py says what a kept block is).

    for every task (a band of pixels or samples, a share of the blocks of output channels), in parallel:
        for every tile of `rows` pixels:
            for every `vectors` blocks of output channels:
                sums[rows][vectors] = 0                          # in registers
                for k in the kept blocks:                        # as many for every block of output channels
                    for v in vectors:
                        w = values[v][k]; x = input + offsets[v][k]
                        for r in rows:  sums[r][v] += broadcast(x[r]) * w
                output = epilogue(sums)

Each block of output channels has a pattern of its own, so a broadcast value serves one vector, and an offset and a
vector of weights serve all pixels of the tile: the tile is as many pixels as the registers hold, and a second vector is
there only where these are too few to keep the multiply-add units busy. A multiply-add reads its broadcast value
straight from memory, at a distance from `x` known ahead of time: beside the multiply-adds, a kept block costs one load
of an offset, one of the weights, and the loop. Over 28 pixels that left 97% of the peak.

The pixels of a tile stay while the weights stream by, other than in a dense product: a kept block is a line of weights
for as many lines of input as there are pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import FIRST, LAST, SUMS_IN_FLIGHT, Rung, divisors, task_split, vectorize_unroll

# Registers that are no sums: the weights of one kept block, and two that LLVM keeps for the next ones.
NO_SUMS = 3

# An offset and its weights serve a tile's pixels: with fewer of them the multiply-adds are no longer most of the loop.
FEWEST_PIXELS = 7

LADDER = [
    Rung("lanes", "one pixel at a time, a block of output channels in the lanes of a register", {}),
    Rung("tile", "a tile of pixels summed in registers: an offset and its weights serve all of them",
         {"columns": FIRST, "rows": FIRST, "vectors": FIRST}),
    Rung("input", "the tile's pixels stay in L1 for all blocks of output channels", {"stationary": "weights"}),
    Rung("parallel", "bands of pixels and shares of the channels on all cores",
         {"parallel": "no", "band": LAST, "share": FIRST}),
]  # fmt: skip


def largest_tile(options: Sequence[int], pixel_bytes: float, machine: Machine) -> int:
    """The most pixels of a tile that leave half of L1 to what passes through; not fewer than `FEWEST_PIXELS`.

    `pixel_bytes`: the input of a pixel that no other pixel has. The sparser, the fewer of a line's 16 channels are used
    each time it is there: over 1024 channels of which 10% are kept, 28 pixels reached 64% of the peak, 7 pixels 87%.
    """
    fitting = [o for o in options if o * pixel_bytes <= machine.l1 / 2]
    enough = [o for o in options if o >= FEWEST_PIXELS]
    return max([*fitting, *enough[:1]]) if fitting or enough else options[-1]


@dataclass(frozen=True)
class Sizes:
    """What the nest is sized by: `kept` elements of each output, weights in bytes, input in bytes a pixel or sample."""

    batch: int
    out_blocks: int
    pixels: int
    kept: int
    weight_bytes: int
    input_bytes: int


def choose_vectors(out_blocks: int, rows: int, registers: int, choose: Any) -> int:
    """Blocks of output channels at once: enough for `SUMS_IN_FLIGHT` sums over `rows` pixels, no more."""
    options = [v for v in range(1, SUMS_IN_FLIGHT + 1) if out_blocks % v == 0]
    options = [v for v in options if v == 1 or (v + 1) * rows <= registers - NO_SUMS]
    enough = [v for v in options if v * rows >= SUMS_IN_FLIGHT]
    return int(choose("vectors", options, enough[0] if enough else options[-1]))


def choose_tasks(
    sizes: Sizes, groups: int, bands: Sequence[int], halo: Callable[[int], float], machine: Machine, choose: Any,
    turned: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """(pixels of a band, shares of the output channels), `halo(band)` being the input a band needs for a pixel.

    turned: the task has a copy of its band, which can stay in L2 while the weights of each group pass once.
    """

    def traffic(band: int, share: int) -> float:
        # As in conv2d_direct: what does not fit half of L2 comes in again for every tile of the band.
        fits = sizes.weight_bytes / share <= machine.l2 / 2
        passes = sizes.pixels // (band if turned and band_stays(sizes, band, machine) else bands[0])
        weights = sizes.weight_bytes * (1 if fits else passes)
        return weights + sizes.input_bytes * sizes.pixels * halo(band) * share

    shares = [s for s in divisors(groups) if s <= 4 * machine.cores] if sizes.pixels > 1 else divisors(groups)
    steps = sizes.batch * sizes.pixels * sizes.out_blocks * sizes.kept
    band_default, share_default = task_split(bands, shares, sizes.pixels, sizes.batch, machine, traffic, steps)
    return choose("band", bands, band_default), choose("share", shares, share_default)


def choose_turn(kept: int, choose: Any) -> int:
    """Kept blocks a turn of the innermost loop: one: its multiply-adds are many beside the loop itself."""
    return int(choose("unroll", [u for u in divisors(kept) if u <= 4], 1))


def band_stays(sizes: Sizes, band: int, machine: Machine) -> bool:
    """Whether the input of a band leaves half of L2 to the weights."""
    return sizes.input_bytes * band <= machine.l2 / 2


def stays(choose: Any, default: bool = True) -> bool:
    """Whether the input stays while the weights stream by, or the other way round."""
    return bool(choose("stationary", ["input", "weights"], "input" if default else "weights") == "input")


def finish(sch: Schedule, anchor: Any, output: Any, spatial: int, order: Sequence[int], unroll: int) -> None:
    """Order, unroll and vectorise the register tile, whose `spatial` loops are the anchor's before k and g."""
    *loops, k, g = sch.get_loops(anchor)
    tile = loops[len(loops) - spatial :]
    outer, inner = sch.split(k, [None, unroll])
    sch.reorder(outer, inner, g, *[tile[i] for i in order])
    sch.unroll(inner)
    sch.unroll(g)
    vectorize_unroll(sch, anchor, spatial - 1)
    vectorize_unroll(sch, output, min(spatial - 1, 3))
    init = sch.decompose_reduction(anchor, outer)
    vectorize_unroll(sch, init, spatial - 1)


def source(sch: Schedule, anchor: Any) -> Any:
    """What the anchor reads of its input: the first that is neither offsets nor, after it, weights."""
    return next(read for read in sch.get(anchor).reads if str(read.source.ty.dtype) != "int32")


def source_shape(sch: Schedule, anchor: Any) -> list[int]:
    """The shape of the input the anchor reads."""
    return [int(d) for d in source(sch, anchor).source.ty.shape]
