"""Max and average pooling in the blocked layout: windows of rows and columns, a block of channels in the lanes.

Every input value is used by a few neighbouring windows and never for another channel, so the kernel lives on memory: a
task is one block of channels and a band of rows, and a tile of pixels of one row is reduced in registers, all taps
unrolled. As in conv2d_depthwise.py there is no padded copy of the input, whose stores took as long as the
windows at stride 2: values are read from where they lie, under the border's conditions, which LLVM tests once a tile.

Measured: bench/results/amd-epyc-b521c9/ladders/pool.json
    max_pool2d 1x64x112x112,3,2,1 of the bandwidth: unscheduled 14%, lanes 15%, tile 15%, border 36%, parallel 68%
"""

from __future__ import annotations

import math
from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import Machine

from .common import (
    FIRST,
    LAST,
    LONGEST_VECTOR,
    Rung,
    block_names,
    divisors,
    extents,
    fuse_epilogue,
    is_reduction,
    parallelize,
    task_split,
    vectorize_fill,
    window_in_registers,
)
from .fallback import SERIAL_BELOW

LADDER = [
    Rung("lanes", "one window at a time, a block of channels in the lanes of a register", {}),
    Rung("tile", "a tile of windows of one row in registers", {"columns": FIRST}),
    Rung("border", "no padded copy of the input", {"pad": "task"}),
    Rung("parallel", "bands of rows of one block of channels on all cores", {"parallel": "no", "band": LAST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a pooling kernel of blocked images; declines others, as those of windows whose size varies."""
    if kernel.op != "pool2d":
        return None
    names = block_names(sch)
    reductions = [name for name in names if is_reduction(sch, sch.get_sblock(name))]
    if len(reductions) != 1:
        return None
    anchor = sch.get_sblock(reductions[0])
    # An image in blocks (batch, block, row, column, lane), and the window's rows and columns.
    kinds = "".join("reduction" if int(iv.iter_type) == 2 else "s" for iv in sch.get(anchor).iter_vars)
    if kinds != "sssss" + "reduction" * 2 or len(sch.get_loops(anchor)) != len(sch.get(anchor).iter_vars):
        return None
    n, blocks, height, width, lanes = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars[:5])
    if not 1 < lanes <= LONGEST_VECTOR:
        return None
    steps = max(math.prod(extents(sch, sch.get_sblock(name))) for name in names)
    pads = [name for name in names[: names.index(reductions[0])] if name.startswith("pad")]
    pad = sch.get_sblock(pads[0]) if pads else None
    window = [int(iv.dom.extent) for iv in sch.get(anchor).iter_vars[5:]]
    if pad is not None and choose("pad", ["read", "task"], "read") == "read":
        sch.compute_inline(pad)
        pad = None
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None or len(sch.get_loops(output)) != 5:
        return None
    # A register a window, and one more for an input value that several windows share, which LLVM holds from one tap to
    # the next: at stride 1, 7 windows took 0.7 to 0.9 of the time of 14.
    columns_options = [c for c in divisors(width) if c <= machine.registers // 2]
    columns = choose("columns", columns_options, max(c for c in columns_options if c <= machine.registers // 4))

    # Rows at the seam of two bands are read twice; a band's padded input, if made, should stay in L1.
    def traffic(band: int, _share: int) -> float:
        band_bytes = kernel.bytes * (band + window[0] - 1) / (n * blocks * height)
        return blocks * height / band * band_bytes * (2 if pad is not None and band_bytes > machine.l1 / 2 else 1)

    band_default, _ = task_split(divisors(height), [blocks], height, n, machine, traffic, steps // lanes)
    band = choose("band", divisors(height), band_default)

    ln, lco, ly, lx, _lci = sch.get_loops(output)
    y_band, _y_rows = sch.split(ly, [None, band])
    x_tiles, _x_tile = sch.split(lx, [None, columns])
    task = sch.fuse(ln, lco, y_band)
    parallelize(sch, task, steps >= SERIAL_BELOW, choose)
    sch.compute_at(anchor, x_tiles, preserve_unit_loops=True)
    if pad is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    window_in_registers(sch, anchor, output, unroll=math.prod(window) <= LONGEST_VECTOR)
    return sch
