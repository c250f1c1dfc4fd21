"""Direct convolution in the blocked layout (operators/conv2d_direct.py).

The algorithm, for one image:

    for every tile of `rows` x `columns` pixels and `vectors` blocks of output channels:
        sums = 0                                         # rows x columns x vectors SIMD registers
        for every block of input channels, tap (kh, kw) and channel in the block:
            w[0..vectors] = weights                      # one register each
            for every pixel of the tile:                 # unrolled
                x = broadcast(input[pixel + tap])        # one scalar to all lanes
                sums[pixel][0..vectors] += x * w         # `vectors` multiply-adds
        output = epilogue(sums)                          # bias, residual, activation: still in registers

The steps, each building on the one before (python -m bench.kernels times them):

    1. tile      sums in registers, output channels in the lanes, everything unrolled
    2. parallel  tasks of several image rows (and a share of the output channels) on all cores, unless the kernel is so
                 short that the launch costs more than it saves
    3. pad       the border of zeros is made per task, in the core's own cache, not as a stage of its own
    4. order     pixels outside, vectors inside: a broadcast is used at once and needs one register. The other way
                 round LLVM keeps all of them alive and spills the sums
    5. unroll    as many input channels a turn as the registers hold the weights of: of the peak, at 64 channels 3x3
                 56x56, 2 channels a turn reach 91%, 1 reaches 85%, and 4 and 8, which spill, 88% and 76%
    6. weights   with many channels and few pixels, one block of weights stays in L1 for a band of pixels, instead of
                 the sums in registers for the whole reduction (GotoBLAS' order of loops)

Measured: bench/results/amd-epyc-b521c9/ladders/conv2d_direct.json
    conv2d 1x64x56x56,64,3,1,1 direct: unscheduled 1% (unstable), lanes 14%, tile 37%, order 49%, unroll 49%, parallel
        95%, pad 98%, weights 98%
    conv2d 1x512x7x7,512,3,1,1 direct: unscheduled 1% (unstable), lanes 12%, tile 49%, order 49%, unroll 49%, parallel
        97%, pad 98%, weights 96%
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.sym import detect_linear_equation

from tvmopt.machine import Machine

from .common import (
    FIRST,
    LAST,
    Rung,
    accumulator_tile,
    divisors,
    find_block,
    fuse_epilogue,
    parallelize,
    pays_in_parallel,
    place_pad,
    task_split,
    unroll_depth,
    vectorize_unroll,
)

LADDER = [
    Rung("lanes", "one pixel at a time, a block of output channels in the lanes of a register", {}),
    Rung("tile", "a tile of pixels and vectors summed in registers",
         {"columns": FIRST, "vectors": FIRST, "rows": FIRST}),
    Rung("order", "pixels outside, vectors inside: no broadcast stays alive", {"order": "vectors"}),
    Rung("unroll", "several input channels a turn of the innermost loop", {"unroll": FIRST}),
    Rung("parallel", "bands of rows and shares of the channels on all cores",
         {"parallel": "no", "band": LAST, "share": FIRST}),
    Rung("pad", "the border made per task, in the core's own cache", {"pad": "stage"}),
    Rung("weights", "where many channels meet few pixels, weights stay in L1", {"stationary": "sums"}),
]  # fmt: skip


def column_stride(sch: Schedule, anchor: Any) -> int:
    """How many columns of the input lie between two neighbouring pixels of the output."""
    block = sch.get(anchor)
    column, tap = block.iter_vars[3].var, block.iter_vars[7].var
    index = block.reads[0].region[3].min
    return int(detect_linear_equation(index, [column, tap])[0])


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_direct`; declines any other."""
    if kernel.op != "conv2d_direct":
        return None
    anchor, pad = find_block(sch, "conv2d_direct"), find_block(sch, "pad")
    n, out_blocks, height, width, lanes = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars[:5])
    in_blocks, kh, kw, in_lanes = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars[5:])
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None:
        return None

    # Register tile: as many pixels of one row as fit. Where a row is so short that this leaves registers empty,
    # several rows. At most 4 vectors: more weights in registers than that leave too few for the sums.
    vector_options = [v for v in (1, 2, 3, 4) if out_blocks % v == 0]
    columns_default, vectors_default = accumulator_tile(width, vector_options, machine.registers)
    columns = choose("columns", [c for c in divisors(width) if c <= machine.registers - 2], columns_default)
    vectors = choose("vectors", vector_options, vectors_default)
    free = (machine.registers - 1 - vectors) // (columns * vectors)
    row_options = [r for r in divisors(height) if r == 1 or (r <= free and columns == width)]
    rows = choose("rows", row_options, row_options[-1])

    # Tasks: a share of the output channels times a band of rows. A share of the weights should stay in half of the
    # core's L2 and the input of a band in a quarter (the rest is for what passes through); what does not comes in
    # again, the input once a share and group of vectors, the weights once a band.
    groups = out_blocks // vectors
    weight_bytes = 4 * out_blocks * lanes * in_blocks * in_lanes * kh * kw
    row_bytes = 4 * in_blocks * in_lanes * width

    def traffic(band: int, share: int) -> float:
        fits = weight_bytes / share <= machine.l2 / 2
        input_fits = row_bytes * (band + kh - 1) <= machine.l2 / 4
        weights = weight_bytes * (1 if fits else height // band)
        halo = (band + kh - 1) / band
        return weights + row_bytes * height * halo * share * (1 if input_fits else groups // share)

    band_options = [b for b in divisors(height) if b % rows == 0]
    share_options = [s for s in divisors(groups) if s <= 4 * machine.cores]
    steps = n * out_blocks * height * width * in_blocks * in_lanes * kh * kw
    band_default, share_default = task_split(band_options, share_options, height, n, machine, traffic, steps)
    band = choose("band", band_options, band_default)
    share = choose("share", share_options, share_default)
    # Input channels a turn: enough that the loop's own instructions vanish beside the multiply-adds.
    # With a stride LLVM keeps a second broadcast value: in 32 full registers that spilled every sum (37% of the peak).
    registers = machine.registers - (column_stride(sch, anchor) > 1)
    unroll_default = unroll_depth(divisors(in_lanes), columns * rows * vectors, vectors, registers)
    unroll = choose("unroll", [u for u in divisors(in_lanes) if u <= 16], unroll_default)

    # What stays while the rest streams by. Usually the sums, in registers, for the whole reduction; but then every tile
    # of pixels reads all weights of its channels again, and where these take a good part of L2 that is slower than
    # the arithmetic. There the weights of one block of input channels stay, in L1, for a whole band of pixels.
    slice_bytes = 4 * vectors * lanes * in_blocks * in_lanes * kh * kw
    tiles = (band // rows) * (width // columns)
    default = "weights" if slice_bytes > machine.l2 / 4 and tiles > 1 and in_blocks > 1 else "sums"
    weights_stay = choose("stationary", ["sums", "weights"], default) == "weights"

    loops = sch.get_loops(output)
    ln, lco, ly, lx, lci = loops
    co_share, co_group, co_vector = sch.split(lco, [share, None, vectors])
    y_band, y_rows, y_tile = sch.split(ly, [None, band // rows, rows])
    x_tiles, x_tile = sch.split(lx, [None, columns])
    sch.reorder(ln, co_share, y_band, co_group, y_rows, x_tiles, y_tile, x_tile, co_vector, lci)
    task = sch.fuse(ln, co_share, y_band)
    parallel = parallelize(sch, task, pays_in_parallel(kernel), choose)
    if weights_stay:
        # The sums of a whole band go through a buffer in L1 or L2, once a block of input channels.
        sch.set_scope(anchor, 0, "global")
        sch.compute_at(anchor, co_group, preserve_unit_loops=True)
    else:
        sch.compute_at(anchor, x_tiles, preserve_unit_loops=True)
    if pad is not None:
        place_pad(sch, pad, task, parallel, choose)
    # Not a choice of search, but of the ladder.
    order = choose("order", ["pixels"], "pixels")
    tn, tco, ty, tx, tci, ico, rkh, rkw, ici = sch.get_loops(anchor)[-9:]
    ici_outer, ici_inner = sch.split(ici, [None, unroll])
    if weights_stay:
        ty_rows, ty = sch.split(ty, [None, rows])
        tx_tiles, tx = sch.split(tx, [None, columns])
        sch.reorder(ico, tn, ty_rows, tx_tiles, rkh, rkw, ici_outer, ici_inner, ty, tx, tco, tci)
    else:
        tile = [tn, ty, tx, tco] if order == "pixels" else [tn, tco, ty, tx]
        sch.reorder(ico, rkh, rkw, ici_outer, ici_inner, *tile, tci)
    sch.unroll(ici_inner)
    vectorize_unroll(sch, anchor, 3)
    vectorize_unroll(sch, output, 3)
    init = sch.decompose_reduction(anchor, ico)
    vectorize_unroll(sch, init, 0 if weights_stay else 4)
    return sch
