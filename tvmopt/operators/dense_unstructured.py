"""Products with constant weights that multiply only those that are not zero.

Of few rows, output columns are in the lanes of a register, and every lane gathers the input its weight is for: panels
of columns as `dense` has them, of which each keeps as many weights a column as its fullest (SELL, "sliced ELLPACK", of
Monakov et al., 2010). Of many, the rows are in the lanes, and a weight is multiplied with all of them
(operators/unstructured.py, rows for pixels).
"""

from __future__ import annotations

import math

import numpy as np
from tvm import te

from tvmopt.operators import FLOPS_ATTR, GEOMETRY_ATTR, OFFSETS_ATTR
from tvmopt.operators.dense import row_of, unblock
from tvmopt.operators.sparse import bounded
from tvmopt.operators.unstructured import Rows, compress_rows, describe_rows, row_sum

# From as many rows on there is no need to gather.
MANY_ROWS = 6
# Registers of a tile of rows, at most: multiply-adds enough for a weight and its offset, and tiles for several cores.
_TILE = 12


def pack_columns(weight: np.ndarray, block: int) -> Rows:
    """Weights (K, N) as those of `dense_unstructured`: values and offsets (kept, block), ranges (panels, 2)."""
    panels, kept = [], []
    for start in range(0, weight.shape[1], block):
        columns = weight[:, start : start + block]
        most = int((columns != 0).sum(axis=0).max())
        # What is not zero first, in its order.
        first = np.argsort(columns == 0, axis=0, kind="stable")[:most]
        offsets, values = np.zeros((most, block), np.int32), np.zeros((most, block), np.float32)
        offsets[:, : columns.shape[1]] = first
        values[:, : columns.shape[1]] = np.take_along_axis(columns, first, axis=0)
        panels.append((values, offsets))
        kept.append(most)
    ends = np.cumsum(kept)
    ranges = np.stack([ends - kept, ends], axis=1).astype(np.int32)
    if not ends[-1]:
        panels.append((np.zeros((1, block), np.float32), np.zeros((1, block), np.int32)))
    return Rows(np.concatenate([v for v, _ in panels]), np.concatenate([o for _, o in panels]), ranges)


def dense_unstructured(
    data: te.Tensor, values: te.Tensor, offsets: te.Tensor, ranges: te.Tensor, *, columns: int, geometry: str
) -> te.Tensor:
    """(..., K) times the kept weights -> (..., columns). Stages: the anchor `dense_unstructured`, `unblock`.

    geometry: the layer's sizes as text (`Dense.geometry`), which the anchor carries.
    """
    *lead, depth = (int(x) for x in data.shape)
    rows = math.prod(lead)
    kept, block = (int(x) for x in values.shape)
    row = row_of(data)
    k = te.reduce_axis((0, depth), "k")

    def element(m: te.Var, no: te.Var, ni: te.Var) -> te.PrimExpr:
        begin, end = ranges[no, 0], ranges[no, 1]
        product = row(m, offsets[begin + k, ni]) * values[begin + k, ni]
        return te.sum(te.if_then_else(k < end - begin, product, te.const(0, data.dtype)), axis=k)

    out = te.compute(
        (rows, int(ranges.shape[0]), block),
        element,
        name="dense_unstructured",
        attrs={
            FLOPS_ATTR: 2 * rows * kept * block, OFFSETS_ATTR: describe_rows(1, depth, depth - 1, kept),
            GEOMETRY_ATTR: geometry,
        },
    )
    return unblock(out, lead, columns)


def _tiles(rows: int, lanes: int) -> tuple[int, int]:
    """(tiles, registers of a tile) that hold `rows` values, the tiles as alike as can be."""
    registers = -(-rows // lanes)
    tiles = -(-registers // _TILE)
    return tiles, -(-registers // tiles)


def pack_rows(weight: np.ndarray) -> Rows:
    """Weights (K, N) as those of `dense_unstructured_rows`: an offset is a column of the left-hand side."""
    return compress_rows(weight.T, np.arange(len(weight)))


def dense_unstructured_rows(
    data: te.Tensor, values: te.Tensor, offsets: te.Tensor, ranges: te.Tensor, *, lanes: int, geometry: str
) -> te.Tensor:
    """(..., K) times the kept weights -> (..., columns), which `ranges` is as long as; `geometry` as above.

    Stages: `turned` (K, rows), the anchor `dense_unstructured_rows` (columns, tiles, vectors, lanes), `back`.
    """
    *lead, depth = (int(x) for x in data.shape)
    rows, row, columns = math.prod(lead), row_of(data), int(ranges.shape[0])
    tiles, vectors = _tiles(rows, lanes)
    computed = tiles * vectors * lanes

    def turn(d: te.Var, m: te.Var) -> te.PrimExpr:
        return row(m, d) if computed == rows else te.if_then_else(m < rows, row(m, d), te.const(0, data.dtype))

    turned = te.compute((depth, computed), turn, name="turned")
    k = te.reduce_axis((0, depth), "k")

    def element(column: te.Var, t: te.Var, v: te.Var, lane: te.Var) -> te.PrimExpr:
        def index(offset: te.PrimExpr) -> tuple[te.PrimExpr, ...]:
            return bounded(offset, depth), (t * vectors + v) * lanes + lane

        return row_sum(turned, index, values, offsets, ranges, column, k)

    kept = int(values.shape[0])
    sums = te.compute(
        (columns, tiles, vectors, lanes),
        element,
        name="dense_unstructured_rows",
        attrs={
            FLOPS_ATTR: 2 * rows * kept, OFFSETS_ATTR: describe_rows(depth, 1, 0, kept), GEOMETRY_ATTR: geometry,
        },
    )

    def back(*i: te.Var) -> te.PrimExpr:
        m = i[0]
        for var, extent in zip(i[1:-1], lead[1:], strict=True):
            m = m * extent + var
        return sums[i[-1], m // (vectors * lanes), m // lanes % vectors, m % lanes]

    return te.compute((*lead, columns), back, name="back")
