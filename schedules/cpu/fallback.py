"""Everything without a rule of its own: pooling, padding, layout changes, reductions, element-wise chains.

Such kernels live on memory bandwidth. What helps is the same for all of them: no intermediate result goes through
memory that need not, all cores take part, and the innermost loop is in SIMD registers.

    1. inline     element-wise stages into their consumers
    2. parallel   the outer loops of every remaining stage, fused; a plane of an image a task
    3. vectorise  the innermost spatial loop, of a reduction too: one lane per output, or partial sums
"""

from __future__ import annotations

import math
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from tvmopt.machine import Machine

from .common import LONGEST_VECTOR, block_names, divisors, elementwise, extent, is_reduction

# A parallel launch costs about 2 microseconds, in which one core does this many element-wise steps: a smaller kernel
# stays serial.
SERIAL_BELOW = 4096

# With so many tasks a core, no core waits long for the other's last one.
PLANES_A_CORE = 8


def rule(sch: Schedule, kernel: Any, machine: Machine, choose: Any) -> Schedule | None:
    """Schedule any kernel."""
    outputs = {sch.get(block).name_hint for block in sch.get_output_blocks("root")}
    for name in block_names(sch):
        block = sch.get_sblock(name)
        if name not in outputs and not is_reduction(sch, block):
            _inline(sch, block)
    for name in block_names(sch):
        block = sch.get_sblock(name)
        if not sch.get_loops(block):
            continue  # a scalar
        if is_reduction(sch, block):
            _reduction(sch, block)
        elif _size(sch, block) >= SERIAL_BELOW:
            if not _images(sch, block, machine):
                elementwise(sch, block)
        else:
            _vectorize_last(sch, block)
    return sch


def _inline(sch: Schedule, block: Any) -> None:
    """Inline where TensorIR allows it; a stage it must keep is scheduled like any other."""
    try:
        sch.compute_inline(block)
    except ScheduleError:
        return


def _size(sch: Schedule, block: Any) -> int:
    return math.prod(extent(sch, loop) for loop in sch.get_loops(block))


def _images(sch: Schedule, block: Any, machine: Machine) -> bool:
    """One pass over images in planes, (..., height, width): a plane is a task's, in registers over the ends of rows.

    Which plane it is, and where it lies in the inputs (a channel shuffle, a concatenation, blocks taken apart), is then
    found once a plane and not once a row. A shuffle of planes of 28x28, 14x14 and 7x7 took 0.64, 0.32 and 0.19 of the
    time that it takes row by row. False, with nothing done, for other shapes, and for planes too few to share out.
    """
    loops = sch.get_loops(block)
    sizes = [extent(sch, loop) for loop in loops]
    if len(loops) < 4 or sizes[-1] % machine.lanes == 0 or sizes[-2] * sizes[-1] < machine.lanes:
        return False
    if math.prod(sizes[:-2]) < PLANES_A_CORE * machine.cores:
        return False
    planes, plane = sch.fuse(*loops[:-2]), sch.fuse(*loops[-2:])
    lanes = max(d for d in divisors(sizes[-2] * sizes[-1]) if d <= LONGEST_VECTOR)
    sch.vectorize(sch.split(plane, [None, lanes])[-1])
    sch.parallel(planes)
    return True


def _vectorize_last(sch: Schedule, block: Any) -> None:
    last = sch.get_loops(block)[-1]
    length = extent(sch, last)
    if length > LONGEST_VECTOR:
        _, last = sch.split(last, [None, max(d for d in divisors(length) if d <= LONGEST_VECTOR)])
    sch.vectorize(last)


def _reduction(sch: Schedule, block: Any) -> None:
    """Spatial loops outside and parallel, the last of them (the channel block, if blocked) innermost in lanes."""
    size = _size(sch, block)
    loops = sch.get_loops(block)
    kinds = [int(iv.iter_type) for iv in sch.get(block).iter_vars]
    if len(kinds) != len(loops):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]
    if not spatial or not reduced:
        return
    lane = spatial[-1] if 1 < extent(sch, spatial[-1]) <= LONGEST_VECTOR else None
    outer = spatial[:-1] if lane is not None else spatial
    sch.reorder(*outer, *reduced, *([lane] if lane is not None else []))
    if lane is not None:
        sch.vectorize(lane)
    if outer and size >= SERIAL_BELOW:
        sch.parallel(sch.fuse(*outer))
    init = sch.decompose_reduction(block, reduced[0])
    if lane is not None:
        sch.vectorize(sch.get_loops(init)[-1])
