"""Block-sparse convolution in the blocked layout: only the kept blocks of the weights are multiplied.

Input (N, I/block, H, W, block), values and offsets as `pack_sparse_weight` makes them (operators/sparse.py), output
(N, O/block, OH, OW, block). The sparse vectors are those of "Fast Sparse ConvNets" (Elsen et al., 2020), there over
pixels in the lanes, here over output channels.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import te

from tvmopt.operators import FLOPS_ATTR, OFFSETS_ATTR
from tvmopt.operators.conv2d import Conv2d, image, pack_weight
from tvmopt.operators.extent import padded_extent
from tvmopt.operators.sparse import Pattern, bounded, compress, describe_offsets, power

# What kept blocks are sorted by, the slowest first: columns of the window, its rows, blocks of channels, channels. Taps
# that are outside of the image, and skipped, are then next to each other, and the processor foresees it.
_ORDER = (2, 1, 0, 3)


def fits(conv: Conv2d) -> bool:
    """Whether the strategy is for this convolution: one group, and offsets that an int32 holds."""
    height, width = conv.in_size
    farthest = conv.in_blocks * height * width * conv.block * math.prod(map(power, conv.kernel))
    return conv.groups == 1 and farthest < 1 << 31


def _overlaps(conv: Conv2d) -> bool:
    """Whether the window reaches over an edge of the image."""
    computed = (conv.out_size[0], padded_extent(conv.out_size[1]))
    rows, columns = (
        (size - 1) * stride + (taps - 1) * dilation + 1
        for size, stride, taps, dilation in zip(computed, conv.strides, conv.kernel, conv.dilation, strict=True)
    )
    return any(conv.padding[:2]) or rows > conv.in_size[0] or columns > conv.in_size[1]


def _steps(conv: Conv2d) -> tuple[int, int, int, int]:
    """Distances in the input that is read: of blocks of channels, of the window's rows and columns, of channels.

    Where the window reaches over the edge, an offset is the distance and behind it two digits, the row and the column
    of the window: so the distances are so many times as long, and a row and a column also count one of their digit.
    """
    dh, dw = conv.dilation
    if conv.is_pointwise:
        return padded_extent(conv.out_size[0] * conv.out_size[1]) * conv.block, 0, 0, 1
    height, width = conv.in_size
    steps = height * width * conv.block, dh * width * conv.block, dw * conv.block, 1
    if not _overlaps(conv):
        return steps
    rows, columns = map(power, conv.kernel)
    block, row, column, lane = (step * rows * columns for step in steps)
    return block, row + columns, column + 1, lane


def pack_sparse_weight(weight: np.ndarray, conv: Conv2d) -> Pattern:
    """Weights (O, I, KH, KW) as the pattern of `conv2d_sparse`, offsets being those of the input it reads."""
    return compress(pack_weight(weight, conv, plain_input=False), _steps(conv), _ORDER)


def _attributes(conv: Conv2d, values: te.Tensor) -> dict[str, object]:
    """Of an anchor: the operations on what is kept, and which offsets there are.

    Operations with what lies outside of the image are none; how many there are is taken to be alike for all taps, as
    which ones are kept is not known here.
    """
    _, kept, group, _ = (int(x) for x in values.shape)
    (height, width), inside = conv.out_size, conv.inside(0) * conv.inside(1)
    shape = (conv.in_blocks, *conv.kernel, conv.block)
    return {
        **conv.annotations,
        FLOPS_ATTR: round(2 * conv.batch * conv.out_channels * height * width * kept * group * inside),
        OFFSETS_ATTR: describe_offsets(shape, _steps(conv), group, _ORDER),
    }


def conv2d_sparse(data: te.Tensor, values: te.Tensor, offsets: te.Tensor, conv: Conv2d) -> te.Tensor:
    """Stages: the anchor `conv2d_sparse`, `crop` (where the width was padded).

    No copy of the input with a border is made: what is outside of the image is zero by a condition, of which lowering
    makes multiply-adds that are left out (graph/borders.py).
    """
    if conv.is_pointwise:
        return _pointwise(data, values, offsets, conv)
    height, width = conv.out_size
    computed = padded_extent(width)
    (sh, sw), block = conv.strides, conv.block
    _, kept, group, _ = (int(x) for x in values.shape)
    k, g = te.reduce_axis((0, kept), "k"), te.reduce_axis((0, group), "g")
    (rows, columns), (dh, dw), (top, left, _, _) = conv.in_size, conv.dilation, conv.padding
    overlaps, digits = _overlaps(conv), tuple(map(power, conv.kernel))

    def read(n: te.PrimExpr, offset: te.PrimExpr, y: te.PrimExpr, x: te.PrimExpr) -> te.PrimExpr:
        distance = offset // math.prod(digits) if overlaps else offset
        row, column = distance // (columns * block) % rows, distance // block % columns
        plane = distance // (rows * columns * block)
        if not overlaps:
            return data[n, plane, y * sh + row, x * sw + column, distance % block + g]
        y_in, x_in = y * sh - top, x * sw - left
        y_tap = y_in + _digit(offset // digits[1], conv.kernel[0]) * dh
        x_tap = x_in + _digit(offset, conv.kernel[1]) * dw
        inside = te.all(y_tap >= 0, y_tap < rows, x_tap >= 0, x_tap < columns)
        # The distance is added to the tap in the corner: the divisions fall away when TVM flattens the index.
        value = data[n, plane, y_in + row, x_in + column, distance % block + g]
        return te.if_then_else(inside, value, te.const(0, data.dtype))

    out = te.compute(
        (conv.batch, conv.out_blocks, height, computed, conv.block),
        lambda n, co, y, x, ci: te.sum(read(n, offsets[co, k], y, x) * values[co, k, g, ci], axis=[k, g]),
        name="conv2d_sparse",
        attrs=_attributes(conv, values),
    )
    if computed == width:
        return out
    return te.compute((conv.batch, conv.out_blocks, height, width, conv.block), lambda *i: out(*i), name="crop")


def _digit(number: te.PrimExpr, extent: int) -> te.PrimExpr:
    """The last digit, one of `extent`, so written that TVM can tell that it is less."""
    digit = bounded(number, extent)
    return digit if power(extent) == extent else te.min(digit, te.const(extent - 1, "int32"))


def _pointwise(data: te.Tensor, values: te.Tensor, offsets: te.Tensor, conv: Conv2d) -> te.Tensor:
    """A 1x1 convolution over all pixels, so that tiles need not end with a row of the image.

    Stages: `pad` (where no tile divides the pixels), the anchor `conv2d_sparse_pointwise`, `image` (pixels to rows).
    """
    height, width = conv.out_size
    pixels, block = height * width, conv.block
    computed = padded_extent(pixels)
    _, kept, group, _ = (int(x) for x in values.shape)
    k, g = te.reduce_axis((0, kept), "k"), te.reduce_axis((0, group), "g")

    def element(n: te.Var, co: te.Var, p: te.Var, ci: te.Var) -> te.PrimExpr:
        offset = offsets[co, k]
        outer, lane = offset // (computed * block), offset % (computed * block) + g
        return te.sum(pixel(n, outer, p, lane) * values[co, k, g, ci], axis=[k, g])

    def pixel(n: te.PrimExpr, co: te.PrimExpr, p: te.PrimExpr, ci: te.PrimExpr) -> te.PrimExpr:
        return data[n, co, p // width, p % width, ci]

    if computed != pixels:
        pixel = te.compute(
            (conv.batch, conv.in_blocks, computed, block),
            lambda n, co, p, ci: te.if_then_else(
                p < pixels, data[n, co, p // width, p % width, ci], te.const(0, data.dtype)
            ),
            name="pad",
        )
    out = te.compute(
        (conv.batch, conv.out_blocks, computed, block),
        element,
        name="conv2d_sparse_pointwise",
        attrs=_attributes(conv, values),
    )
    return image(out, conv)
