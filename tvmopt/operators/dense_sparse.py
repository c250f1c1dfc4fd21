"""Block-sparse product with constant weights: only the kept blocks of the right-hand side are multiplied.

The right-hand side is held as `dense` holds it, in panels of one SIMD register's columns, of which every one keeps as
many rows as the others (operators/sparse.py).
"""

from __future__ import annotations

import math

import numpy as np
from tvm import te

from tvmopt.operators import FLOPS_ATTR, GEOMETRY_ATTR, OFFSETS_ATTR
from tvmopt.operators.dense import pack_dense_weight, row_of, unblock
from tvmopt.operators.extent import padded_extent
from tvmopt.operators.sparse import Pattern, bounded, compress, describe_offsets


def pack_sparse_dense_weight(weight: np.ndarray, block: int) -> Pattern:
    """Weights (K, N) as the pattern of `dense_sparse`: an offset is a column of the left-hand side."""
    return compress(pack_dense_weight(weight, block), (1,))


def dense_sparse(
    data: te.Tensor, values: te.Tensor, offsets: te.Tensor, *, columns: int, geometry: str | None = None
) -> te.Tensor:
    """(..., K) times the kept blocks (N/block, kept, group, block) -> (..., columns).

    geometry: the layer's sizes as text (`Dense.geometry`), which the anchor carries.

    Stages: `turned` (K, rows), where there are several rows, the anchor `dense_sparse` (rows, N/block, block),
    `unblock`. Turned, the rows of a tile lie side by side: a kept block reads one or two lines of the cache, and as
    the data lies it would read one for every row.
    """
    *lead, depth = (int(x) for x in data.shape)
    rows = math.prod(lead)
    panels, kept, group, block = (int(x) for x in values.shape)
    row = row_of(data)
    computed = padded_extent(rows)
    k, g = te.reduce_axis((0, kept), "k"), te.reduce_axis((0, group), "g")
    if rows == 1:

        def source(d: te.PrimExpr, m: te.PrimExpr) -> te.PrimExpr:
            return row(m, d)
    else:

        def turn(d: te.PrimExpr, m: te.PrimExpr) -> te.PrimExpr:
            return row(m, d) if computed == rows else te.if_then_else(m < rows, row(m, d), te.const(0, data.dtype))

        source = te.compute((depth, computed), turn, name="turned")
    attrs = {FLOPS_ATTR: 2 * rows * columns * kept * group, OFFSETS_ATTR: describe_offsets((depth,), (1,), group)}
    out = te.compute(
        (computed, panels, block),
        lambda m, no, ni: te.sum(source(bounded(offsets[no, k], depth) + g, m) * values[no, k, g, ni], axis=[k, g]),
        name="dense_sparse",
        attrs={**attrs, GEOMETRY_ATTR: geometry} if geometry is not None else attrs,
    )
    return unblock(out, lead, columns)
