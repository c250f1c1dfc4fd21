"""Winograd's 3x3 convolution for GPUs, images as NHWC: the method and its matrices are those of conv2d_winograd.py.

The transformed image and the products are stored: each transform is over once, and the a x a products between them
are one stack of matrix products as any other (gemm.py), rows being the tiles of all images.
"""

from __future__ import annotations

import numpy as np
from tvm import te

from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_nhwc import inside
from tvmopt.operators.conv2d_winograd import FILTER, INPUT, OUTPUT, combine, fits, tiles
from tvmopt.operators.gemm import product

# Below this many channels, in or out, most of a tile of the products would be fill.
LEAST_CHANNELS = 16


def fits_nhwc(conv: Conv2d, dtype: str) -> bool:
    """Whether the method applies: a 3x3 filter moved by one pixel, of one group, channels enough; fp32.

    In half precision the products are tensor cores' work, next to which the transforms' bytes take the longer time;
    and the transformed values, sums of up to 36 pixels with factors up to 25, lose the digits that fp16 has left.
    """
    return fits(conv) and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS and dtype == "float32"


def pack_winograd_nhwc_weight(weight: np.ndarray, m: int) -> np.ndarray:
    """Weights (O, I, 3, 3) -> (a * a, I, O), transformed in double precision."""
    filters = np.asarray(FILTER[m], np.float64)
    moved = np.einsum("er,oirs,fs->efio", filters, weight.astype(np.float64), filters, optimize=True)
    a, _, inner, outer = moved.shape
    return np.ascontiguousarray(moved.reshape(a * a, inner, outer).astype(weight.dtype))


def conv2d_winograd_nhwc(
    data: te.Tensor, weight: te.Tensor, conv: Conv2d, *, m: int, out_dtype: str | None = None
) -> te.Tensor:
    """(N, H, W, I) with weights of `pack_winograd_nhwc_weight` -> (N, OH, OW, O) in `out_dtype` (default: the data's).

    Stages: `patch` (a tile and its border, zero outside of the image), `rows_in` and `tile_in` (B^T d B), `left`,
    `right` and the anchor `conv2d_winograd_nhwc` over (a * a, tiles, O), `products`, `rows_out` and `tile_out`
    (A^T M A), `out`.
    """
    a, inner, outer = m + 2, conv.in_channels, conv.out_channels
    down, across = tiles(conv, m)
    count = conv.batch * down * across

    # Where m does not divide the image, the last tile's pixels reach beyond it, padded or not.
    beyond = (down * m > conv.out_size[0], across * m > conv.out_size[1])

    def pixel(p: te.Var, y: te.Var, x: te.Var, c: te.Var) -> te.PrimExpr:
        corner = (p // (down * across), p // across % down * m, p % across * m)
        return inside(data, conv, corner, (y, x), c, beyond)

    patch = te.compute((count, a, a, inner), pixel, name="patch")
    rows_in = te.compute(
        (count, a, a, inner),
        lambda p, e, x, c: combine(INPUT[m], e, lambda r: patch[p, r, x, c]),
        name="rows_in",
    )
    tile_in = te.compute(
        (a, a, count, inner),
        lambda e, f, p, c: combine(INPUT[m], f, lambda s: rows_in[p, e, s, c]),
        name="tile_in",
    )
    result = product(
        "conv2d_winograd_nhwc", (a * a, count, outer, inner), lambda b, i, k: tile_in[b // a, b % a, i, k],
        lambda b, k, j: weight[b, k, j], str(data.dtype), conv.annotations,
    )  # fmt: skip
    products = te.compute((a * a, count, outer), lambda *i: result(*i), name="products")
    rows_out = te.compute(
        (count, m, a, outer),
        lambda p, i, f, o: combine(OUTPUT[m], i, lambda r: products[r * a + f, p, o]),
        name="rows_out",
    )
    tile_out = te.compute(
        (count, m, m, outer),
        lambda p, i, j, o: combine(OUTPUT[m], j, lambda s: rows_out[p, i, s, o]),
        name="tile_out",
    )

    def image(n: te.Var, y: te.Var, x: te.Var, o: te.Var) -> te.PrimExpr:
        tile = (n * down + y // m) * across + x // m
        return tile_out[tile, y % m, x % m, o].astype(out_dtype or str(data.dtype))

    return te.compute((conv.batch, *conv.out_size, outer), image, name="out")
