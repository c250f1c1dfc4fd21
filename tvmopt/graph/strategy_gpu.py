"""Which way each convolution is lowered on a GPU: forced, taken from a tuning log, or by the cost rule below.

`direct` is the implicit product (operators/conv2d_nhwc.py), which `gemm` asks for too: no matrix is stored either way.
`winograd` takes the cheaper of its two tiles, `winograd-f2` and `winograd-f4` one of them; where the method does not
apply, the convolution is `direct`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tvmopt.graph.strategy import DIRECT, PLAN, TILES, WINOGRAD, WINOGRAD_MARGIN
from tvmopt.operators.conv2d_winograd import tiles
from tvmopt.operators.conv2d_winograd_nhwc import fits_nhwc

if TYPE_CHECKING:
    from tvmopt.machine import GpuMachine
    from tvmopt.operators.conv2d import Conv2d

# No GPU has timed these kernels yet: the figures below are what such kernels are known for, not measured here.
# The share of the fp32 peak that tiles of products reach; the other kernels' time is their bytes'.
PRODUCT_SHARE = 0.8
# What a network's next kernel waits for: one launch behind another on a busy stream.
LAUNCH_S = 2e-6
# How much faster L2 answers than DRAM does: 5 TB/s and 7 TB/s were published for A100's and H100's, of 1.6 and 3.4.
L2_SPEEDUP = 2.0


def ways(conv: Conv2d, dtype: str) -> tuple[str, ...]:
    """The ways a convolution computing in `dtype` can be lowered, `direct` first."""
    return (DIRECT, *TILES) if fits_nhwc(conv, dtype) else (DIRECT,)


def seconds(conv: Conv2d, way: str, machine: GpuMachine) -> float:
    """Time of a call in fp32: kernel after kernel, each bound by its multiply-adds or by its bytes.

    SMs left idle by small products are not counted: direct's are filled by split_k, Winograd's by 16 or 36 at a time.
    """
    height, width = conv.out_size
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


def _kernel(flops: int, moved: int, machine: GpuMachine) -> float:
    # What one kernel leaves in L2 the next reads there, as long as it leaves room for what comes behind.
    bandwidth = machine.dram_bytes_per_s * (L2_SPEEDUP if moved <= machine.l2 / 2 else 1.0)
    return max(flops / (PRODUCT_SHARE * machine.fp32_peak), moved / bandwidth) + LAUNCH_S


def decide(conv: Conv2d, dtype: str, strategies: Mapping[str, str], machine: GpuMachine) -> str:
    """How `conv` is lowered: as asked for, where that fits, else by time, where Winograd must be clearly ahead."""
    possible = ways(conv, dtype)
    asked = strategies.get("conv2d", PLAN)
    if asked == PLAN:
        asked = strategies.get(f"conv2d {conv.geometry}", PLAN)
    rated = {way: seconds(conv, way, machine) for way in possible}
    if asked == PLAN:
        return min(rated, key=lambda way: rated[way] * (WINOGRAD_MARGIN if way == DIRECT else 1.0))
    if asked == WINOGRAD:
        return min(possible[1:], key=lambda way: rated[way], default=DIRECT)
    return asked if asked in possible else DIRECT
