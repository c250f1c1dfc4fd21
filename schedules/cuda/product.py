"""Matrix product on the fp32 units: gemm, batch_gemm, convolution as an implicit product (operators/gemm.py).

The algorithm, for one block of threads and its tile of the result:

    sums[rows][vectors * 4] = 0                          # in each thread's registers
    for every step of `depth` elements of the depth:
        left_shared, right_shared = tiles of both operands   # asynchronous copies, `stages` steps ahead
        for every 4 elements of the step:
            a[rows][4] = left_shared                     # 128-bit loads, one address for 8 threads
            for each of the 4:
                b[vectors * 4] = right_shared            # 128-bit loads, 8 threads one row of banks
                sums += a x b                            # rows x vectors x 4 multiply-adds
    output = epilogue(sums)                              # bias, residual, activation: still in registers

A warp is 4 x 8 threads. Its threads' rows and vectors are interleaved (thread t has rows t, t + 4, ...), not adjacent:
so what a warp reads or writes at once lies side by side. Shapes that a tile does not divide are filled with zeros where
operands are copied to shared memory, and cropped where results are written. "Better Performance at Lower Occupancy"
(Volkov, 2010); the tile sizes are CUTLASS's for fp32.

The steps, each building on the one before:

    1. naive      one result a thread, a warp's below each other: each of them reads another line of memory
    2. coalesced  a warp's results side by side: what its threads read at once is one line
    3. shared     tiles of both operands in shared memory: each element is read from L2 once a block, not once a thread
    4. registers  a tile of results in each thread: a loaded element serves 8 multiply-adds, not one
    5. warps      a warp's threads are 4 x 8, not 1 x 32: for as many results it reads 12 vectors at once, not 33
    6. vectors    128-bit loads from global memory
    7. banks      rows of the left tile are 4 elements longer, so that the 4 rows a warp reads are in different banks
    8. pipeline   the next step's tiles are copied while this one is computed

What each step buys is not measured: no GPU yet.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, find_block
from .common import (
    STATIC_SHARED,
    annotate_pipeline,
    bind_elementwise,
    inline_consumers,
    inline_producers,
    one_result_a_thread,
    operand_width,
    regroup,
    widest,
)
from .product_tile import QUAD, Tile, choose_tile

OPS = ("gemm", "batch_gemm", "conv2d_implicit_gemm")

# Banks of shared memory, of 4 bytes, on every GPU since Fermi.
BANKS = 32

LADDER = [
    Rung("naive", "one result a thread, a warp's below each other", {}),
    Rung("coalesced", "a warp's results side by side", {"neighbours": "below"}),
    Rung("shared", "tiles of both operands in shared memory", {"staging": "none"}),
    Rung("registers", "a tile of results in each thread's registers", {"rows": FIRST, "vectors": FIRST}),
    Rung("warps", "a warp's threads are 4 x 8", {"lane_rows": 1}),
    Rung("vectors", "128-bit loads from global memory", {"left_width": FIRST, "right_width": FIRST}),
    Rung("banks", "rows of the left tile in different banks", {"skew": FIRST}),
    Rung("pipeline", "the next tiles are copied, asynchronously, while these are computed", {"stages": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is one of OPS; declines any other."""
    if kernel.op not in OPS:
        return None
    return schedule_product(sch, find_block(sch, kernel.op), machine, choose)


def schedule_product(
    sch: Schedule, anchor: Any, machine: GpuMachine, choose: Any, stored: Any = None
) -> Schedule | None:
    """Schedule the product `anchor` (batch, rows, columns; depth) with its stages `left`, `right` and epilogue.

    `stored`: the stage that puts its results into memory, where more than an epilogue follows (default: the last one).
    """
    batch, rows, columns, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    if choose("staging", ["shared"], "shared") == "none":
        neighbours = choose("neighbours", ["beside"], "beside")
        return one_result_a_thread(sch, anchor, stored, beside=neighbours == "beside")
    widths = [operand_width(sch, find_block(sch, name)) for name in ("left", "right")]
    tile = choose_tile((batch, rows, columns), machine, choose)
    steps = [d for d in (8, 16, 32) if tile.shared_bytes(d, QUAD) <= STATIC_SHARED]
    step = choose("depth", steps, max(d for d in steps if d <= 16 and (d <= 8 or depth > 8)))
    left_width, right_width = (
        choose(name, [w for w in (1, 2, 4) if w <= width], min(width, QUAD))
        for name, width in zip(("left_width", "right_width"), widths, strict=True)
    )
    skew = choose("skew", [0, QUAD], QUAD)
    # With one stage an SM computes or copies. Two are enough: the 1000 cycles of multiply-adds of a step are longer
    # than the wait for DRAM (about 600).
    stage_options = [s for s in (1, 2, 3, 4) if s * tile.shared_bytes(step, QUAD) <= STATIC_SHARED]
    stages = choose("stages", stage_options, 2 if 2 in stage_options and depth > step else 1)

    sch.pad_einsum(anchor, [1, tile.height, tile.width, step])
    output = inline_consumers(sch, anchor, last=stored)
    if output is None:
        return None
    copy = sch.cache_write(anchor, 0, "local")
    interleave(sch, anchor, copy, tile)
    thread, step_loop, quad_loop = split(sch, anchor, tile, step)
    for index, (width, extra) in enumerate([(left_width, skew), (right_width, 0)]):
        shared = to_shared(sch, anchor, index, step_loop, tile.threads, width)
        if extra:
            # Rows of `step` + 4 floats: 4 consecutive rows begin in banks 0, 20, 8 and 28 (step 16).
            sch.storage_align(shared, 0, axis=2, factor=BANKS, offset=(step + extra) % BANKS)
    inline_producers(sch, ["left", "left_pad", "right", "right_pad"])
    in_registers(sch, anchor, step_loop, quad_loop)
    sch.reverse_compute_at(copy, thread, preserve_unit_loops=True)
    absorb(sch, output, [batch, rows, columns], tile.width)
    write_out(sch, copy, min(QUAD, widest(columns, "float32")))
    if stages > 1:
        annotate_pipeline(sch, step_loop, 2, stages)
    return sch


