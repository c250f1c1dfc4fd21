"""Depthwise convolution in the blocked layout (operators/conv2d_depthwise.py).

Every input value is used kh x kw times and never for another channel, so the kernel lives on memory, not on
arithmetic: a task is one block of channels and a band of rows, and a tile of pixels of one row is summed in registers
with the filter's taps, whose vectors are loaded once a tile. There is no padded copy of the input: storing it took half
of a 3x3 kernel's time at stride 2, where four values are read for one that is written, and more than a third at stride
1. The values are read from where they lie, under the border's conditions. These depend on the row and the tile only,
so LLVM tests each once a tile and not once a value.

What is left is the launch. At stride 2 the small ones take 4 to 5 us on two cores (576 channels of 14x14: 41 to 56% of
two cores' peak, from minute to minute, as the launch takes 1 to 2.6 us), where one core alone reaches 81% of its own
peak. Its assembly (`bench.kernels --op conv2d --shape 1x576x14x14,576,3,2,1,576 --variants manual --show asm`) has
little more to give: a tile of 7 pixels is its 63 multiply-adds, each of the 45 inputs loaded once, every other one as
an operand of its multiply-add, and no register goes by the stack.
The two larger ones at stride 2 (96 channels of 112x112, 144 of 56x56: 56 to 65% of the bandwidth, from run to run) are
the same loop: for 8 pixels 72 multiply-adds and 51 loads, nothing on the stack. Their 38 to 44 and 14 to 16 us are
about the arithmetic (23 and 9 us) and the bytes (25 and 9 us) one after the other.

It is not fused with the pointwise convolution behind it. At batch 1 there is little to win: all depthwise kernels of
MobileNetV2 take 0.25 of its 2.92 ms, and their neighbours, which read from L2 what these wrote, are at 85 to 97% of the
multiply-add peak; a fused kernel would save the launches and the stores, 3% of the network at most, and its tasks could
share out pixels only, of which images of 7x7 have few. At batch 32, where they wait for memory (25 of 119 ms), the
batch goes through the network in parts that stay in L3 (tvmopt/graph/parts.py), which helps every kernel.

Measured: bench/results/amd-epyc-b521c9/ladders/conv2d_depthwise.json
    conv2d 1x96x56x56,96,3,1,1,96: unscheduled 4%, lanes 29%, tile 30%, border 48%, parallel 91%
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import (
    FIRST,
    LAST,
    Rung,
    divisors,
    find_block,
    fuse_epilogue,
    parallelize,
    pays_in_parallel,
    task_split,
    vectorize_fill,
    window_in_registers,
)

LADDER = [
    Rung("lanes", "one pixel at a time, a block of channels in the lanes of a register", {}),
    Rung("tile", "a tile of pixels in registers: the filter's taps are loaded once a tile", {"columns": FIRST}),
    Rung("border", "no padded copy of the input", {"border": "made"}),
    Rung("parallel", "bands of rows of one block of channels on all cores", {"parallel": "no", "band": LAST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_depthwise`; declines any other."""
    if kernel.op != "conv2d_depthwise":
        return None
    anchor, pad = find_block(sch, "conv2d_depthwise"), find_block(sch, "pad")
    n, blocks, height, width, lanes, kh, kw = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    made = pad is not None and choose("border", ["read", "made"], "read") == "made"
    if pad is not None and not made:
        sch.compute_inline(pad)
    output = fuse_epilogue(sch, anchor, [pad] if made else [])
    if output is None:
        return None
    # A register a pixel, and one more for an input value that several taps share: LLVM holds these from one tap to the
    # next. Above a quarter of the registers it spills: 3x3 at stride 1, 7 pixels took 0.5 to 0.6 of the time of 14.
    column_options = [c for c in divisors(width) if c <= machine.registers - kw - 1]
    columns = choose("columns", column_options, max(c for c in column_options if c <= machine.registers // 4))

    # The halo makes short bands costly; a band's padded input, if made, should stay in L1 beside its output.
    def traffic(band: int, share: int) -> float:
        halo_bytes = 4 * lanes * width * (band + kh - 1)
        return blocks * height / band * halo_bytes * (2 if made and halo_bytes > machine.l1 / 2 else 1)

    steps = n * blocks * height * width * kh * kw
    band_default, _ = task_split(divisors(height), [blocks], height, n, machine, traffic, steps)
    band = choose("band", divisors(height), band_default)
    ln, lco, ly, lx, _lci = sch.get_loops(output)
    y_band, _y_rows = sch.split(ly, [None, band])
    x_tiles, _x_tile = sch.split(lx, [None, columns])
    task = sch.fuse(ln, lco, y_band)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, x_tiles, preserve_unit_loops=True)
    if made:
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    window_in_registers(sch, anchor, output, unroll=True)
    return sch
