"""Matrix products: `dense` with weights packed ahead of time, `batch_matmul` of two computed tensors.

The right-hand side is held in panels of one SIMD register's columns, (N/block, K, block): the inner loop then reads
it as one stream. "Anatomy of High-Performance Matrix Multiplication" (Goto and van de Geijn, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import te

from tvmopt.operators import FLOPS_ATTR
from tvmopt.operators.blocking import blocks
from tvmopt.operators.extent import padded_extent


def pack_dense_weight(weight: np.ndarray, block: int) -> np.ndarray:
    """Weights (K, N) -> panels (ceil(N / block), K, block), the last one filled up with zeros."""
    depth, columns = weight.shape
    packed = np.zeros((blocks(columns, block) * block, depth), weight.dtype)
    packed[:columns] = weight.T
    return np.ascontiguousarray(packed.reshape(-1, block, depth).transpose(0, 2, 1))


def row_of(data: te.Tensor) -> Callable[[te.PrimExpr, te.PrimExpr], te.PrimExpr]:
    """Reads (..., K) as a matrix: a function of the row, all leading dimensions as one, and of the column."""
    lead = [int(x) for x in data.shape[:-1]]

    def row(m: te.PrimExpr, k: te.PrimExpr) -> te.PrimExpr:
        index: list[te.PrimExpr] = []
        for extent in reversed(lead):
            index.append(m % extent if len(index) < len(lead) - 1 else m)
            m = m // extent
        return data(*reversed(index), k)

    return row


def unblock(product: te.Tensor, lead: Sequence[int], columns: int) -> te.Tensor:
    """(rows, panels, block) -> (*lead, columns); rows and columns too many are left out."""
    block = int(product.shape[-1])

    def element(*i: te.Var) -> te.PrimExpr:
        m = i[0]
        for var, extent in zip(i[1:-1], lead[1:], strict=True):
            m = m * extent + var
        return product[m, i[-1] // block, i[-1] % block]

    return te.compute((*lead, columns), element, name="unblock")


def dense(data: te.Tensor, weight: te.Tensor, *, columns: int) -> te.Tensor:
    """(..., K) times packed (N/block, K, block) -> (..., columns).

    Stages: `pad` (where no tile divides the rows), the anchor `dense` (rows, N/block, block), `unblock`.
    """
    *lead, depth = (int(x) for x in data.shape)
    rows = math.prod(lead)
    panels, _, block = (int(x) for x in weight.shape)

    row = row_of(data)
    computed = padded_extent(rows)
    source = row
    if computed != rows:
        source = te.compute(
            (computed, depth), lambda m, k: te.if_then_else(m < rows, row(m, k), te.const(0, data.dtype)), name="pad"
        )
    k = te.reduce_axis((0, depth), "k")
    out = te.compute(
        (computed, panels, block),
        lambda m, no, ni: te.sum(source(m, k) * weight[no, k, ni], axis=k),
        name="dense",
        attrs={FLOPS_ATTR: 2 * rows * columns * depth},
    )
    return unblock(out, lead, columns)


def batch_matmul(left: te.Tensor, right: te.Tensor) -> te.Tensor:
    """(..., M, K) times (..., K, N) -> (..., M, N), of equal leading dimensions; a single anchor `batch_matmul`."""
    *lead, rows, depth = (int(x) for x in left.shape)
    columns = int(right.shape[-1])
    k = te.reduce_axis((0, depth), "k")
    return te.compute(
        (*lead, rows, columns),
        lambda *i: te.sum(left(*i[:-1], k) * right(*i[:-2], k, i[-1]), axis=k),
        name="batch_matmul",
        attrs={FLOPS_ATTR: 2 * math.prod(lead) * rows * columns * depth},
    )