def absorb(sch: Schedule, output: Any, sizes: list[int], tile_width: int) -> None:
    """Compute the epilogue where a thread's sums leave its registers; as a pass of its own where indices do not allow.

    The output's loops are first rewritten as those of the product (`sizes`: batch, rows, columns), so that the indices
    are the same. Only what is inside the result is written: the guards come with this step, which must be the last one
    to touch the loops of the copy out of the registers (later rewriting of its layout would lose them).

    Groups of a convolution lie side by side in a row of the result, and TensorIR guards the end of the row only: where
    a tile reaches beyond its group, what it computes there would be written over the next group's.
    """
    into_next_group = int(sch.get(output).writes[0].source.shape[-1]) != sizes[2] and sizes[2] % tile_width != 0
    regroup(sch, output, sizes if sizes[0] > 1 else sizes[1:])
    try:
        # With a single row (or column) TensorIR drops its index, and the guard with it.
        if 1 in sizes[1:] or into_next_group:
            bind_elementwise(sch, output)
        else:
            sch.reverse_compute_inline(output)
    except ScheduleError:
        bind_elementwise(sch, output)


def interleave(sch: Schedule, anchor: Any, copy: Any, tile: Tile) -> None:
    """Rows as (row // 4, row % 4) and columns as (column // 32, column % 32), in the loops and in all buffers.

    A thread's tile is then a box, of rows t, t + 4, ..., and TensorIR finds that it needs no more than this box.
    """
    left, right = (find_block(sch, f"{n}_pad") or find_block(sch, n) for n in ("left", "right"))

    def split_rows(i: Any) -> tuple[Any, Any]:
        return i // tile.lane_rows, i % tile.lane_rows

    def split_columns(j: Any) -> tuple[Any, Any]:
        return j // tile.warp_columns, j % tile.warp_columns

    sch.transform_block_layout(anchor, lambda b, i, j, k: (b, *split_rows(i), *split_columns(j), k))
    sch.transform_block_layout(copy, lambda b, i, j: (b, *split_rows(i), *split_columns(j)))
    sch.transform_layout(left, ("write", 0), lambda b, i, k: (b, *split_rows(i), k))
    sch.transform_layout(right, ("write", 0), lambda b, k, j: (b, k, *split_columns(j)))
    sch.transform_layout(anchor, ("write", 0), lambda b, i, j: (b, *split_rows(i), *split_columns(j)))


def split(sch: Schedule, anchor: Any, tile: Tile, step: int) -> tuple[Any, Any, Any]:
    """Tile the loops and bind them; returns (the loop over threads, over steps of the depth, over 4s of a step)."""
    batch, rows, lane_row, columns, lane_column, depth = sch.get_loops(anchor)
    block_y, warp_y, row = sch.split(rows, [None, tile.warps_down, tile.rows])
    block_x, warp_x, vector = sch.split(columns, [None, tile.warps_across, tile.vectors])
    lane_column, lane = sch.split(lane_column, [tile.lane_columns, QUAD])
    steps, quads, inner = sch.split(depth, [None, step // QUAD, QUAD])
    sch.reorder(batch, block_y, block_x, warp_y, warp_x, lane_row, lane_column, steps, quads, inner, row, vector, lane)
    sch.bind(batch, "blockIdx.z")
    # The grid's x may be the longer: y ends at 65535.
    sch.bind(block_y, "blockIdx.x")
    sch.bind(block_x, "blockIdx.y")
    thread = sch.fuse(warp_y, warp_x, lane_row, lane_column)
    sch.bind(thread, "threadIdx.x")
    for loop in (inner, row, vector):
        sch.unroll(loop)
    sch.vectorize(lane)
    return thread, steps, quads


def to_shared(sch: Schedule, anchor: Any, index: int, loop: Any, threads: int, width: int) -> Any:
    """Copy a step's tile of operand `index` to shared memory, all threads together, `width` elements each at a time."""
    shared = sch.cache_read(anchor, index, "shared")
    sch.compute_at(shared, loop, preserve_unit_loops=True)
    turn, thread, lane = sch.split(sch.fuse(*sch.get_loops(shared)[-3:]), [None, threads, width])
    sch.unroll(turn)
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(lane)
    return shared


def in_registers(sch: Schedule, anchor: Any, step_loop: Any, quad_loop: Any) -> None:
    """Operands to registers, and sums of zero before the first step."""
    inner = sch.get_loops(anchor)[-4]
    for index, loop in ((0, quad_loop), (1, inner)):
        local = sch.cache_read(anchor, index, "local")
        sch.compute_at(local, loop, preserve_unit_loops=True)
        # Element by element, which nvcc turns into 128-bit loads. Were they vectors here, TVM would take shared memory
        # for an array of vectors, of which it then makes no asynchronous copy.
        for single in sch.get_loops(local)[-3:]:
            sch.unroll(single)
    init = sch.decompose_reduction(anchor, step_loop)
    *_, row, vector, lane = sch.get_loops(init)
    sch.unroll(row)
    sch.unroll(vector)
    sch.vectorize(lane)


def write_out(sch: Schedule, copy: Any, width: int) -> None:
    """Results to memory, `width` neighbouring columns at a time."""
    *own, lane = sch.get_loops(copy)[-4:]
    outer, lane = sch.split(lane, [None, width])
    for loop in (*own, outer):
        sch.unroll(loop)
    sch.vectorize(lane)
