"""Block-sparse convolution in the blocked layout: only the kept blocks of the weights are multiplied.

Input (N, I/block, H, W, block), values and offsets as `pack_sparse_weight` makes them (operators/sparse.py), output
(N, O/block, OH, OW, block). The sparse vectors are those of "Fast Sparse ConvNets" (Elsen et al., 2020), there over
pixels in the lanes, here over output channels.
"""

from __future__ import annotations

import numpy as np
from tvm import te

from tvmopt.operators import FLOPS_ATTR, OFFSETS_ATTR
from tvmopt.operators.conv2d import Conv2d, image, pack_weight
from tvmopt.operators.extent import padded_extent
from tvmopt.operators.sparse import Pattern, bounded, compress, describe_offsets, power


def fits(conv: Conv2d) -> bool:
    """Whether the strategy is for this convolution: one group, and inputs that come in whole blocks."""
    return conv.groups == 1


def _needs_border(conv: Conv2d) -> bool:
    rows, columns = _extent(conv)
    return any(conv.padding[:2]) or rows > conv.in_size[0] or columns > conv.in_size[1]


def _extent(conv: Conv2d) -> tuple[int, int]:
    """Rows and columns of the input that are read, border included."""
    computed = (conv.out_size[0], padded_extent(conv.out_size[1]))
    rows, columns = (
        (size - 1) * stride + (taps - 1) * dilation + 1
        for size, stride, taps, dilation in zip(computed, conv.strides, conv.kernel, conv.dilation, strict=True)
    )
    return rows, columns


def _steps(conv: Conv2d) -> tuple[int, int, int, int]:
    """Distances in the input that is read: of blocks of channels, of the window's rows and columns, of channels.

    Of an input with a border: which row of the window, plus so many times as there are rows the distance in a row.
    """
    dh, dw = conv.dilation
    if conv.is_pointwise:
        return padded_extent(conv.out_size[0] * conv.out_size[1]) * conv.block, 0, 0, 1
    if _needs_border(conv):
        taps = power(conv.kernel[0])
        return taps * _extent(conv)[1] * conv.block, 1, taps * dw * conv.block, taps
    height, width = conv.in_size
    return height * width * conv.block, dh * width * conv.block, dw * conv.block, 1


def pack_sparse_weight(weight: np.ndarray, conv: Conv2d) -> Pattern:
    """Weights (O, I, KH, KW) as the pattern of `conv2d_sparse`, offsets being those of the input it reads."""
    return compress(pack_weight(weight, conv, plain_input=False), _steps(conv))


def _attributes(conv: Conv2d, values: te.Tensor) -> dict[str, object]:
    """Of an anchor: the operations on what is kept, and which offsets there are."""
    _, kept, group, _ = (int(x) for x in values.shape)
    height, width = conv.out_size
    shape = (conv.in_blocks, *conv.kernel, conv.block)
    return {
        **conv.annotations,
        FLOPS_ATTR: 2 * conv.batch * conv.out_channels * height * width * kept * group,
        OFFSETS_ATTR: describe_offsets(shape, _steps(conv), group),
    }


def conv2d_sparse(data: te.Tensor, values: te.Tensor, offsets: te.Tensor, conv: Conv2d) -> te.Tensor:
    """Stages: `pad` (where there is a border), the anchor `conv2d_sparse`, `crop` (where the width was padded).

    `pad` is (N, rows, I/block * columns, block), all channels of a row side by side: an offset then means the same
    in any band of rows.
    """
    if conv.is_pointwise:
        return _pointwise(data, values, offsets, conv)
    height, width = conv.out_size
    computed = padded_extent(width)
    (sh, sw), block = conv.strides, conv.block
    _, kept, group, _ = (int(x) for x in values.shape)
    k, g = te.reduce_axis((0, kept), "k"), te.reduce_axis((0, group), "g")
    if _needs_border(conv):
        border, (taps, _), (dilation, _) = _border(data, conv), conv.kernel, conv.dilation

        def read(n: te.PrimExpr, offset: te.PrimExpr, y: te.PrimExpr, x: te.PrimExpr) -> te.PrimExpr:
            row = te.min(bounded(offset, taps), te.const(taps - 1, "int32"))
            inner = bounded(offset // power(taps), int(border.shape[2]) * block)
            outer, lane = inner // block, inner % block
            return border[n, y * sh + row * dilation, x * sw + outer, lane + g]
    else:
        rows, columns = conv.in_size

        def read(n: te.PrimExpr, offset: te.PrimExpr, y: te.PrimExpr, x: te.PrimExpr) -> te.PrimExpr:
            row, column = offset // (columns * block) % rows, offset // block % columns
            return data[n, offset // (rows * columns * block), y * sh + row, x * sw + column, offset % block + g]

    out = te.compute(
        (conv.batch, conv.out_blocks, height, computed, conv.block),
        lambda n, co, y, x, ci: te.sum(read(n, offsets[co, k], y, x) * values[co, k, g, ci], axis=[k, g]),
        name="conv2d_sparse",
        attrs=_attributes(conv, values),
    )
    if computed == width:
        return out
    return te.compute((conv.batch, conv.out_blocks, height, width, conv.block), lambda *i: out(*i), name="crop")


def _border(data: te.Tensor, conv: Conv2d) -> te.Tensor:
    """The input with its border of zeros, all channels of a row side by side: (N, rows, blocks * columns, block).

    The block is an axis of its own: were it part of the row, whether an element is of the border would be asked, and
    the element copied, lane by lane.
    """
    top, left, _, _ = conv.padding
    in_h, in_w = conv.in_size
    rows, columns = _extent(conv)

    def element(n: te.Var, y: te.Var, i: te.Var, lane: te.Var) -> te.PrimExpr:
        x = i % columns
        inside = te.all(y >= top, y < in_h + top, x >= left, x < in_w + left)
        return te.if_then_else(inside, data[n, i // columns, y - top, x - left, lane], te.const(0, data.dtype))

    return te.compute((conv.batch, rows, conv.in_blocks * columns, conv.block), element, name="pad")


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
