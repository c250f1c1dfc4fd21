"""Depthwise convolution in the blocked layout (operators/conv2d_depthwise.py).

Every input value is used kh x kw times and never for another channel, so the kernel lives on memory, not on
arithmetic: a task is one block of channels and a band of rows, its padded input is made in L1, and a tile of pixels of
one row is summed in registers with the filter's taps, whose vectors are loaded once a tile.
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
    Rung("parallel", "bands of rows of one block of channels on all cores", {"parallel": "no", "band": LAST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_depthwise`; declines any other."""
    if kernel.op != "conv2d_depthwise":
        return None
    anchor, pad = find_block(sch, "conv2d_depthwise"), find_block(sch, "pad")
    n, blocks, height, width, lanes, kh, kw = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None:
        return None
    # One register a pixel; half of them, because the taps and the input need some too.
    column_options = [c for c in divisors(width) if c <= machine.registers - kw - 1]
    columns = choose("columns", column_options, max(c for c in column_options if c <= machine.registers // 2))

    # A band's padded input should stay in L1 beside its output; the halo makes short bands costly.
    def traffic(band: int, share: int) -> float:
        halo_bytes = 4 * lanes * width * (band + kh - 1)
        return blocks * height / band * halo_bytes * (1 if halo_bytes <= machine.l1 / 2 else 2)

    band_default, _ = task_split(divisors(height), [blocks], height, n, machine, traffic)
    band = choose("band", divisors(height), band_default)
    ln, lco, ly, lx, _lci = sch.get_loops(output)
    y_band, _y_rows = sch.split(ly, [None, band])
    x_tiles, _x_tile = sch.split(lx, [None, columns])
    task = sch.fuse(ln, lco, y_band)
    parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, x_tiles, preserve_unit_loops=True)
    if pad is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    window_in_registers(sch, anchor, output, unroll=True)
    return sch
