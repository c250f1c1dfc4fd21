"""Max and average pooling in NHWC: the nest of depthwise convolution without weights.

The border of zeros (or of the least number) is not stored: a thread asks whether its window reaches beyond the image.

The steps, each building on the one before (what they buy is not measured: no GPU yet):

    1. threads   one window and channel a thread: a warp's neighbours are channels, whole lines of memory
    2. vectors   as many channels a thread as one load brings
    3. columns   several windows of a row a thread: fewer indices, and what windows share comes from L1 in a row
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, block_names, is_reduction
from .common import inline_producers
from .depthwise import schedule_window

# Taps that are unrolled: a global pooling's hundreds of them are a reduction of another kind.
MOST_TAPS = 64

LADDER = [
    Rung("threads", "one window and channel a thread", {}),
    Rung("vectors", "as many channels a thread as one load brings", {"width": FIRST}),
    Rung("columns", "several windows of a row a thread", {"columns": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a pooling of images in NHWC; declines others, as those of windows whose size varies."""
    names = block_names(sch)
    reductions = [name for name in names if is_reduction(sch, sch.get_sblock(name))]
    if kernel.op != "pool2d" or len(reductions) != 1:
        return None
    anchor = sch.get_sblock(reductions[0])
    iters = sch.get(anchor).iter_vars
    # Image, row, column, channel; and the window's rows and columns.
    reduced = [int(iv.iter_type) == 2 for iv in iters]
    if len(iters) != 6 or any(reduced[:4]) or not all(reduced[4:]) or len(sch.get_loops(anchor)) != 6:
        return None
    if int(iters[4].dom.extent) * int(iters[5].dom.extent) > MOST_TAPS or int(iters[3].dom.extent) == 1:
        return None
    inline_producers(sch, names[: names.index(reductions[0])])
    return schedule_window(sch, anchor, machine, choose)
