"""Max and average pooling in the blocked layout: windows of rows and columns, a block of channels in the lanes.

Every input value is used by a few neighbouring windows and never for another channel, so the kernel lives on memory: a
task is one block of channels and a band of rows, its padded input is made in the core's own cache, and a tile of
pixels of one row is reduced in registers, all taps unrolled.
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
    extent,
    extents,
    fuse_epilogue,
    is_reduction,
    parallelize,
    place_pad,
    window_in_registers,
)
from .fallback import SERIAL_BELOW

LADDER = [
    Rung("lanes", "one window at a time, a block of channels in the lanes of a register", {}),
    Rung("tile", "a tile of windows of one row in registers", {"columns": FIRST}),
    Rung("parallel", "bands of rows of one block of channels on all cores", {"parallel": "no", "band": LAST}),
    Rung("pad", "the border made per task, in the core's own cache", {"pad": "stage"}),
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
    n, _blocks, height, width, lanes = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars[:5])
    if not 1 < lanes <= LONGEST_VECTOR:
        return None
    steps = max(math.prod(extents(sch, sch.get_sblock(name))) for name in names)
    pads = [name for name in names[: names.index(reductions[0])] if name.startswith("pad")]
    pad = sch.get_sblock(pads[0]) if pads else None
    output = fuse_epilogue(sch, anchor, [pad] if pad is not None else [])
    if output is None or len(sch.get_loops(output)) != 5:
        return None
    # One register a window; half of them, because the taps in flight need some too.
    columns_options = [c for c in divisors(width) if c <= machine.registers // 2]
    columns = choose("columns", columns_options, columns_options[-1])
    # A task's input and output stay in L1; two tasks a core at least, so that one core does not wait for the other.
    row_bytes = 4 * lanes * width * (1 + kernel.bytes // max(4 * n * _blocks * height * width * lanes, 1))
    bands = divisors(height)
    fitting = [b for b in bands if b * row_bytes <= machine.l1]
    band = choose("band", bands, fitting[-1] if fitting else 1)

    ln, lco, ly, lx, _lci = sch.get_loops(output)
    y_band, _y_rows = sch.split(ly, [None, band])
    x_tiles, _x_tile = sch.split(lx, [None, columns])
    task = sch.fuse(ln, lco, y_band)
    parallel = parallelize(sch, task, steps >= SERIAL_BELOW, choose)
    sch.compute_at(anchor, x_tiles, preserve_unit_loops=True)
    if pad is not None:
        place_pad(sch, pad, task, parallel, choose)
    window = [extent(sch, loop) for loop in sch.get_loops(anchor)[-2:]]
    window_in_registers(sch, anchor, output, unroll=math.prod(window) <= LONGEST_VECTOR)
    return sch
