"""Sums over the pixels of NHWC images (global pooling, squeeze-and-excite): what is reduced is not the last axis.

A thread's neighbours have neighbouring channels, so that a warp reads whole lines of memory; further threads of the
block share the pixels of these channels among them and put their sums together in shared memory. One kernel: it has
few results, each of a few hundred terms, and would be over in the time that a second launch takes to start.

    for p in range(thread_y, pixels, threads_y):  sum += image[p][channel of thread_x]
    total = allreduce over thread_y (sum)

The steps, each building on the one before (no GPU has timed them yet; OpenCL on a CPU has run them all):

    1. threads   one channel a thread, which sums all pixels
    2. pixels    several threads a channel: there are too few channels to fill the GPU

What comes after the sums is computed with them if it has as many elements; a pass over the image is its own kernel.
"""

from __future__ import annotations

import math
from typing import Any

from tvm.s_tir import Schedule
from tvm.tirx import IndexMap

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, block_names, extents, is_reduction
from .common import THREADS, bind_elementwise, inline_producers, widest_written
from .row_shape import REDUCED, dtype_of, grouped, results_first

# Channels of a block: a warp's threads read one line of 128 bytes.
ACROSS = 32

LADDER = [
    Rung("threads", "one channel a thread, which sums all pixels", {}),
    Rung("pixels", "several threads a channel, each with a share of the pixels", {"down": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a kernel with one reduction, over axes before the innermost of what it reads; declines any other."""
    names = block_names(sch)
    reductions = [name for name in names if is_reduction(sch, sch.get_sblock(name))]
    outputs = [sch.get(block).name_hint for block in sch.get_output_blocks("root")]
    if len(reductions) != 1 or len(outputs) != 1 or not over_columns(sch, reductions[0]):
        return None
    anchor = sch.get_sblock(reductions[0])
    iters = sch.get(anchor).iter_vars
    sizes = [int(iv.dom.extent) for iv in iters]
    first = [int(iv.iter_type) for iv in iters].index(REDUCED)
    results, terms = math.prod(sizes[:first]), math.prod(sizes[first:])
    after = names[names.index(reductions[0]) + 1 :]
    if any(extents(sch, sch.get_sblock(name)) != shape_of(sch, name) for name in after):
        return None
    target = write_results(sch, anchor, after, results)
    if len(sch.get_consumers(anchor)) > 1:
        # The output needs the sums beside what was made of them, but they stay in registers.
        return None
    inline_producers(sch, names[: names.index(reductions[0])])
    if (output := outputs[0]) != sch.get(target).name_hint and output != reductions[0]:
        last = sch.get_sblock(output)
        bind_elementwise(sch, last, widest_written(sch, last, int(sch.get(last).writes[0].source.shape[-1])))

    across = min(ACROSS, 1 << (results - 1).bit_length())
    downs = [d for d in (1, 2, 4, 8, 16, 32) if d <= terms and d * across <= 4 * THREADS]
    # Threads for every SM, as long as each of them has a few terms; above 8 most of them only wait at the barriers.
    wanted = machine.sms * machine.max_threads_per_sm
    fitting = [d for d in downs if d <= 8 and results * d <= wanted and terms >= 2 * d]
    down = choose("down", downs, max(fitting, default=1))
    schedule_columns(sch, anchor, target, across, down)
    return sch


def over_columns(sch: Schedule, name: str) -> bool:
    """Whether a reduction has its reduced axes last but reads the innermost axis of its input by a result's."""
    found = results_first(sch, name)
    if found is None:
        return False
    stage, _, first = found
    channel = stage.iter_vars[first - 1]
    inner = [read.region[-1].min for read in stage.reads if len(read.region) > 1]
    return bool(inner) and int(channel.dom.extent) > 1 and all(index.same_as(channel.var) for index in inner)


def shape_of(sch: Schedule, name: str) -> list[int]:
    """The extents of a stage's axes."""
    return [int(iv.dom.extent) for iv in sch.get(sch.get_sblock(name)).iter_vars]


def write_results(sch: Schedule, anchor: Any, after: list[str], results: int) -> Any:
    """Inline what comes behind the sums into the last stage with as many elements, and that with more into the output.

    Returns the stage that writes the results to memory: that last one, else a copy of the sums.
    """
    small = [name for name in after if math.prod(shape_of(sch, name)) == results]
    large = [name for name in after if name not in small]
    for name in (*small[:-1], *large[:-1]):
        sch.compute_inline(sch.get_sblock(name))
    return sch.get_sblock(small[-1]) if small else sch.cache_write(anchor, 0, "local")


def schedule_columns(sch: Schedule, anchor: Any, target: Any, across: int, down: int) -> None:
    """Bind `target`'s elements to `across` threads of a block, and the terms of each to `down`."""
    for block in (anchor, target):
        iters = sch.get(block).iter_vars
        sizes = [int(iv.dom.extent) for iv in iters]
        kinds = [int(iv.iter_type) for iv in iters]
        at = kinds.index(REDUCED) if REDUCED in kinds else len(sizes)
        index_map = IndexMap.from_func(grouped(sizes, at), len(sizes), index_dtype=dtype_of(iters))
        sch.transform_block_layout(block, index_map)
    shape = [int(x) for x in sch.get(anchor).writes[0].source.shape]
    sch.transform_layout(anchor, ("write", 0), grouped(shape, len(shape)))
    sch.set_scope(anchor, 0, "local")
    block, thread = sch.split(sch.get_loops(target)[0], [None, across])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    # All of a channel's threads have its sum, one writes it.
    _, writer = sch.split(sch.add_unit_loop(target), [None, down])
    sch.bind(writer, "threadIdx.y")
    sch.compute_at(anchor, thread, preserve_unit_loops=True)
    _, share = sch.split(sch.get_loops(anchor)[-1], [None, down])
    sch.bind(share, "threadIdx.y")
