"""Direct convolution in the blocked layout: a vector of output channels per pixel, no matrix is built.

Input (N, I/block, H, W, block) or a plain (N, C, H, W) image, weights as `conv2d.pack_weight` makes them, output
(N, O/block, OH, OW, block). "High Performance Zero-Memory Overhead Direct Convolutions" (Zhang et al., 2018).
"""

from __future__ import annotations

from tvm import te

from tvmopt.operators.conv2d import Conv2d, image, pad_input
from tvmopt.operators.extent import padded_extent


def conv2d_direct(data: te.Tensor, weight: te.Tensor, conv: Conv2d, *, plain_input: bool) -> te.Tensor:
    """Stages: `pad` (where needed), the anchor `conv2d_direct`, `crop` (where the width was padded)."""
    if conv.is_pointwise and not plain_input:
        return _pointwise(data, weight, conv)
    height, width = conv.out_size
    computed = padded_extent(width)
    padded = pad_input(data, conv, computed, plain_input=plain_input)
    # A plain image is one block of its own number of channels.
    steps, size = (int(weight.shape[1]), int(weight.shape[4])) if plain_input else conv.input_steps
    ico, ici = te.reduce_axis((0, steps), "ico"), te.reduce_axis((0, size), "ici")
    block, lane = (ico, ici) if plain_input else conv.input_place(ico, ici)
    kh, kw = te.reduce_axis((0, conv.kernel[0]), "kh"), te.reduce_axis((0, conv.kernel[1]), "kw")
    (sh, sw), (dh, dw) = conv.strides, conv.dilation

    def element(n: te.Var, oco: te.Var, y: te.Var, x: te.Var, oci: te.Var) -> te.PrimExpr:
        base = te.const(0, "int32") if plain_input else conv.window_base_expr(oco)
        value = padded[n, base + block, y * sh + kh * dh, x * sw + kw * dw, lane]
        return te.sum(value * weight[oco, block, kh, kw, lane, oci], axis=[ico, kh, kw, ici])

    out = te.compute(
        (conv.batch, conv.out_blocks, height, computed, conv.block),
        element,
        name="conv2d_direct",
        attrs=conv.annotations,
    )
    if computed == width:
        return out
    return te.compute((conv.batch, conv.out_blocks, height, width, conv.block), lambda *i: out(*i), name="crop")


def _pointwise(data: te.Tensor, weight: te.Tensor, conv: Conv2d) -> te.Tensor:
    """A 1x1 convolution as a matrix product over all pixels, so that tiles need not end with a row of the image.

    Stages: `pad` (where no tile divides the pixels), the anchor `conv2d_pointwise`, `image` (pixels to rows).
    """
    height, width = conv.out_size
    pixels = height * width
    computed = padded_extent(pixels)
    if computed == pixels:

        def pixel(n: te.Var, co: te.Var, p: te.Var, ci: te.Var) -> te.PrimExpr:
            return data[n, co, p // width, p % width, ci]
    else:
        padded = te.compute(
            (conv.batch, conv.in_blocks, computed, conv.block),
            lambda n, co, p, ci: te.if_then_else(
                p < pixels, data[n, co, p // width, p % width, ci], te.const(0, data.dtype)
            ),
            name="pad",
        )
        pixel = padded
    steps, size = conv.input_steps
    ico, ici = te.reduce_axis((0, steps), "ico"), te.reduce_axis((0, size), "ici")
    block, lane = conv.input_place(ico, ici)
    out = te.compute(
        (conv.batch, conv.out_blocks, computed, conv.block),
        lambda n, oco, p, oci: te.sum(pixel(n, block, p, lane) * weight[oco, block, 0, 0, lane, oci], axis=[ico, ici]),
        name="conv2d_pointwise",
        attrs=conv.annotations,
    )
    return image(out, conv)
