"""Convolution as one matrix product: the image's patches become rows of a matrix (im2col).

"High Performance Convolutional Neural Networks for Document Processing" (Chellapilla et al., 2006). Input and output
are blocked as for the direct strategy, so that both can stand in one network.
"""

from __future__ import annotations

import numpy as np
from tvm import te

from tvmopt.operators.conv2d import Conv2d, image
from tvmopt.operators.extent import padded_extent


def pack_gemm_weight(packed: np.ndarray) -> np.ndarray:
    """Direct's weights (O/block, window, KH, KW, in_block, block) -> the panels (O/block, K, block) of a GEMM."""
    out_blocks, block = packed.shape[0], packed.shape[-1]
    return np.ascontiguousarray(packed.transpose(0, 2, 3, 1, 4, 5).reshape(out_blocks, -1, block))


def conv2d_gemm(data: te.Tensor, weight: te.Tensor, conv: Conv2d, *, plain_input: bool) -> te.Tensor:
    """Stages: `im2col` (N, pixels, K), the anchor `conv2d_gemm` (N, O/block, pixels, block), `image`.

    K runs over (kernel row, kernel column, channel), channels innermost: a row of the matrix is read as it is stored.
    Only for convolutions of one group.
    """
    height, width = conv.out_size
    pixels = height * width
    computed = padded_extent(pixels)
    kw = conv.kernel[1]
    channels = conv.in_channels if plain_input else conv.in_blocks * conv.block
    depth = conv.kernel[0] * kw * channels
    (top, left, _, _), (sh, sw), (dh, dw) = conv.padding, conv.strides, conv.dilation
    in_h, in_w = conv.in_size

    def patch(n: te.Var, p: te.Var, k: te.Var) -> te.PrimExpr:
        tap, channel = k // channels, k % channels
        y = p // width * sh + tap // kw * dh - top
        x = p % width * sw + tap % kw * dw - left
        value = data[n, channel, y, x] if plain_input else data[n, channel // conv.block, y, x, channel % conv.block]
        inside = []
        if any(conv.padding):
            inside += [y >= 0, y < in_h, x >= 0, x < in_w]
        if computed != pixels:
            inside.append(p < pixels)
        return te.if_then_else(te.all(*inside), value, te.const(0, data.dtype)) if inside else value

    matrix = te.compute((conv.batch, computed, depth), patch, name="im2col")
    k = te.reduce_axis((0, depth), "k")
    out = te.compute(
        (conv.batch, conv.out_blocks, computed, conv.block),
        lambda n, oco, p, oci: te.sum(matrix[n, p, k] * weight[oco, k, oci], axis=k),
        name="conv2d_gemm",
        attrs=conv.annotations,
    )
    return image(out, conv)
