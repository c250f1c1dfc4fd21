"""Matrix product on Hopper's warpgroup tensor cores: `wgmma` fed by TMA, written in TIRx (fp16, bf16; sums in fp32).

No GPU has executed this kernel yet. It is compiled, and its machine code looked at (HGMMA, UTMALDG, registers, spills);
and its CUDA runs on a CPU, where others stand in for its instructions as the PTX ISA describes them
(tests/cuda/hopper.h). That it is faster than tensor_core.py's kernel is so on paper only: search measures both.

The algorithm, for one block of three warpgroups (128 threads each) and its 128 x `width` tile of the result:

    one thread of the first:                             # the producer
        for every 64 elements of the depth:
            wait until the stage is empty
            copy both operands' tiles to it              # cp.async.bulk.tensor: the hardware computes addresses
    each of the other two, for its 64 rows:              # the consumers
        sums = 0                                         # width / 2 registers a thread
        for every 64 elements of the depth:
            wait until the stage is full
            4 times: sums += left[64 x 16] x right[16 x width]   # wgmma.m64nNk16, both operands in shared memory
            tell the producer that the stage before this one is empty
        output = epilogue(sums)                          # bias, residual, activation: still in registers

What a tile has beyond the matrices' ends TMA fills with zeros, and the guards of the stores leave out. Convolutions
whose patches are the image itself (1x1, no stride, no border) are such products; others are not.

TVM 0.27 has these instructions (`T.ptx`), but its tile primitive `gemm_async` is Blackwell's alone (tcgen05), and no
schedule primitive leads here. So the schedule inlines the epilogue and only marks the output's block with the choices
(what a log's trace replays); the build puts the function of wgmma_kernel.py in its place (`WRITTEN`).

The steps, each building on the one before:

    1. tile      128 x 64 of the result, copies and multiplications one after the other
    2. pipeline  copies run `stages` steps ahead
    3. flying    a step's multiplications start while those of the step before still run
    4. wide      a tile of the left operand serves twice, four times as many columns

Not here: clusters whose blocks share copies, tiles that a block takes one after the other, results stored by TMA.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from tvm import tirx
from tvm.s_tir import SBlock, Schedule
from tvm_ffi import structural_walk

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, find_block
from . import tensor_core
from .common import inline_consumers, regroup
from .matrices import read
from .wgmma_kernel import PTX, ROWS, STEP, shared_bytes, write

OPS = ("gemm", "conv2d_implicit_gemm")
WIDTHS = (64, 128, 256)
# TMA's strides between rows are multiples of 16 bytes.
STRIDE = 8

MARK = "tvmopt.wgmma"

LADDER = [
    Rung("tile", "128 x 64 of the result, one step after the other", {}),
    Rung("pipeline", "copies run several steps ahead", {"stages": FIRST}),
    Rung("flying", "the next step's multiplications start while a step's still run", {"flying": FIRST}),
    Rung("wide", "twice, four times the columns", {"width": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Mark a product of two fp16 or bf16 matrices, large enough to fill the GPU by tiles; declines any other."""
    if not machine.warpgroup_mma or kernel.op not in OPS:
        return None
    anchor = find_block(sch, kernel.op)
    batch, rows, columns, depth = (int(iv.dom.extent) for iv in sch.get(anchor).iter_vars)
    if str(sch.get(anchor).reads[0].source.dtype) not in PTX or batch != 1 or columns % STRIDE or depth % STRIDE:
        return None
    # One step of the depth at least; and fewer tiles than SMs are better cut smaller, which `wgmma` does not allow.
    if depth < STEP or math.ceil(rows / ROWS) * math.ceil(columns / WIDTHS[0]) < machine.sms:
        return None
    # Some primitives change a function in place: what is tried is a copy.
    trial = Schedule(copy.deepcopy(sch.mod))
    name = sch.get(anchor).name_hint
    output = to_output(trial, trial.get_sblock(name), rows, columns)
    if output is None or read(trial.mod["main"], name, trial.get(output).name_hint) is None:
        return None

    # Not a step of the ladder: what manual leaves to search alone.
    if choose("unit", ["wgmma", "mma"], "wgmma") == "mma":
        return tensor_core.rule(sch, kernel, machine, choose)
    width = choose_width(rows, columns, machine, choose)
    # As many steps ahead as fit: a copy has then the whole of the others' time to arrive.
    options = [s for s in (1, 2, 3, 4, 5, 6) if shared_bytes(width, s) <= machine.shared_per_block]
    stages = choose("stages", options, min(options[-1], max(2, math.ceil(depth / STEP))))
    # The stage before the current one is what is released: with one stage there is none.
    flying = choose("flying", [0, 1], 1) if stages > 1 else 0
    output = to_output(sch, anchor, rows, columns)
    sch.annotate(output, MARK, [name, width, stages, flying])
    return sch


def to_output(sch: Schedule, anchor: Any, rows: int, columns: int) -> Any | None:
    """Inline all that follows the product into one block over its rows and columns, and return that; None if it isn't
    a chain of elements."""
    output = inline_consumers(sch, anchor)
    return output if output is not None and regroup(sch, output, [rows, columns]) else None


def choose_width(rows: int, columns: int, machine: GpuMachine, choose: Any) -> int:
    """Columns of a tile: those of the least time, were all blocks to run in turns.

    A step of 128 x 256 is 1024 cycles of multiply-adds (2048 a cycle and SM) of 48 KiB of operands, and narrower tiles
    need more bytes for each cycle: 48 and 64. An A100's L2 gives 47 to each SM (5120 a cycle, its whitepaper says; none
    gives H100's), so a tile's time is that of its operands: in proportion to its rows and columns together.
    """

    def cost(width: int) -> tuple[int, int]:
        tiles = math.ceil(rows / ROWS) * math.ceil(columns / width)
        return math.ceil(tiles / machine.sms) * (ROWS + width), -width

    return int(choose("width", list(WIDTHS), min(WIDTHS, key=cost)))


def written(func: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """The kernel that takes the place of a marked function; None for every other."""
    blocks: list[Any] = []
    structural_walk(func.body, (SBlock, blocks.append))
    for block in blocks:
        if MARK in block.annotations:
            anchor, width, stages, flying = block.annotations[MARK]
            product = read(func, str(anchor), block.name_hint)
            assert product is not None, "the rule read it when it marked the block"
            return write(func, product, int(width), int(stages), int(flying))
    return None
