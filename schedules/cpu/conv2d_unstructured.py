"""Convolution with unstructured weights (operators/unstructured.py): pixels in the lanes, a weight at a time.

    for every task (a band of rows, a share of the output channels), in parallel:
        planes = the band's part of every channel, zeros round it
        for every output channel:
            sums[vectors] = 0                                    # in registers: all pixels of the band
            for every weight it keeps:
                w = broadcast(value); x = planes + offset
                for v in vectors:  sums[v] += x[v] * w           # a multiply-add reads its pixels from memory
            output = epilogue(sums), row by row

The multiply-adds of a weight are the whole inner loop, but for the loads of the weight and its offset. They wait for
their pixels: channels are kept at random, so that a band of all of them comes from L2, and a window that moves along
a row reads two lines of the cache for a register. At 64 channels of 56x56 pixels, 3x3, 90% zeros, two cores of Zen 4
take 258 us, 2.6 multiply-adds' time for each; dense 1004, by Winograd 313, by blocks of 16 outputs, which hold few
zeros then, 794. Planes that are made by all cores first, and so are half in the other core's cache, made it 281, and
of 1024 channels at 14x14, 1x1, 212 for 155.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir import Call
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from tvmopt.machine import Machine

from .common import (
    FIRST,
    LONGEST_VECTOR,
    Rung,
    divisors,
    elementwise,
    extents,
    find_block,
    inline_all_but,
    parallelize,
    pays_in_parallel,
    vectorize_unroll,
)

LADDER = [
    Rung("lanes", "pixels in the lanes, a register of them at a time", {}),
    Rung("planes", "the part of the planes that a band depends on, made where it is read", {"planes": "stage"}),
    Rung("parallel", "bands of rows and shares of the channels on all cores", {"parallel": "no", "share": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_unstructured`; declines any other."""
    if kernel.op != "conv2d_unstructured":
        return None
    anchor, planes, image = (find_block(sch, name) for name in ("conv2d_unstructured", "planes", "image"))
    output = _output(sch, [anchor, planes], image)
    if output is None:
        return None
    batch, channels, bands, *_ = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    shares = divisors(channels)
    enough = [s for s in shares if s * batch * bands % machine.cores == 0]
    share = choose("share", shares, next(iter(enough), shares[-1]))

    ln, lo, ly, lx = sch.get_loops(output)
    o_share, o = sch.split(lo, [share, None])
    y_band, y = sch.split(ly, [bands, None])
    sch.reorder(ln, y_band, o_share, o, y, lx)
    task = sch.fuse(ln, y_band, o_share)
    parallel = parallelize(sch, task, pays_in_parallel(kernel), choose)
    sch.compute_at(anchor, o, preserve_unit_loops=True)
    *_, vector, lane, k = sch.get_loops(anchor)
    sch.reorder(k, vector, lane)
    written = sch.cache_write(anchor, 0, "local")
    for block in (anchor, written):
        vectorize_unroll(sch, block, 1)
    vectorize_unroll(sch, sch.decompose_reduction(anchor, k), 1)
    _rowwise(sch, output)
    if planes is not None:
        # Every task makes the part of the planes that its band depends on, in its core's cache.
        place = choose("planes", ["task", "stage"], "task")
        if place == "task":
            sch.compute_at(planes, task, preserve_unit_loops=True)
        *_, n, channel, down, across, row, _ = sch.get_loops(planes)
        filled = sch.fuse(n, channel)
        if parallel and place == "stage":
            sch.parallel(filled)
        for phase in (down, across):
            sch.unroll(phase)
        try:
            _rowwise(sch, sch.decompose_padding(planes, row))
            _rowwise(sch, planes)
        except ScheduleError:
            # Without a border it is a copy; with phases each has a border of its own, and values lie apart.
            if not _is_choice(sch, planes):
                _rowwise(sch, planes)
    return sch


def _output(sch: Schedule, stages: Sequence[Any], image: Any) -> Any | None:
    """The block that writes rows of the image: the last one, with the epilogue in it, where its loops are the image's.

    Else (a matrix product's image is turned afterwards) the last one is a parallel pass of its own. None if the kernel
    is no chain.
    """
    outputs = sch.get_output_blocks("root")
    if len(outputs) != 1:
        return None
    own = extents(sch, outputs[0]) == extents(sch, image)
    names = [sch.get(block).name_hint for block in (*stages, outputs[0], None if own else image) if block is not None]
    if not inline_all_but(sch, names):
        return None
    if own:
        return outputs[0]
    elementwise(sch, outputs[0])
    return image


def _is_choice(sch: Schedule, block: Any) -> bool:
    """Whether what `block` writes depends on a condition."""
    value = sch.get(block).body.value
    return isinstance(value, Call) and getattr(value.op, "name", "") == "prim.if_then_else"


def _rowwise(sch: Schedule, block: Any) -> None:
    """A row of an image at a time, in as few registers as it takes."""
    row = sch.get_loops(block)[-1]
    most = max(d for d in divisors(int(sch.get(row).extent)) if d <= LONGEST_VECTOR)
    sch.vectorize(sch.split(row, [None, most])[1])
