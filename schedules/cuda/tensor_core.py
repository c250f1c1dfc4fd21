"""Matrix product on tensor cores: fp16 and bf16 operands, sums in fp32 (operators/gemm.py).

The algorithm, for one block of threads and its tile of the result:

    sums = 0                                             # 16x16 fragments in each warp's registers
    for every step of the depth:
        left_shared, right_shared = tiles of both operands   # 128-bit asynchronous copies, `stages` steps ahead
        for every 16 elements of the step:
            a, b = fragments of the warp's rows and columns  # ldmatrix: four 8x8 matrices an instruction
            sums += a x b                                # two mma.sync.m16n8k16 a pair of fragments
    staged = sums                                        # through shared memory, the warp's own part
    output = epilogue(staged)                            # whole vectors, side by side

Shapes that a tile does not divide are filled with zeros where operands are copied, and cropped where results are
written. Rows of the shared tiles are 16 bytes longer: the 8 rows of an 8x8 matrix then lie in different banks. The
instructions' shapes: PTX ISA, "Matrix Fragments for mma.m16n8k16"; the tile sizes are CUTLASS's.

The steps, each building on the one before (what they buy is not measured: no GPU yet):

    1. mma        fragments through shared memory, one a warp
    2. registers  several fragments a warp: a loaded one serves as many multiplications
    3. vectors    128-bit copies
    4. banks      longer rows
    5. pipeline   copies run `stages` steps ahead of the multiplications
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, find_block
from .common import (
    annotate_pipeline,
    inline_consumers,
    inline_producers,
    operand_width,
    widest,
)
from .fragments import PTX, intrinsics, place
from .product import OPS, absorb

# Rows, columns and depth of the fragments that two mma.sync.m16n8k16 multiply.
FRAGMENT = 16

# 16 bytes of fp16: how much longer a row of a shared tile is.
SKEW = 8

# Elements of the depth that shared memory holds at a time, and times the stages.
STEPS = (16, 32, 64)

LADDER = [
    Rung("mma", "fragments through shared memory, one a warp", {}),
    Rung("registers", "several fragments a warp", {"fragments_down": FIRST, "fragments_across": FIRST}),
    Rung("vectors", "128-bit copies", {"left_width": FIRST, "right_width": FIRST}),
    Rung("banks", "rows of the shared tiles in different banks", {"skew": FIRST}),
    Rung("pipeline", "copies run several steps ahead", {"stages": FIRST}),
]


@dataclass(frozen=True)
class Tile:
    """A block's tile: warps down and across, and each warp's fragments."""

    warps_down: int
    warps_across: int
    down: int
    across: int

    @property
    def height(self) -> int:
        """Rows of the result that a block computes."""
        return self.warps_down * self.down * FRAGMENT

    @property
    def width(self) -> int:
        """Columns of the result that a block computes."""
        return self.warps_across * self.across * FRAGMENT

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.warps_down * self.warps_across

    def shared_bytes(self, step: int, stages: int) -> int:
        """Bytes of shared memory: the operands' tiles, and after them, in the same place, the results."""
        operands = 2 * stages * (self.height * (step + SKEW) + step * (self.width + SKEW))
        return max(operands, 4 * self.height * (self.width + SKEW))


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a product of fp16 or bf16 operands on a GPU with tensor cores; declines any other."""
    if kernel.op not in OPS or not machine.tensor_cores:
        return None
    anchor = find_block(sch, kernel.op)
    dtype = str(sch.get(anchor).reads[0].source.dtype)
    if dtype not in PTX:
        return None
    batch, rows, columns, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    widths = [operand_width(sch, find_block(sch, name)) for name in ("left", "right")]
    step = 32 if depth > FRAGMENT else FRAGMENT
    # A step takes a few hundred cycles only, and DRAM answers after about 600: so two steps are on their way.
    ahead = min(3, math.ceil(depth / step)) if machine.async_copy else 1
    tile = choose_tile((batch, rows, columns), step, ahead, machine, choose)
    steps = [d for d in STEPS if tile.shared_bytes(d, 1) <= machine.shared_per_block]
    step = choose("depth", steps, min(step, steps[-1]))
    left_width, right_width = (
        choose(name, [w for w in (1, 2, 4, 8) if w <= width], width)
        for name, width in zip(("left_width", "right_width"), widths, strict=True)
    )
    skew = choose("skew", [0, SKEW], SKEW)
    options = [s for s in (1, 2, 3, 4) if tile.shared_bytes(step, s) <= machine.shared_per_block]
    stages = choose("stages", options, min(ahead, options[-1], math.ceil(depth / step)))

    sch.pad_einsum(anchor, [1, tile.height, tile.width, step])
    output = inline_consumers(sch, anchor)
    if output is None:
        return None
    outer, thread, steps, inner = split(sch, anchor, tile, step)
    for index, width in enumerate((left_width, right_width)):
        to_shared(sch, outer, index, steps, tile.warps, width, skew)
    inline_producers(sch, ["left", "left_pad", "right", "right_pad"])
    staged = sch.cache_write(outer, 0, "shared.dyn")
    in_fragments(sch, anchor, outer, thread, steps, inner, staged, dtype)
    absorb(sch, output, [batch, rows, columns], tile.width)
    _, lane, vector = sch.split(
        sch.fuse(*sch.get_loops(staged)[-2:]), [None, machine.warp, widest(columns, "float32")]
    )
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(vector)
    if stages > 1:
        annotate_pipeline(sch, steps, 2, stages)
    return sch


def choose_tile(sizes: Sequence[int], step: int, stages: int, machine: GpuMachine, choose: Any) -> Tile:
    """The best tile for a product of `sizes` (batch, rows, columns), or what search chooses of those that launch."""
    best = best_tile(sizes, step, stages, machine)
    numbers = {"fragments_down": 1, "fragments_across": 1, "warps_down": 1, "warps_across": 1}

    def fits(name: str, number: int) -> bool:
        return tile_of({**numbers, name: number}).shared_bytes(FRAGMENT, 1) <= machine.shared_per_block

    wanted = (best.down, best.across, best.warps_down, best.warps_across)
    for name, number in zip(list(numbers), wanted, strict=True):
        # One fragment a warp and one warp always fit: so every choice leaves some for those after it.
        options = [n for n in (1, 2, 4) if fits(name, n)]
        numbers[name] = choose(name, options, min(number, options[-1]))
    return tile_of(numbers)


def tile_of(numbers: dict[str, int]) -> Tile:
    """The tile of these choices."""
    return Tile(
        numbers["warps_down"], numbers["warps_across"], numbers["fragments_down"], numbers["fragments_across"]
    )  # fmt: skip


def best_tile(sizes: Sequence[int], step: int, stages: int, machine: GpuMachine) -> Tile:
    """The tile of the least time, were all blocks to run in turns: large ones load less, small ones fill all SMs.

    Only of those of which shared memory holds `stages` steps: in a larger one multiplications wait for every copy.
    """
    batch, rows, columns = sizes
    options = [
        Tile(warps_down, warps_across, down, across)
        for warps_down in (1, 2) for warps_across in (1, 2, 4) for down in (1, 2, 4) for across in (1, 2, 4)
    ]  # fmt: skip

    def cost(tile: Tile) -> tuple[float, int]:
        blocks = batch * math.ceil(rows / tile.height) * math.ceil(columns / tile.width)
        turns = math.ceil(blocks / machine.sms)
        loads = 1 / tile.down + 1 / tile.across + FRAGMENT / tile.height + FRAGMENT / tile.width
        # Four schedulers, each with tensor cores of its own.
        idle = max(1.0, 4 / (min(turns, 2) * tile.warps))
        return turns * tile.height * tile.width * (0.5 + loads) * idle, blocks * tile.warps

    return min((t for t in options if t.shared_bytes(step, stages) <= machine.shared_per_block), key=cost)


def split(sch: Schedule, anchor: Any, tile: Tile, step: int) -> tuple[Any, Any, Any, Any]:
    """Tile and bind the loops; returns (the block of one fragment, loops over warps, steps, 16s of a step)."""
    batch, rows, columns, depth = sch.get_loops(anchor)
    i, i_in = sch.split(rows, [None, FRAGMENT])
    j, j_in = sch.split(columns, [None, FRAGMENT])
    k, k_in = sch.split(depth, [None, FRAGMENT])
    sch.reorder(batch, i, j, k, i_in, j_in, k_in)
    outer = sch.blockize(i_in)
    block_y, warp_y, down = sch.split(i, [None, tile.warps_down, tile.down])
    block_x, warp_x, across = sch.split(j, [None, tile.warps_across, tile.across])
    steps, inner = sch.split(k, [None, step // FRAGMENT])
    sch.reorder(batch, block_y, block_x, warp_y, warp_x, steps, inner, down, across)
    sch.bind(batch, "blockIdx.z")
    sch.bind(block_y, "blockIdx.x")
    sch.bind(block_x, "blockIdx.y")
    thread = sch.fuse(warp_y, warp_x)
    sch.bind(thread, "threadIdx.y")
    for loop in (inner, down, across):
        sch.unroll(loop)
    return outer, thread, steps, inner


def to_shared(sch: Schedule, outer: Any, index: int, steps: Any, warps: int, width: int, skew: int) -> None:
    """Copy a step's tile of operand `index` to shared memory, all threads together, `width` elements each at a time."""
    shared = sch.cache_read(outer, index, "shared.dyn")
    sch.compute_at(shared, steps, preserve_unit_loops=True)
    turn, warp, lane, vector = sch.split(sch.fuse(*sch.get_loops(shared)[-2:]), [None, warps, 32, width])
    sch.unroll(turn)
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(vector)
    if skew:
        sch.storage_align(shared, 0, axis=-2, factor=FRAGMENT, offset=skew)


