"""Matrix products: `dense` with weights packed ahead of time, `batch_matmul` of two computed tensors.

The right-hand side is held in panels of one SIMD register's columns, (N/block, K, block): the inner loop then reads
it as one stream. "Anatomy of High-Performance Matrix Multiplication" (Goto and van de Geijn, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import te

from tvmopt.operators import FLOPS_ATTR
from tvmopt.operators.blocking import blocks
from tvmopt.operators.extent import has_good_tile, padded_extent
from tvmopt.operators.sparse import kept_text


@dataclass(frozen=True)
class Dense:
    """Sizes of a product of (rows, depth) and constant (depth, columns); `kept` and `nonzeros` as `Conv2d`'s."""

    rows: int
    depth: int
    columns: int
    kept: int | None = None
    nonzeros: int | None = None

    @property
    def geometry(self) -> str:
        """The sizes as text, such as `1x1024x1000 kept 102`."""
        return f"{self.rows}x{self.depth}x{self.columns}" + kept_text(self.kept, self.nonzeros)


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


# Fewer rows use each column of the right-hand side too seldom for a copy of it to pay.
_PACKED_ROWS = 8


def batch_matmul(left: te.Tensor, right: te.Tensor, *, lanes: int = 1) -> te.Tensor:
    """(..., M, K) times (..., K, N) -> (..., M, N), of equal leading dimensions; the anchor is `batch_matmul`.

    Where registers of `lanes` columns or a register tile's rows do not come out even, and rows are many, the operands
    are first copied so that they do: `pad` (B, M', K), where a tile does not divide M, and `panels` (B, N / lanes, K,
    lanes). The anchor is (B, M', N / lanes, lanes) then, and `crop` leaves out what is too much.
    """
    *lead, rows, depth = (int(x) for x in left.shape)
    columns = int(right.shape[-1])
    flops = 2 * math.prod(lead) * rows * columns * depth
    k = te.reduce_axis((0, depth), "k")
    if rows < _PACKED_ROWS or (columns % lanes == 0 and has_good_tile(rows)):
        return te.compute(
            (*lead, rows, columns),
            lambda *i: te.sum(left(*i[:-1], k) * right(*i[:-2], k, i[-1]), axis=k),
            name="batch_matmul",
            attrs={FLOPS_ATTR: flops},
        )
    batch, computed, count = math.prod(lead), padded_extent(rows), blocks(columns, lanes)
    zero = te.const(0, left.dtype)

    def filled(b: te.Var, m: te.Var, k: te.Var) -> te.PrimExpr:
        return te.if_then_else(m < rows, element(left, b, m, k), zero)

    def panel(b: te.Var, no: te.Var, k: te.Var, ni: te.Var) -> te.PrimExpr:
        value = element(right, b, k, no * lanes + ni)
        return value if columns % lanes == 0 else te.if_then_else(no * lanes + ni < columns, value, zero)

    source = te.compute((batch, computed, depth), filled, name="pad") if computed != rows else None
    panels = te.compute((batch, count, depth, lanes), panel, name="panels")
    out = te.compute(
        (batch, computed, count, lanes),
        lambda b, m, no, ni: te.sum(
            (element(left, b, m, k) if source is None else source[b, m, k]) * panels[b, no, k, ni], axis=k
        ),
        name="batch_matmul",
        attrs={FLOPS_ATTR: flops},
    )
    return crop(out, (*lead, rows, columns))


def element(data: te.Tensor, batch: te.PrimExpr, row: te.PrimExpr, column: te.PrimExpr) -> te.PrimExpr:
    """Element (row, column) of matrix number `batch` of (..., M, N)."""
    index: list[te.PrimExpr] = []
    lead = [int(x) for x in data.shape[:-2]]
    for extent in reversed(lead[1:]):
        index.append(batch % extent)
        batch = batch // extent
    return data(*([batch, *reversed(index)] if lead else []), row, column)


def crop(data: te.Tensor, shape: Sequence[int]) -> te.Tensor:
    """(B, M', E, lanes) -> (..., M, columns), what was filled up left out."""
    lanes = int(data.shape[-1])

    def kept(*i: te.Var) -> te.PrimExpr:
        batch: te.PrimExpr = te.const(0, "int32")
        for var, extent in zip(i[:-2], shape[:-2], strict=True):
            batch = batch * extent + var
        return data[batch, i[-2], i[-1] // lanes, i[-1] % lanes]

    return te.compute(tuple(shape), kept, name="crop")
