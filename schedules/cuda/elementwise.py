"""Element-wise chains, layout changes, copies: what lives on memory alone.

One pass, whatever stages the chain has: nothing in between is stored. Neighbouring threads have neighbouring elements,
`width` of them each, so that one instruction moves 16 bytes a thread and a warp moves whole lines.

The steps, each building on the one before (what they buy is not measured: no GPU yet):

    1. threads   one element a thread: a warp moves whole lines, 4 bytes a thread
    2. vectors   as many as one 128-bit access moves: a quarter of the instructions for the same bytes
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, block_names, divisors, extents, is_reduction
from .common import bind_elementwise, widest_written

LADDER = [
    Rung("threads", "one element a thread, nothing in between is stored", {}),
    Rung("vectors", "as many elements a thread as one 128-bit access moves", {"width": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a kernel without reduction and with one output; declines any other."""
    outputs = sch.get_output_blocks("root")
    names = block_names(sch)
    if len(outputs) != 1 or any(is_reduction(sch, sch.get_sblock(name)) for name in names):
        return None
    output = outputs[0]
    last = sch.get(output).name_hint
    try:
        for name in names:
            if name != last:
                sch.compute_inline(sch.get_sblock(name))
    except ScheduleError:
        return None
    sizes = extents(sch, output)
    if not sizes or len(sizes) != len(sch.get(output).iter_vars):
        return None
    widths = divisors(widest_written(sch, output, sizes[-1]))
    width = choose("width", widths, widths[-1])
    bind_elementwise(sch, output, width)
    return sch
