"""3x3 convolution of stride 1 by Winograd's minimal filtering: fewer multiplications, more additions.

"Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2016): an output tile of m x m pixels comes from an
input tile of a x a, a = m + 2, as A^T [(G g G^T) * (B^T d B)] A. For each of the a x a elements, the product over the
channels is a matrix product of its own, rows being tiles. F(2x2, 3x3) takes 2.25 times fewer multiplications than the
definition, F(4x4, 3x3) four times fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import te

from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.extent import padded_extent

Matrix = Sequence[Sequence[float]]

# m -> B^T, A^T and G for the points 0, 1, -1 (and 2, -2), as in the paper.
INPUT: dict[int, Matrix] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
    ),
}  # fmt: skip
OUTPUT: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
FILTER: dict[int, Matrix] = {
    2: ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
    ),
}  # fmt: skip


def pack_winograd_weight(packed: np.ndarray, m: int) -> np.ndarray:
    """Direct's weights (O/block, I/block, 3, 3, in_block, block) -> (a * a, O/block, I, block), in double precision."""
    filters = np.asarray(FILTER[m], np.float64)
    moved = np.einsum("er,oirsck,fs->efoick", filters, packed.astype(np.float64), filters, optimize=True)
    a, _, out_blocks, in_blocks, in_block, block = moved.shape
    return np.ascontiguousarray(moved.reshape(a * a, out_blocks, in_blocks * in_block, block).astype(packed.dtype))


def fits(conv: Conv2d) -> bool:
    """Whether the method applies: a 3x3 filter moved by one pixel, of one group."""
    plain = conv.strides == conv.dilation == (1, 1) and conv.groups == 1
    return plain and conv.kernel == (3, 3)


def tiles(conv: Conv2d, m: int) -> tuple[int, int]:
    """How many output tiles lie above and beside each other; the last ones may reach beyond the image."""
    height, width = conv.out_size
    return -(-height // m), -(-width // m)


def conv2d_winograd(data: te.Tensor, weight: te.Tensor, conv: Conv2d, *, m: int) -> te.Tensor:
    """Blocked (N, I/block, H, W, block) to (N, O/block, OH, OW, block); weights as `pack_winograd_weight` makes them.

    Stages: `pad`, `rows_in` and `tile_in` (B^T d B), the anchor `conv2d_winograd` (a product for each element, rows
    being tiles), `rows_out` and `tile_out` (A^T M A), `image`.
    """
    a, block = m + 2, conv.block
    down, across = tiles(conv, m)
    count = padded_extent(down * across)
    channels = conv.in_blocks * block
    padded = _pad(data, conv, down * m + 2, across * m + 2)

    def pixel(n: te.Var, ico: te.Var, p: te.Var, y: te.PrimExpr, x: te.PrimExpr, ici: te.Var) -> te.PrimExpr:
        # Tiles that only fill up a register tile are computed from the last one.
        q = te.min(p, te.const(down * across - 1, "int32")) if count > down * across else p
        return padded[n, ico, q // across * m + y, q % across * m + x, ici]

    rows_in = te.compute(
        (conv.batch, count, conv.in_blocks, a, a, block),
        lambda n, p, ico, e, x, ici: combine(INPUT[m], e, lambda r: pixel(n, ico, p, r, x, ici)),
        name="rows_in",
    )
    tile_in = te.compute(
        (conv.batch, a, a, count, conv.in_blocks, block),
        lambda n, e, f, p, ico, ici: combine(INPUT[m], f, lambda s: rows_in[n, p, ico, e, s, ici]),
        name="tile_in",
    )
    k = te.reduce_axis((0, channels), "k")
    product = te.compute(
        (conv.batch, a, a, conv.out_blocks, count, block),
        lambda n, e, f, oco, p, oci: te.sum(
            tile_in[n, e, f, p, k // block, k % block] * weight[e * a + f, oco, k, oci], axis=k
        ),
        name="conv2d_winograd",
        attrs=conv.annotations,
    )
    rows_out = te.compute(
        (conv.batch, conv.out_blocks, count, m, a, block),
        lambda n, oco, p, i, f, oci: combine(OUTPUT[m], i, lambda r: product[n, r, f, oco, p, oci]),
        name="rows_out",
    )
    tile_out = te.compute(
        (conv.batch, conv.out_blocks, count, m, m, block),
        lambda n, oco, p, i, j, oci: combine(OUTPUT[m], j, lambda s: rows_out[n, oco, p, i, s, oci]),
        name="tile_out",
    )
    return te.compute(
        (conv.batch, conv.out_blocks, *conv.out_size, block),
        lambda n, co, y, x, ci: tile_out[n, co, y // m * across + x // m, y % m, x % m, ci],
        name="image",
    )


def combine(matrix: Matrix, row: te.Var, value: Callable[[int], te.PrimExpr]) -> te.PrimExpr:
    """Row `row` of `matrix` times a vector; the loop over rows is unrolled, which leaves one of the choices."""

    def of(coefficients: Sequence[float]) -> te.PrimExpr:
        total = None
        for index, factor in enumerate(coefficients):
            if factor == 0:
                continue
            term = value(index) if abs(factor) == 1 else value(index) * te.const(abs(factor), "float32")
            if total is None:
                total = term if factor > 0 else te.const(0, "float32") - term
            else:
                total = total + term if factor > 0 else total - term
        return total

    found = of(matrix[-1])
    for number in reversed(range(len(matrix) - 1)):
        found = te.if_then_else(row == number, of(matrix[number]), found)
    return found


def _pad(data: te.Tensor, conv: Conv2d, height: int, width: int) -> te.Tensor:
    """The input with its border of zeros, `height` x `width` as the tiles need it."""
    top, left, _, _ = conv.padding
    in_h, in_w = conv.in_size
    if not top and not left and (height, width) == (in_h, in_w):
        return data

    def element(n: te.Var, co: te.Var, y: te.Var, x: te.Var, ci: te.Var) -> te.PrimExpr:
        inside = te.all(y >= top, y < in_h + top, x >= left, x < in_w + left)
        return te.if_then_else(inside, data[n, co, y - top, x - left, ci], te.const(0, data.dtype))

    return te.compute((conv.batch, conv.in_blocks, height, width, conv.block), element, name="pad")
