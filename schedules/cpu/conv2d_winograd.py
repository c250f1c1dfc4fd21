"""Winograd convolution in the blocked layout (operators/conv2d_winograd.py).

For every task (a share of the output channels, a band of tile rows), in parallel:

    pad        the band's input with its border                       # in the core's own cache
    tile_in    B^T d B of every tile and block of input channels      # a x a registers' worth each
    product    for each of the a x a elements: tiles x channels by channels x output channels, as in product.py
    for every block of output channels:
        tile_out   A^T M A of every tile                              # from the products, while they are in L2
        output     epilogue(tile_out), row by row

The filters are a x a / 9 times as many bytes as those of a direct convolution, so they are read once a task, and the
bands are as long as that is worth; the input's transform is repeated for every share.

Measured: bench/results/amd-epyc-b521c9/ladders/conv2d_winograd.json
    conv2d 1x128x28x28,128,3,1,1 winograd-f4: unscheduled 5%, lanes 73%, tile 174%, unroll 173%, parallel 326%
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import (
    FIRST,
    L3_BYTES,
    LAST,
    Rung,
    accumulator_tile,
    block_names,
    divisors,
    find_block,
    is_reduction,
    parallelize,
    pays_in_parallel,
    task_split,
    unroll_depth,
    vectorize_fill,
    vectorize_unroll,
)

LADDER = [
    Rung("lanes", "one tile at a time, a block of channels in the lanes of a register", {}),
    Rung("tile", "a register tile of tiles and output channels in the products", {"rows": FIRST, "vectors": FIRST}),
    Rung("unroll", "several channels a turn of the innermost loop", {"unroll": FIRST}),
    Rung("parallel", "bands of tile rows and shares of the output channels on all cores",
         {"parallel": "no", "band": LAST, "share": FIRST}),
]  # fmt: skip

# A register of the input's transform: loaded, combined with three or four others and stored, in two passes; as the plan
# counts it (tvmopt/graph/strategy.py).
TRANSFORM_CYCLES = 6

_STAGES = ("pad", "rows_in", "tile_in", "conv2d_winograd", "rows_out", "tile_out")


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_winograd`; declines any other."""
    if kernel.op != "conv2d_winograd":
        return None
    stages = {name: find_block(sch, name) for name in _STAGES}
    pad, rows_in, tile_in, anchor, rows_out, tile_out = (stages[name] for name in _STAGES)
    output = _output(sch, stages)
    if output is None:
        return None
    n, a, _, out_blocks, count, lanes, channels = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    m = a - 2
    height, width = (int(iv.dom.extent) for iv in sch.get(output).iter_vars[2:4])
    down, across = -(-height // m), -(-width // m)

    # Bands end with a row of tiles that is whole; tiles that only fill up a register tile belong to no row.
    bands = [b for b in divisors(down) if b == down or (height % (b * m) == 0 and count == down * across)]
    filter_bytes = 4 * a * a * channels * out_blocks * lanes
    input_bytes = 4 * a * a * channels * count

    def traffic(band: int, share: int) -> float:
        # Filters come in once a band; every share transforms its input anew (makes it, writes it, reads it); a band's
        # products and transformed input should stay in L2.
        part = band / down
        products = 4 * a * a * count * out_blocks * lanes * part / share
        fits = products + input_bytes * part <= machine.l2
        made = L3_BYTES * TRANSFORM_CYCLES * 2 * a * a * count * channels // lanes
        return filter_bytes * (down // band) + (made + 2 * input_bytes) * share + (0 if fits else 2 * products * share)

    shares = [s for s in divisors(out_blocks) if s <= 4 * machine.cores]
    steps = n * a * a * count * out_blocks * channels
    band_default, share_default = task_split(bands, shares, down, n, machine, traffic, steps)
    band = choose("band", bands, band_default)
    share = choose("share", shares, share_default)
    rows_of_band = count if band == down else band * across
    vector_options = [v for v in (1, 2, 3, 4) if out_blocks // share % v == 0]
    rows_default, vectors_default = accumulator_tile(rows_of_band, vector_options, machine.registers)
    vectors = choose("vectors", vector_options, vectors_default)
    row_options = [r for r in divisors(rows_of_band) if r <= machine.registers - 2]
    rows = choose("rows", row_options, rows_default)
    unroll_options = [u for u in divisors(lanes) if u <= 16]
    unroll = choose(
        "unroll", unroll_options, unroll_depth(unroll_options, rows * vectors, vectors, machine.registers)
    )

    ln, lco, ly, _lx, _lci = sch.get_loops(output)
    co_share, co = sch.split(lco, [share, None])
    if band == down:
        sch.reorder(ln, co_share, co, ly)
        task = sch.fuse(ln, co_share)
    else:
        y_band, y = sch.split(ly, [None, band * m])
        sch.reorder(ln, co_share, y_band, co, y)
        task = sch.fuse(ln, co_share, y_band)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    _back(sch, rows_out, tile_out, co)
    _product(sch, anchor, task, rows, vectors, unroll)
    _there(sch, rows_in, tile_in, task)
    if pad is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    vectorize_unroll(sch, output, 0)
    return sch


def _output(sch: Schedule, stages: dict[str, Any]) -> Any | None:
    """The block that writes the result, everything but the stages inlined into it; None where that cannot be."""
    outputs = sch.get_output_blocks("root")
    if len(outputs) != 1 or len(sch.get_loops(outputs[0])) != 5:
        return None
    keep = {sch.get(block).name_hint for block in (*stages.values(), outputs[0]) if block is not None}
    for name in block_names(sch):
        if name not in keep:
            block = sch.get_sblock(name)
            if is_reduction(sch, block):
                return None
            sch.compute_inline(block)
    return outputs[0]


def _back(sch: Schedule, rows_out: Any, tile_out: Any, co: Any) -> None:
    """The output's transform: columns of a tile in registers, all of it unrolled."""
    sch.compute_at(tile_out, co, preserve_unit_loops=True)
    *_, i, j, lane = sch.get_loops(tile_out)
    sch.unroll(i)
    sch.unroll(j)
    sch.vectorize(lane)
    sch.compute_at(rows_out, i, preserve_unit_loops=True)
    sch.set_scope(rows_out, 0, "local")
    vectorize_unroll(sch, rows_out, 2)


def _there(sch: Schedule, rows_in: Any, tile_in: Any, task: Any) -> None:
    """The input's transform, a tile and a block of channels at a time."""
    sch.compute_at(tile_in, task, preserve_unit_loops=True)
    *_, e, f, p, ico, lane = sch.get_loops(tile_in)
    sch.reorder(p, ico, e, f, lane)
    sch.unroll(e)
    sch.unroll(f)
    sch.vectorize(lane)
    sch.compute_at(rows_in, e, preserve_unit_loops=True)
    sch.set_scope(rows_in, 0, "local")
    vectorize_unroll(sch, rows_in, 2)


def _product(sch: Schedule, anchor: Any, task: Any, rows: int, vectors: int, unroll: int) -> None:
    """One matrix product an element, sums in registers for the whole depth."""
    sch.compute_at(anchor, task, preserve_unit_loops=True)
    *_, e, f, oco, p, lane, k = sch.get_loops(anchor)
    group, vector = sch.split(oco, [None, vectors])
    tiles, row = sch.split(p, [None, rows])
    outer, inner = sch.split(k, [None, unroll])
    sch.reorder(e, f, group, tiles, outer, inner, row, vector, lane)
    for loop in (inner, row, vector):
        sch.unroll(loop)
    sch.vectorize(lane)
    written = sch.cache_write(anchor, 0, "local")
    sch.reverse_compute_at(written, tiles, preserve_unit_loops=True)
    vectorize_unroll(sch, written, 2)
    init = sch.decompose_reduction(anchor, outer)
    vectorize_unroll(sch, init, 2)
