"""Which strategy each convolution and dense layer is lowered by: forced, from a tuning log, or by the rules below.

`strategies` maps `conv2d` and `dense` to one way for all of them, or to `plan`; with `plan`, single layers are decided
by `conv2d <geometry>` or `dense <geometry>` (what a tuning log has measured), and those without such a line by `cost`
or `decide_dense`'s margins. A geometry names what is kept of pruned weights: a log decides for no other sparsity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tvmopt.operators import conv2d_sparse, conv2d_unstructured
from tvmopt.operators import conv2d_winograd as winograd
from tvmopt.operators.dense_unstructured import MANY_ROWS

if TYPE_CHECKING:
    from tvmopt.machine import Machine
    from tvmopt.operators.conv2d import Conv2d
    from tvmopt.operators.dense import Dense

PLAN = "plan"
DIRECT, GEMM, WINOGRAD, SPARSE, UNSTRUCTURED = "direct", "gemm", "winograd", "sparse", "unstructured"
# Of a dense layer.
PACKED = "packed"
# Winograd's two tile sizes as ways of their own; `winograd` alone takes the cheaper one.
TILES = {"winograd-f2": 2, "winograd-f4": 4}

# The cost rule counts cycles of one core, a multiply-add of one SIMD register being one; on more cores all of it
# shrinks alike. Seen on Zen 4, by kernels timed alone: weights that came from memory arrived at 3 to 9 bytes a cycle,
# and Winograd took 6 to 10 cycles a register beyond its products. What L3 gives is 26 where nothing is done but reading
# (runtime/bandwidth.py: 190 GB/s on two cores at 3.7 GHz).
# What a core streams in a cycle: weights are read once a call, from memory, or from L3 where the network fits there.
MEMORY_BYTES, L3_BYTES = 5.0, 20.0
# A register of Winograd's transforms: loaded, combined with three or four others, stored, in two passes.
TRANSFORM_CYCLES = 6.0
# Winograd must be cheaper by this much: its rounding errors are larger, and its buffers need cache that others use.
WINOGRAD_MARGIN = 0.9
# What a sparse kernel loses for every output register, in multiply-adds: sums made and stored, and the next row of
# blocks beginning elsewhere in the input; with few kept blocks this shows. At 10% kept: 8 over 3x3, 13 over 1x1.
SPARSE_CYCLES = 12.0
# What a kept weight by itself (operators/unstructured.py) takes for a register of pixels, in multiply-adds: it is read
# from L2, as channels are kept at random, and across two lines of the cache where a window moves along it.
WINDOW_CYCLES, POINTWISE_CYCLES = 3.0, 2.0
# And an output for a register of its pixels: sums made, stored, and cut into rows.
UNSTRUCTURED_CYCLES = 6.0
# And a value of the input that gets zeros round it; one of a product, whose rows are turned there and back.
COPY_CYCLES, TURN_CYCLES = 1.0, 2.5
# And a weight for a register of columns that gather their inputs, of a single row, where one of a dense product comes
# in 2.7 from L3: so many times as long.
GATHER_CYCLES = 6.0
# And a sparse kernel must be cheaper by this much: patterns differ in how they use the cache, and a pruned model may
# not be slower.
SPARSE_MARGIN = 0.9
# A sparse product of several rows reaches some 55% of the peak where a dense one reaches 90% (32 and 256 rows by 1024 x
# 1024): it is the faster one from 40% of zeros.
SPARSE_ROWS_MARGIN = 0.5


def ways(conv: Conv2d, *, plain_input: bool) -> tuple[str, ...]:
    """The ways a convolution of constant weights can be lowered, `direct` first.

    GEMM is not among those of a 1x1 convolution, whose direct form is a matrix product already.
    """
    if conv.groups > 1:
        return (DIRECT,)
    found = [DIRECT]
    if plain_input or not conv.is_pointwise:
        found.append(GEMM)
    if winograd.fits(conv) and not plain_input:
        found += TILES
    if conv.kept is not None and not plain_input and conv2d_sparse.fits(conv):
        found.append(SPARSE)
    if conv.nonzeros is not None and conv2d_unstructured.fits(conv):
        found.append(UNSTRUCTURED)
    return tuple(found)


def cost(conv: Conv2d, way: str, *, resident: bool) -> float:
    """Cycles a call takes on one core: arithmetic, Winograd's transforms, and weights from memory (L3 if `resident`).

    Arithmetic and weights are added up, not overlapped: where the products are few a weight, the cores wait for them.
    """
    in_blocks, out_blocks, block = conv.in_blocks, conv.out_blocks, conv.block
    height, width = conv.out_size
    transforms = 0.0
    bandwidth = L3_BYTES if resident else MEMORY_BYTES
    if way == SPARSE:
        assert conv.kept is not None
        registers = conv.batch * height * width * out_blocks
        return registers * (conv.kept + SPARSE_CYCLES) + 4 * out_blocks * conv.kept * (block + 1) / bandwidth
    if way == UNSTRUCTURED:
        assert conv.nonzeros is not None
        return _cost_unstructured(conv, bandwidth)
    if way in TILES:
        m = TILES[way]
        down, across = winograd.tiles(conv, m)
        elements, pixels = (m + 2) ** 2, down * across
        channels = in_blocks * block
        # Both passes of a transform, over a x a registers there and over a x m, m x m back.
        transforms = conv.batch * pixels * (2 * elements * in_blocks + (elements + m * (m + 2)) * out_blocks)
    else:
        elements, pixels = conv.kernel[0] * conv.kernel[1], height * width
        channels = math.prod(conv.input_steps)
    channels *= out_blocks
    weights = 4 * elements * channels * block / bandwidth
    return conv.batch * pixels * elements * channels + TRANSFORM_CYCLES * transforms + weights


def _cost_unstructured(conv: Conv2d, bandwidth: float) -> float:
    planes = conv2d_unstructured.planes_of(conv)
    assert planes is not None and conv.nonzeros is not None
    bands = conv.batch * conv.out_size[0] // planes.band
    steps = WINDOW_CYCLES if max(conv.kernel) > 1 else POINTWISE_CYCLES
    sums = conv.out_channels * UNSTRUCTURED_CYCLES * planes.vectors
    copied = 0 if planes.are_the_input(conv) else conv.batch * conv.in_channels * math.prod(planes.phases) * planes.size
    weights = 8 * conv.nonzeros / bandwidth
    return bands * (steps * planes.vectors * conv.nonzeros + sums) + COPY_CYCLES * copied + weights


def is_resident(weight_bytes: int, machine: Machine) -> bool:
    """Whether a network's weights stay in L3 from call to call: in half of it, the rest is for everything else."""
    return weight_bytes <= machine.l3 / 2


