"""Winograd's 3x3 convolution in NHWC on the fp32 units (operators/conv2d_winograd_nhwc.py), a = m + 2.

Three kernels, one after the other: each of the a x a elements of a transformed tile has a matrix product of its own,
and a block of threads has registers for the sums of one only.

    1. for every tile and channel, a thread:         d[a][a] = pixels;  tile_in[a][a] = B^T d B
    2. for every element e, a grid of product.py's:  products[e] = tile_in[e] (tiles x I)  x  weight[e] (I x O)
    3. for every tile and channel, a thread:         M[a][a] = products;  output[m][m] = epilogue(A^T M A)

A direct convolution multiplies 9 m^2 / a^2 times as often (2.25 for F(2x2), 4 for F(4x4)). What that saves must be
longer than the transformed image and the products take to memory and back: tvmopt/graph/strategy_gpu.py decides.
Neighbouring threads have neighbouring channels, so that all loads and stores are whole lines, though the elements of
a tile lie a whole matrix apart. "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2016); cuDNN
calls this form WINOGRAD_NONFUSED.

The steps, each building on the one before (no GPU has timed them yet; OpenCL on a CPU has run them all):

    1. threads    a result of the products a thread, and a channel of a tile a thread in both transforms
    2. to 8.      the steps of product.py, for the products
    9. channels   as many channels a thread of the transform back as one load brings and its registers hold
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvmopt.machine import GpuMachine

from ..cpu.common import FIRST, Rung, divisors, find_block
from . import product
from .common import THREADS, inline_consumers, regroup, widest

# Values of its tile that a thread keeps: with twice as many (there and half-way back, were nvcc to keep both) and
# addresses it stays below the 128 registers that let two blocks of THREADS have an SM's 65536.
MOST_VALUES = 64

LADDER = [
    Rung("threads", "one result a thread, operands straight from global memory", {}),
    *product.LADDER[1:],
    Rung("channels", "several channels a thread of the transform back", {"width": FIRST}),
]


def rule(sch: Schedule, kernel: Any, machine: GpuMachine, choose: Any) -> Schedule | None:
    """Schedule a kernel whose anchor is `conv2d_winograd_nhwc`; declines any other."""
    if kernel.op != "conv2d_winograd_nhwc":
        return None
    names = ("patch", "rows_in", "tile_in", "conv2d_winograd_nhwc", "products", "rows_out", "tile_out")
    patch, rows_in, tile_in, anchor, products, rows_out, tile_out = (find_block(sch, name) for name in names)
    image = [int(iv.dom.extent) for iv in sch.get(find_block(sch, "out")).iter_vars]
    m = int(sch.get(tile_out).iter_vars[1].dom.extent)
    output = inline_consumers(sch, tile_out)
    if output is None:
        return None
    # `regroup` does not tell one axis of a single pixel from another.
    if [int(iv.dom.extent) for iv in sch.get(output).iter_vars] != image and not regroup(sch, output, image):
        return None

    # There: the elements of a tile inside, tiles and channels outside. A channel a thread: were the
    # transformed image written 128 bits at a time, as it is read, TVM would take it for an array of vectors, of which
    # it makes no asynchronous copy.
    *elements, tile, channel = sch.get_loops(tile_in)
    a_tile_a_thread(sch, [tile], channel, elements, 1, (rows_in, patch))
    # And back: the m x m pixels inside, of which some are beyond the image where m does not divide it.
    batch, row, column, channel = sch.get_loops(output)
    widths = divisors(widest(image[-1], "float32"))
    width = choose("width", widths, max(w for w in widths if w == 1 or w * (m + 2) ** 2 <= MOST_VALUES))
    (row, y), (column, x) = (sch.split(loop, [None, m]) for loop in (row, column))
    a_tile_a_thread(sch, [batch, row, column], channel, [y, x], width, (tile_out, rows_out))
    return product.schedule_product(sch, anchor, machine, choose, stored=products)


def a_tile_a_thread(
    sch: Schedule, tile: list[Any], channel: Any, elements: list[Any], width: int, stages: tuple[Any, Any]
) -> None:
    """Bind the loops over tiles and channels, all a thread's `elements` unrolled, and its `stages` in registers."""
    channel, lane = sch.split(channel, [None, width])
    sch.reorder(*tile, channel, *elements, lane)
    blocks, thread = sch.split(sch.fuse(*tile, channel), [None, THREADS])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    for loop in elements:
        sch.unroll(loop)
    sch.vectorize(lane)
    for stage in stages:
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        *own, lane = sch.get_loops(stage)[-4:]
        for loop in own:
            sch.unroll(loop)
        sch.vectorize(lane)
