"""Steps that several rules take: finding blocks, fusing the epilogue, sizing tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.tirx import IndexMap, IntImm

# Multiply-add latency (4 cycles) times units (2) on every x86 core since Haswell: so many independent sums must be in
# flight before the units are never idle.
SUMS_IN_FLIGHT = 8

# Multiply-adds in the body of the innermost loop: enough that its own three instructions are 3% of it at most. Twice
# as many were 1 to 2% slower.
UNROLLED = 64

# Four AVX-512 registers: a longer vector only costs LLVM time to split.
LONGEST_VECTOR = 64

# Bytes a core takes from L3 in the cycle of a multiply-add: 190 GB/s on two cores of Zen 4 at 3.7 GHz (`bench MODEL
# --profile` lists it for sets of a few MiB).
L3_BYTES = 26
# What a task costs by itself: im2col of 111x111 pixels in 1369 tasks took 23 us longer on two cores than in 37.
TASK_CYCLES = 120
# A parallel launch was measured at 2 microseconds, so two cores pay from 4 on: in that time one core does about this
# many multiplications and additions (100 GFLOP/s), or moves about this many bytes (15 GB/s). Where kernels share a
# launch (tvmopt/graph/one_launch.py) less would do, but a quarter of these made none of five networks 1% faster.
PARALLEL_FLOPS = 400_000
PARALLEL_BYTES = 60_000

# What a choice is before its rung of the ladder: one candidate by place, or a value.
FIRST, LAST = "first", "last"


@dataclass(frozen=True)
class Rung:
    """One step of a rule's ladder: from here on the choices in `frees` have the rule's own values.

    `before` says what each of them is on the rungs below: FIRST or LAST of the candidates, or a value, which need not
    be a candidate (a step that search never takes back).
    """

    name: str
    text: str
    before: dict[str, Any]

    @property
    def frees(self) -> tuple[str, ...]:
        """The choices this step makes."""
        return tuple(self.before)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def block_names(sch: Schedule) -> list[str]:
    """Names of all blocks of the function, in the order they stand."""
    return [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]


def find_block(sch: Schedule, name: str) -> Any | None:
    """The block called `name` (or `name_<number>`, as fusion renames a second one), or None."""
    for candidate in block_names(sch):
        head, _, tail = candidate.rpartition("_")
        if candidate == name or (head == name and tail.isdigit()):
            return sch.get_sblock(candidate)
    return None


def extent(sch: Schedule, loop: Any) -> int:
    """The extent of `loop`; 1 for one that depends on another loop (average pooling at a border)."""
    found = sch.get(loop).extent
    return int(found) if isinstance(found, IntImm) else 1


def extents(sch: Schedule, block: Any) -> list[int]:
    """Extents of the loops round `block`."""
    return [extent(sch, loop) for loop in sch.get_loops(block)]


def is_reduction(sch: Schedule, block: Any) -> bool:
    """Whether `block` has a reduction axis (`IterVar` type 2; 0 is a spatial one)."""
    return any(int(iv.iter_type) == 2 for iv in sch.get(block).iter_vars)


def fuse_epilogue(sch: Schedule, anchor: Any, before: Iterable[Any] = ()) -> Any | None:
    """Inline everything after `anchor` into the last block, and return the block that writes a tile's results.

    `before` are stages that feed the anchor and stay. That block is the last one, with the epilogue, where it writes
    as many elements as the anchor computes. Else (nothing stands after the anchor, or the anchor computes a few
    columns too many) it is a plain copy out of the registers; a cropping epilogue is then a parallel pass of its own.
    The anchor's sums are in registers either way. None if the kernel is no chain: a second reduction, two outputs.
    """
    keep = {sch.get(block).name_hint for block in (anchor, *before)}
    outputs = sch.get_output_blocks("root")
    if len(outputs) != 1:
        return None
    output = outputs[0]
    anchor_name, output_name = sch.get(anchor).name_hint, sch.get(output).name_hint
    if not inline_all_but(sch, keep | {output_name}):
        return None
    if output_name == anchor_name:
        return sch.cache_write(anchor, 0, "local")
    computed = math.prod(int(iv.dom.extent) for iv in sch.get(anchor).iter_vars if int(iv.iter_type) == 0)
    if math.prod(extents(sch, output)) == computed:
        sch.set_scope(anchor, 0, "local")
        return output
    elementwise(sch, output)
    return sch.cache_write(anchor, 0, "local")


def inline_all_but(sch: Schedule, keep: Collection[str]) -> bool:
    """Inline every other block; False, with some of it done, where one is a reduction."""
    for name in block_names(sch):
        if name in keep:
            continue
        block = sch.get_sblock(name)
        if is_reduction(sch, block):
            return False
        sch.compute_inline(block)
    return True


def elementwise(sch: Schedule, block: Any) -> None:
    """One parallel pass over a block without reduction, the innermost loop in SIMD registers."""
    loops = sch.get_loops(block)
    inner = int(sch.get(loops[-1]).extent)
    if len(loops) == 1 or inner > LONGEST_VECTOR:
        outer = sch.fuse(*loops)
        total = int(sch.get(outer).extent)
        width = max(d for d in divisors(total) if d <= LONGEST_VECTOR)
        outer, lane = sch.split(outer, [None, width])
    else:
        outer, lane = sch.fuse(*loops[:-1]), loops[-1]
    sch.vectorize(lane)
    sch.parallel(outer)


def accumulator_tile(extent: int, vectors: Iterable[int], registers: int) -> tuple[int, int]:
    """The register tile (rows, vectors) with the cheapest loads a multiply-add, out of those that divide and fit.

    A tile of r rows and v vectors keeps r x v sums in registers, v vectors of weights and one broadcast value. It
    loads r + v values for r x v multiply-adds; weights count three times, because they stream in from L2 while the
    broadcast values stay in L1.
    """
    fitting = [(r, v) for v in vectors for r in divisors(extent) if r * v + v + 1 <= registers]

    def cost(tile: tuple[int, int]) -> tuple[int, float]:
        rows, count = tile
        return max(0, SUMS_IN_FLIGHT - rows * count), (rows + 3 * count) / (rows * count)

    return min(fitting, key=cost)


def unroll_depth(options: Iterable[int], sums: int, vectors: int, registers: int) -> int:
    """How many steps of the reduction one turn of the innermost loop takes, so that nothing is spilled.

    LLVM loads one vector of weights of every step of the turn up front: `sums`, those, one of each other vector and a
    broadcast value must fit the registers. On a 3x3 convolution, 14 x 2 sums with 2 steps reached 91% of the peak,
    with 4 steps 88%, with 8 steps 76%.
    """
    return max(u for u in options if u == 1 or (u * sums <= UNROLLED and sums + u + vectors <= registers))


def task_split(
    bands: Iterable[int],
    shares: Iterable[int],
    extent: int,
    batch: int,
    machine: Any,
    traffic: Callable[[int, int], float],
    steps: int,
) -> tuple[int, int]:
    """How to cut the work into parallel tasks: (rows of a band, shares of the output channels).

    The cut that takes the least time: `steps` multiply-adds of a register and `traffic(band, share)`, bytes that reach
    a core from beyond its L2, and each task's own start, all of it longer by what cores idle at the end.
    """

    def cost(cut: tuple[int, int]) -> tuple[float, int]:
        band, share = cut
        tasks = batch * share * (extent // band)
        moved = L3_BYTES * (steps + TASK_CYCLES * tasks) + traffic(band, share)
        return round(moved / balanced(tasks, machine.cores), 3), tasks

    return min(((b, s) for b in bands for s in shares), key=cost)


def pays_in_parallel(kernel: Any) -> bool:
    """Whether a kernel is long enough for a second core to save more than the launch costs."""
    return kernel.flops >= PARALLEL_FLOPS or kernel.bytes >= PARALLEL_BYTES


def parallelize(sch: Schedule, task: Any, pays: bool, choose: Any) -> bool:
    """Run the loop over tasks on all cores, where that pays (and say so); in tuning, both ways are tried."""
    parallel = bool(choose("parallel", ["yes", "no"], "yes" if pays else "no") == "yes")
    if parallel:
        sch.parallel(task)
    return parallel


def place_pad(sch: Schedule, pad: Any, task: Any, parallel: bool, choose: Any) -> None:
    """Make the border per task, in the core's own cache; as a stage of its own where the ladder takes that back."""
    # Not a choice of search, but of the ladder.
    if choose("pad", ["task"], "task") == "task":
        sch.compute_at(pad, task, preserve_unit_loops=True)
        vectorize_fill(sch, pad)
    else:
        stage(sch, pad, parallel)