def decide(conv: Conv2d, strategies: Mapping[str, str], *, plain_input: bool, resident: bool) -> str:
    """The way `conv` is lowered: what is asked for where it fits, else direct."""
    possible = ways(conv, plain_input=plain_input)
    asked = strategies.get("conv2d", PLAN)
    if asked == PLAN:
        asked = strategies.get(f"conv2d {conv.geometry}", PLAN)
    if asked == WINOGRAD:
        fitting = [way for way in possible if way in TILES]
        return min(fitting, key=lambda way: cost(conv, way, resident=resident), default=DIRECT)
    if asked == SPARSE:
        return SPARSE if conv2d_sparse.fits(conv) and not plain_input else DIRECT
    if asked == UNSTRUCTURED:
        return UNSTRUCTURED if conv2d_unstructured.fits(conv) else DIRECT
    if asked != PLAN:
        return asked if asked in possible else DIRECT
    # GEMM's arithmetic is direct's, and it builds a matrix besides: by hand it is never the cheaper.
    rated = {way: cost(conv, way, resident=resident) for way in possible if way != GEMM}
    sparse = {way: rated.pop(way) for way in (SPARSE, UNSTRUCTURED) if way in rated}
    best = min(rated, key=lambda way: rated[way] * (WINOGRAD_MARGIN if way == DIRECT else 1.0))
    sparser = min(sparse, key=lambda way: sparse[way], default=None)
    return sparser if sparser is not None and sparse[sparser] < SPARSE_MARGIN * rated[best] else best


def ways_dense(layer: Dense) -> tuple[str, ...]:
    """The ways a dense layer of constant weights can be lowered, `packed` first."""
    sparse = ((SPARSE, layer.kept), (UNSTRUCTURED, layer.nonzeros))
    return (PACKED, *(way for way, count in sparse if count is not None))


def decide_dense(layer: Dense, strategies: Mapping[str, str], lanes: int) -> str:
    """The way `layer` is lowered: as asked for, as a tuning log says, else sparse where little enough is kept."""
    asked = strategies.get("dense", PLAN)
    if asked == PLAN:
        asked = strategies.get(f"dense {layer.geometry}", PLAN)
    if asked != PLAN:
        return asked
    margin = SPARSE_MARGIN if layer.rows == 1 else SPARSE_ROWS_MARGIN
    # What a block of columns takes for a row of the input, in multiply-adds.
    if layer.kept is not None and layer.kept + SPARSE_CYCLES < margin * layer.depth:
        return SPARSE
    if layer.nonzeros is not None and _dense_unstructured(layer, layer.nonzeros, lanes) < margin * layer.depth:
        return UNSTRUCTURED
    return PACKED


def _dense_unstructured(layer: Dense, nonzeros: int, lanes: int) -> float:
    rows, columns = layer.rows, layer.columns
    if rows < MANY_ROWS:
        return nonzeros / columns * GATHER_CYCLES + UNSTRUCTURED_CYCLES
    weights = POINTWISE_CYCLES * nonzeros / columns + UNSTRUCTURED_CYCLES
    return lanes * (weights * -(-rows // lanes) / rows + TURN_CYCLES * (layer.depth + columns) / columns)
