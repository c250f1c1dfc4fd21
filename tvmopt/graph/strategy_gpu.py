"""Which way each convolution and dense layer is lowered on a GPU: forced, taken from a tuning log, or by the cost rule.

`direct` is the implicit product (operators/conv2d_nhwc.py), which `gemm` asks for too: no matrix is stored either way.
`winograd` takes the cheaper of its two tiles, `winograd-f2` and `winograd-f4` one of them; `sparse` multiplies only the
kept blocks of a pruned 1x1 convolution. Where the method does not apply, the convolution is `direct`. A dense layer is
`packed`, which is the product as it is, or `sparse`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tvmopt.graph.strategy import DIRECT, PACKED, PLAN, SPARSE, TILES, WINOGRAD, WINOGRAD_MARGIN
from tvmopt.operators.blocking import blocks
from tvmopt.operators.conv2d_sparse_nhwc import SPARSE_BLOCK, fits_sparse_nhwc
from tvmopt.operators.conv2d_winograd import tiles
from tvmopt.operators.conv2d_winograd_nhwc import fits_nhwc
from tvmopt.operators.dense import Dense

if TYPE_CHECKING:
    from tvmopt.machine import GpuMachine
    from tvmopt.operators.conv2d import Conv2d

# No GPU has timed these kernels yet: the figures below are what such kernels are known for, not measured here.
# The share of the fp32 peak that tiles of products reach; the other kernels' time is their bytes'.
PRODUCT_SHARE = 0.8
# And what a sparse one reaches: half of that, its operands coming from caches and not from tiles in shared memory.
SPARSE_SHARE = 0.4
# A thread goes through its kept blocks one after the other. For each it loads an offset, some 35 cycles from L1, and
# then what that points at, some 250 from L2; nvcc unrolls such a loop by four, so that about as many are on the way.
STEP_CYCLES = 75.0
# A sparse kernel must be cheaper by this much: no pattern has been timed, and a pruned model may not be slower.
SPARSE_MARGIN = 0.7
# What a network's next kernel waits for: one launch behind another on a busy stream.
LAUNCH_S = 2e-6
# How much faster L2 answers than DRAM does: 5 TB/s and 7 TB/s were published for A100's and H100's, of 1.6 and 3.4.
L2_SPEEDUP = 2.0


def ways(conv: Conv2d, dtype: str) -> tuple[str, ...]:
    """The ways a convolution computing in `dtype` can be lowered, `direct` first."""
    dense = (DIRECT, *TILES) if fits_nhwc(conv, dtype) else (DIRECT,)
    return (*dense, SPARSE) if conv.kept is not None and fits_sparse_nhwc(conv, dtype) else dense


def seconds(conv: Conv2d, way: str, machine: GpuMachine) -> float:
    """Time of a call in fp32: kernel after kernel, each bound by its multiply-adds or by its bytes.

    SMs left idle by small products are not counted: direct's are filled by split_k, Winograd's by 16 or 36 at a time.
    """
    height, width = conv.out_size
    if way == SPARSE:
        pixels = conv.batch * height * width
        return product_seconds(Dense(pixels, conv.in_channels, conv.out_channels, conv.kept), SPARSE, machine)
    image = 4 * conv.batch * conv.in_channels * conv.in_size[0] * conv.in_size[1]
    output = 4 * conv.batch * conv.out_channels * height * width
    if way not in TILES:
        elements = conv.kernel[0] * conv.kernel[1]
        weights = 4 * elements * conv.in_channels // conv.groups * conv.out_channels
        return _kernel(conv.flops, image + weights + output, machine)
    m = TILES[way]
    down, across = tiles(conv, m)
    elements, rows = (m + 2) ** 2, conv.batch * down * across
    there, back = (4 * elements * rows * channels for channels in (conv.in_channels, conv.out_channels))
    weights = 4 * elements * conv.in_channels * conv.out_channels
    flops = 2 * elements * rows * conv.in_channels * conv.out_channels
    return (
        _kernel(0, image + there, machine)
        + _kernel(flops, there + weights + back, machine)
        + _kernel(0, back + output, machine)
    )


def product_seconds(product: Dense, way: str, machine: GpuMachine) -> float:
    """Time of a call of a dense layer in fp32, as `seconds` counts it.

    A sparse kernel's threads are bound by the steps they take one after the other, too: its depth is not split.
    """
    rows, depth, columns = product.rows, product.depth, product.columns
    left, output = 4 * rows * depth, 4 * rows * columns
    if way != SPARSE:
        return _kernel(2 * rows * depth * columns, left + 4 * depth * columns + output, machine)
    kept = depth if product.kept is None else product.kept
    panels = blocks(columns, SPARSE_BLOCK)
    flops, weights = 2 * rows * kept * panels * SPARSE_BLOCK, 4 * kept * panels * (SPARSE_BLOCK + 1)
    turned = _kernel(0, 2 * left, machine) if rows > 1 else 0.0
    steps_s = kept * STEP_CYCLES / (machine.clock_ghz * 1e9)
    return turned + max(_kernel(flops, left + weights + output, machine, SPARSE_SHARE), steps_s + LAUNCH_S)


def _kernel(flops: int, moved: int, machine: GpuMachine, share: float = PRODUCT_SHARE) -> float:
    # What one kernel leaves in L2 the next reads there, as long as it leaves room for what comes behind.
    bandwidth = machine.dram_bytes_per_s * (L2_SPEEDUP if moved <= machine.l2 / 2 else 1.0)
    return max(flops / (share * machine.fp32_peak), moved / bandwidth) + LAUNCH_S


def decide(conv: Conv2d, dtype: str, strategies: Mapping[str, str], machine: GpuMachine) -> str:
    """How `conv` is lowered: as asked for, where that fits, else by time, where Winograd and sparse must be clearly
    ahead."""
    asked = strategies.get("conv2d", PLAN)
    if asked == PLAN:
        asked = strategies.get(f"conv2d {conv.geometry}", PLAN)
    if asked == SPARSE:
        return SPARSE if fits_sparse_nhwc(conv, dtype) else DIRECT
    rated = {way: seconds(conv, way, machine) for way in ways(conv, dtype)}
    sparse_s = rated.pop(SPARSE, math.inf)
    if asked == PLAN:
        best = min(rated, key=lambda way: rated[way] * (WINOGRAD_MARGIN if way == DIRECT else 1.0))
        return SPARSE if sparse_s < SPARSE_MARGIN * rated[best] else best
    if asked == WINOGRAD:
        return min((way for way in rated if way in TILES), key=lambda way: rated[way], default=DIRECT)
    return asked if asked in rated else DIRECT


def ways_dense(product: Dense, dtype: str) -> tuple[str, ...]:
    """The ways a dense layer of constant weights, computing in `dtype`, can be lowered, `packed` first."""
    return (PACKED, SPARSE) if dtype == "float32" and product.kept is not None else (PACKED,)


def decide_dense(product: Dense, dtype: str, strategies: Mapping[str, str], machine: GpuMachine) -> str:
    """How a dense layer computing in `dtype` is lowered: as asked for, as a tuning log says, else by time.

    In half precision it is packed.
    """
    asked = strategies.get("dense", PLAN)
    if asked == PLAN:
        asked = strategies.get(f"dense {product.geometry}", PLAN)
    if dtype == "float32" and asked == SPARSE:
        return SPARSE
    if dtype != "float32" or asked != PLAN or product.kept is None:
        return PACKED
    dense_s, sparse_s = (product_seconds(product, way, machine) for way in (PACKED, SPARSE))
    return SPARSE if sparse_s < SPARSE_MARGIN * dense_s else PACKED