def window_in_registers(sch: Schedule, anchor: Any, output: Any, *, unroll: bool) -> None:
    """A window's rows and columns outside, the tile of pixels inside and in registers; `unroll` the window's taps."""
    *tile, rows, columns = sch.get_loops(anchor)[-7:]
    sch.reorder(rows, columns, *tile)
    if unroll:
        sch.unroll(rows)
        sch.unroll(columns)
    vectorize_unroll(sch, anchor, 1)
    vectorize_unroll(sch, output, 1)
    init = sch.decompose_reduction(anchor, rows)
    vectorize_unroll(sch, init, 1)


def stage(sch: Schedule, block: Any, parallel: bool) -> None:
    """A pass of its own over a block without reduction, its innermost loop in SIMD registers."""
    if parallel:
        elementwise(sch, block)
    else:
        vectorize_fill(sch, block)


def balanced(tasks: int, cores: int) -> float:
    """Share of the cores' time that `tasks` equal tasks keep busy: 1.0 where they divide evenly."""
    rounds = -(-tasks // cores)
    return tasks / (rounds * cores)


def vectorize_fill(sch: Schedule, block: Any) -> None:
    """Vectorise a stage that fills a buffer, where its innermost loop is no longer than a few registers."""
    loops = sch.get_loops(block)
    if int(sch.get(loops[-1]).extent) <= LONGEST_VECTOR:
        sch.vectorize(loops[-1])


def write_panels(sch: Schedule, output: Any, lanes: int) -> None:
    """Has `output`, (..., columns), written panel by panel of `lanes` columns, where it is not already."""
    axes = sch.get(output).iter_vars
    if len(axes) != 3 or int(axes[-1].dom.extent) != lanes:
        panelwise = IndexMap.from_func(lambda *i: (*i[:-1], i[-1] // lanes, i[-1] % lanes), ndim=len(axes))
        sch.transform_block_layout(output, panelwise)


def vectorize_unroll(sch: Schedule, block: Any, unrolled: int) -> None:
    """Vectorise the innermost loop of `block` and unroll the `unrolled` loops above it."""
    loops = sch.get_loops(block)
    sch.vectorize(loops[-1])
    for loop in loops[-1 - unrolled : -1]:
        sch.unroll(loop)
