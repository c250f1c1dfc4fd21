"""Depthwise convolution in NHWC (operators/conv2d_nhwc.py).

Every input value is used kh x kw times, never for another channel: the kernel lives on memory. Neighbouring threads
have neighbouring channels, `width` of them each, so a warp reads and writes whole lines; a thread sums `columns`
neighbouring pixels of one row, for which it loads each tap's weights once. What the windows of neighbouring pixels
share comes from L1: a copy in shared memory would cost a barrier and save nothing from DRAM.

The steps, each building on the one before (what they buy is not measured: no GPU yet):

    1. threads    one pixel and channel a thread
    2. vectors    as many channels a thread as one load brings
    3. columns    several pixels of a row a thread: weights are loaded once for them
"""

from __future__ import annotations

import math
from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, divisors, find_block
from .common import THREADS, constants, inline_consumers, widest, widest_written

LADDER = [
    Rung("threads", "one pixel and channel a thread", {}),
    Rung("vectors", "as many channels a thread as one load brings", {"width": FIRST}),
    Rung("columns", "several pixels of a row a thread: weights are loaded once for them", {"columns": FIRST}),
]

# Pixels of a thread: with 4 channels each, sums and inputs of 4 fill a quarter of the registers 2 blocks an SM leave.
MOST_COLUMNS = 4

# Channel groups of a block: two warps' worth, 1 KiB of each pixel.
MOST_ACROSS = 64


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_depthwise_nhwc`; declines any other."""
    if kernel.op != "conv2d_depthwise_nhwc":
        return None
    return schedule_window(sch, find_block(sch, "conv2d_depthwise_nhwc"), machine, choose)


def schedule_window(sch: Schedule, anchor: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule the reduction `anchor` over (image, row, column, channel; a window's rows, columns) and its epilogue."""
    n, height, columns_out, channels = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars[:4])
    if sch.get(sch.get_output_blocks("root")[0]).name_hint == sch.get(anchor).name_hint:
        output = sch.cache_write(anchor, 0, "local")
    else:
        output = inline_consumers(sch, anchor)
    if output is None or len(sch.get_loops(output)) != 4:
        return None
    # Eight of half precision, if TVM can make its vector of eight sums: as `widest_written` says, of no constant.
    dtypes = {str(sch.get(anchor).reads[0].source.dtype), *constants(sch, anchor)}
    widths = divisors(min(widest(channels, dtype) for dtype in dtypes))
    width = choose("width", widths, widths[-1])
    options = [c for c in divisors(columns_out) if c <= 2 * MOST_COLUMNS]
    # More pixels a thread only where enough threads remain to fill every SM.
    enough = machine.sms * machine.max_threads_per_sm
    total = n * height * columns_out * channels // width
    fitting = [c for c in options if c <= MOST_COLUMNS and total // c >= enough]
    columns = choose("columns", options, max(fitting, default=1))

    image, row, column, channel = sch.get_loops(output)
    column, pixels = sch.split(column, [None, columns])
    channel, lane = sch.split(channel, [None, width])
    # What comes behind the sums may be in fp32 where the image and the result are not.
    part, lane = sch.split(lane, [None, math.gcd(width, widest_written(sch, output, channels))])
    # Side by side a row's channels, then its pixels, as many as make a block.
    groups = channels // width
    across = min(groups, MOST_ACROSS)
    channel, thread_x = sch.split(channel, [None, across])
    column, thread_y = sch.split(column, [None, max(1, min(THREADS // across, columns_out // columns))])
    sch.reorder(image, row, column, channel, thread_y, thread_x, pixels, part, lane)
    sch.bind(sch.fuse(image, row), "blockIdx.x")
    sch.bind(column, "blockIdx.y")
    sch.bind(channel, "blockIdx.z")
    sch.bind(thread_y, "threadIdx.y")
    sch.bind(thread_x, "threadIdx.x")
    sch.unroll(pixels)
    sch.unroll(part)
    sch.vectorize(lane)
    sch.set_scope(anchor, 0, "local")
    sch.compute_at(anchor, thread_x, preserve_unit_loops=True)
    *tile, taps_down, taps_across = sch.get_loops(anchor)[-6:]
    sch.reorder(taps_down, taps_across, *tile)
    for loop in (taps_down, taps_across, *tile[:-1]):
        sch.unroll(loop)
    sch.vectorize(tile[-1])
    init = sch.decompose_reduction(anchor, taps_down)
    *own, lane = sch.get_loops(init)[-4:]
    part, lane = sch.split(lane, [None, math.gcd(width, widest_written(sch, init, channels))])
    for loop in (*own, part):
        sch.unroll(loop)
    sch.vectorize(lane)
    return sch