def in_fragments(
    sch: Schedule, anchor: Any, outer: Any, thread: Any, steps: Any, inner: Any, staged: Any, dtype: str
) -> None:
    """Operands and sums in the registers of a warp, as the instructions want them; all of it tensorised."""
    names = intrinsics(dtype)

    def fragments(b: Any, i: Any, j: Any) -> tuple[Any, ...]:
        return (b, i // FRAGMENT, j // FRAGMENT, *place(i % FRAGMENT, j % FRAGMENT))

    def by_fragment(block: Any) -> Any:
        i, j = sch.get_loops(block)[-2:]
        i, i_in = sch.split(i, [None, FRAGMENT])
        j, j_in = sch.split(j, [None, FRAGMENT])
        sch.reorder(i, j, i_in, j_in)
        sch.unroll(i)
        sch.unroll(j)
        return i_in

    loads = []
    for index in (0, 1):
        load = sch.cache_read(outer, index, "warp")
        sch.compute_at(load, inner, preserve_unit_loops=True)
        loads.append((load, by_fragment(load)))
    store = sch.cache_write(outer, 0, "warp")
    sch.reverse_compute_at(store, thread, preserve_unit_loops=True)
    sch.storage_align(store, 0, axis=-2, factor=FRAGMENT, offset=SKEW // 2)
    sch.reverse_compute_at(staged, thread, preserve_unit_loops=True)
    stored = by_fragment(store)
    init = sch.decompose_reduction(outer, steps)
    for load, _ in loads:
        sch.transform_layout(load, ("write", 0), fragments)
    sch.transform_layout(store, ("read", 0), fragments)
    for (_, loop), name in zip(loads, ("load_a", "load_b"), strict=True):
        sch.tensorize(loop, names[name])
    sch.tensorize(sch.get_loops(anchor)[-3], names["compute"])
    init_inner = sch.get_child_blocks(init)[0]
    sch.tensorize(sch.get_loops(init_inner)[-2], names["init"])
    sch.tensorize(stored, names["store"])
