"""Depthwise convolution in the blocked layout: one filter per channel, a vector of channels at a time.

Input (N, C/block, H, W, block), weights (C/block, KH, KW, block), output (N, C/block, OH, OW, block).
"""

from __future__ import annotations

from tvm import te

from tvmopt.operators import FLOPS_ATTR
from tvmopt.operators.conv2d import Conv2d, pad_input
from tvmopt.operators.extent import padded_extent


def conv2d_depthwise(data: te.Tensor, weight: te.Tensor, conv: Conv2d) -> te.Tensor:
    """Stages: `pad` (where needed), the anchor `conv2d_depthwise`, `crop` (where the width was padded)."""
    height, width = conv.out_size
    computed = padded_extent(width)
    padded = pad_input(data, conv, computed, plain_input=False)
    kh, kw = te.reduce_axis((0, conv.kernel[0]), "kh"), te.reduce_axis((0, conv.kernel[1]), "kw")
    (sh, sw), (dh, dw) = conv.strides, conv.dilation
    out = te.compute(
        (conv.batch, conv.out_blocks, height, computed, conv.block),
        lambda n, co, y, x, ci: te.sum(
            padded[n, co, y * sh + kh * dh, x * sw + kw * dw, ci] * weight[co, kh, kw, ci], axis=[kh, kw]
        ),
        name="conv2d_depthwise",
        attrs={FLOPS_ATTR: conv.flops},
    )
    if computed == width:
        return out
    return te.compute((conv.batch, conv.out_blocks, height, width, conv.block), lambda *i: out(*i), name="crop")
