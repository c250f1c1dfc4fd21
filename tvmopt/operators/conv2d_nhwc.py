"""Convolutions for GPUs, images as NHWC: as an implicit matrix product, and depthwise.

Implicit: the matrix of patches (pixels x taps and channels) is never stored; where the product's schedule copies a tile
of it to shared memory, it reads the image. "cuDNN: Efficient Primitives for Deep Learning" (Chetlur et al., 2014).
"""

from __future__ import annotations

import numpy as np
from tvm import te

from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.gemm import ACCUMULATOR, product


def pack_nhwc_weight(weight: np.ndarray) -> np.ndarray:
    """Weights (O, I/groups, KH, KW) -> (KH, KW, I/groups, O)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


def pack_depthwise_nhwc_weight(weight: np.ndarray) -> np.ndarray:
    """Depthwise weights (C, 1, KH, KW) -> (KH, KW, C)."""
    return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))


def conv2d_implicit_gemm(
    data: te.Tensor, weight: te.Tensor, conv: Conv2d, out_dtype: str | None = None
) -> te.Tensor:
    """(N, H, W, I) with weights (KH, KW, I/groups, O) -> (N, OH, OW, O) in `out_dtype` (default: the data's).

    Stages: `left`, `right`, the anchor `conv2d_implicit_gemm` over (groups, pixels, O/groups), `out`.
    """
    height, width = conv.out_size
    kernel_width, inner, outer = conv.kernel[1], conv.in_channels // conv.groups, conv.out_channels // conv.groups

    def left(g: te.Var, p: te.Var, k: te.Var) -> te.PrimExpr:
        pixel = (p // (height * width), p // width % height, p % width)
        tap = (k // (kernel_width * inner), k // inner % kernel_width)
        channel = k % inner if conv.groups == 1 else g * inner + k % inner
        return inside(data, conv, pixel, tap, channel)

    def right(g: te.Var, k: te.Var, j: te.Var) -> te.PrimExpr:
        column = j if conv.groups == 1 else g * outer + j
        return weight[k // (kernel_width * inner), k // inner % kernel_width, k % inner, column]

    pixels, depth = conv.batch * height * width, conv.kernel[0] * kernel_width * inner
    sizes = (conv.groups, pixels, outer, depth)
    result = product("conv2d_implicit_gemm", sizes, left, right, str(data.dtype), conv.annotations)
    zero = te.const(0, "int32")

    def image(n: te.Var, y: te.Var, x: te.Var, o: te.Var) -> te.PrimExpr:
        group, column = (zero, o) if conv.groups == 1 else (o // outer, o % outer)
        return result[group, (n * height + y) * width + x, column].astype(out_dtype or str(data.dtype))

    return te.compute((conv.batch, height, width, conv.out_channels), image, name="out")


def conv2d_depthwise_nhwc(
    data: te.Tensor, weight: te.Tensor, conv: Conv2d, out_dtype: str | None = None
) -> te.Tensor:
    """(N, H, W, C) with weights (KH, KW, C) -> (N, OH, OW, C) in `out_dtype`; sums in fp32.

    Stages: the anchor `conv2d_depthwise_nhwc`, `out`.
    """
    height, width = conv.out_size
    kh, kw = te.reduce_axis((0, conv.kernel[0]), "kh"), te.reduce_axis((0, conv.kernel[1]), "kw")
    accumulator = "float64" if str(data.dtype) == "float64" else ACCUMULATOR

    def element(n: te.Var, y: te.Var, x: te.Var, c: te.Var) -> te.PrimExpr:
        value = inside(data, conv, (n, y, x), (kh, kw), c).astype(accumulator)
        return te.sum(value * weight[kh, kw, c].astype(accumulator), axis=[kh, kw])

    shape = (conv.batch, height, width, conv.out_channels)
    result = te.compute(shape, element, name="conv2d_depthwise_nhwc", attrs=conv.annotations)
    return te.compute(shape, lambda *i: result(*i).astype(out_dtype or str(data.dtype)), name="out")


def inside(
    data: te.Tensor, conv: Conv2d, pixel: tuple[te.PrimExpr, ...], tap: tuple[te.PrimExpr, ...], channel: te.PrimExpr,
    beyond: tuple[bool, bool] = (False, False),
) -> te.PrimExpr:  # fmt: skip
    """The value an output `pixel` (n, y, x) sees through a `tap` (kh, kw) in `channel`: zero outside of the image.

    `beyond`: whether pixels below, and right of, the last one are asked for, which may see what is beyond the padding.
    """
    n, *position = pixel
    bounds, index = [], []
    for axis in (0, 1):
        before, after = conv.padding[axis], conv.padding[axis + 2]
        at = position[axis] * conv.strides[axis] + tap[axis] * conv.dilation[axis] - before
        bounds += [at >= 0] if before else []
        bounds += [at < conv.in_size[axis]] if after or beyond[axis] else []
        index.append(at)
    value = data[n, index[0], index[1], channel]
    return te.if_then_else(te.all(*bounds), value, te.const(0, str(data.dtype))) if bounds else value
