"""Softmax, layer norm and reductions over the last axes: a row by the threads of one block, or of a part of a warp.

A row is read by several passes (its peak or mean, the powers or squares, the result) but comes from memory once: every
thread holds `values` of its elements in registers, for all passes. What the threads found is put together by warp
shuffles; several warps exchange one value each through shared memory. For one row of `length`:

    values[turns][width] = row[(turn * threads + thread) * width ...]    # 128-bit loads, neighbours side by side
    total = allreduce(sum(values))                                       # mean, or the peak
    squares = allreduce(sum((values - total / length) ** 2))             # variance, or the sum of powers
    row[...] = (values - total / length) * rsqrt(...) * gamma + beta     # 128-bit stores

The steps, each building on the one before (no GPU has timed them yet; OpenCL on a CPU has run them all):

    1. row        a block of threads for each row, every pass reads it from memory (from L2, after the first)
    2. registers  a thread keeps its elements, and their powers, between the passes
    3. vectors    128-bit loads and stores, where their width divides the row
    4. rows       several short rows in a block, so that it has warps for all four schedulers of an SM

Online softmax (Milakov and Gimelshein, 2018) saves a pass over memory; with the row in registers there is none to save.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, block_names, divisors
from .common import widest
from .row_shape import Rows, flatten, match_rows, stages_to_keep

# Elements of a row that a thread holds while enough rows are there: four 128-bit loads in flight, and with as many
# powers half of the 64 registers that a thread has where an SM holds 1024.
VALUES = 16

# A thread's elements where a row is longer than a full block has threads: twice VALUES' registers, half the occupancy.
MOST_VALUES = 32

# Elements of the single load that each thread has where rows do not even fill the SMs.
FEW_VALUES = 4

# Threads of a block of several rows: a warp for each of an SM's four schedulers.
BLOCK = 128

LADDER = [
    Rung("row", "a block of threads for each row, every pass reads it from memory", {}),
    Rung("registers", "a thread keeps its elements of the row between the passes", {"keep": "no"}),
    Rung("vectors", "128-bit loads and stores", {"width": FIRST}),
    Rung("rows", "several short rows in a block", {"rows": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a kernel all of whose reductions are over the same last axes of rows; declines any other."""
    rows = match_rows(sch)
    if rows is None:
        return None
    fits = rows.length <= MOST_VALUES * machine.max_threads_per_block
    keep = choose("keep", ["yes", "no"] if fits else ["no"], "yes" if fits else "no") == "yes"
    # What is read element by element is best read by neighbours side by side.
    widths = divisors(widest(rows.length, rows.dtype)) if keep else [1]
    width = choose("width", widths, widths[-1])
    threads = choose("threads", *thread_options(rows, width, keep, machine))
    per_block = [1] if threads >= BLOCK else [r for r in (1, 2, 4, 8, 16, 32) if r * threads <= 2 * BLOCK]
    fitting = [r for r in per_block if r * threads <= BLOCK and rows.count >= r * machine.sms]
    schedule_rows(sch, rows, keep, width, threads, choose("rows", per_block, max(fitting, default=1)))
    return sch


def thread_options(rows: Rows, width: int, keep: bool, machine: GpuMachine) -> tuple[list[int], int]:
    """The numbers of threads for a row, all powers of two as shuffles need them, and our own.

    The fewest with VALUES elements each, but a warp where the row is long enough; with fewer rows than SMs as many as
    find an element, since nothing else hides a thread's latencies.
    """
    most = machine.max_threads_per_block
    loads = -(-rows.length // width)
    needed = min(most, 1 << (loads - 1).bit_length())
    options = [t for t in (1 << p for p in range(11)) if t <= needed]
    if keep:
        options = [t for t in options if -(-loads // t) * width <= MOST_VALUES] or [needed]
    values = max(width, VALUES if rows.count >= machine.sms else FEW_VALUES)
    fitting = [t for t in options if t >= min(machine.warp, needed) and -(-loads // t) * width <= values]
    return options, min(fitting, default=options[-1])


def schedule_rows(sch: Schedule, rows: Rows, keep: bool, width: int, threads: int, per_block: int) -> None:
    """Bind a row to `threads` threads with `width` neighbouring elements at a time, `per_block` rows to a block."""
    kept = stages_to_keep(sch, rows, keep)
    output = sch.get_sblock(rows.output)
    if rows.output in rows.reductions:
        output = sch.cache_write(output, 0, "local")
    before = [name for name in block_names(sch) if name != sch.get(output).name_hint]
    for name in (*before, sch.get(output).name_hint):
        flatten(sch, name, rows)
    loop, *elements = sch.get_loops(output)
    block, thread_row = sch.split(loop, [None, per_block])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread_row, "threadIdx.y")
    if elements:
        vectorize(sch, spread(sch, elements[0], width, threads, keep), width)
    else:
        # All threads have the value, one writes it.
        _, thread = sch.split(sch.add_unit_loop(output), [None, threads])
        sch.bind(thread, "threadIdx.x")
    for name in reversed(before):
        stage = sch.get_sblock(name)
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread_row, preserve_unit_loops=True)
        lane = spread(sch, sch.get_loops(stage)[-1], width, threads, keep)
        if name in kept:
            # TensorIR allocates from a thread's first element to its last. All indices are constants, once the turns
            # are unrolled, and nvcc makes registers of the elements that have one.
            vectorize(sch, lane, width)
        else:
            sch.unroll(lane)


def spread(sch: Schedule, elements: Any, width: int, threads: int, unroll: bool) -> Any:
    """Split the loop over a row's elements: turns, threads, `width` elements; returns the innermost loop."""
    # The width first, and evenly: the end of the row is then no question of single lanes.
    loads, lane = sch.split(elements, [None, width])
    turn, thread = sch.split(loads, [None, threads])
    sch.bind(thread, "threadIdx.x")
    if unroll:
        sch.unroll(turn)
    return lane


def vectorize(sch: Schedule, lane: Any, width: int) -> None:
    """One load or store for a thread's neighbouring elements."""
    if width > 1:
        sch.vectorize(lane)
