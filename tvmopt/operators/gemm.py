"""Matrix products for GPUs: both operands as they are, sums in fp32 whatever the operands are.

Every product, a convolution's too, has one shape there: an anchor over (batch, rows, columns) and the depth, two stages
`left` (batch, rows, depth) and `right` (batch, depth, columns) that say where its operands come from, and a stage
`out` that says where a result belongs. Schedules inline the stages into the copies to and from shared memory, so that
none of these matrices is ever stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te

from tvmopt.operators import FLOPS_ATTR

Element = Callable[..., Any]

ACCUMULATOR = "float32"
"""What products are summed up in: fp16 sums of a thousand products are wrong in the third digit."""


def product(
    name: str, sizes: tuple[int, int, int, int], left: Element, right: Element, dtype: str, attrs: dict[str, object]
) -> te.Tensor:
    """The anchor `name` over `sizes` (batch, rows, columns, depth) of `left(b, i, k)` and `right(b, k, j)`, of `dtype`.

    attrs: what the anchor's block is annotated with. Returns (batch, rows, columns) in fp32 (or in float64, where that
    is `dtype`).
    """
    batch, rows, columns, depth = sizes
    accumulator = dtype if dtype == "float64" else ACCUMULATOR
    a = te.compute((batch, rows, depth), left, name="left")
    b = te.compute((batch, depth, columns), right, name="right")
    k = te.reduce_axis((0, depth), "k")

    def term(n: te.Var, i: te.Var, j: te.Var) -> te.PrimExpr:
        x, y = a[n, i, k], b[n, k, j]
        if dtype != accumulator:
            x, y = x.astype(accumulator), y.astype(accumulator)
        return te.sum(x * y, axis=k)

    return te.compute((batch, rows, columns), term, name=name, attrs=attrs)


def gemm(left: te.Tensor, right: te.Tensor, *, out_dtype: str | None = None) -> te.Tensor:
    """(..., M, K) times (K, N) -> (..., M, N) in `out_dtype` (default: the operands')."""
    *lead, depth = (int(x) for x in left.shape)
    columns, rows = int(right.shape[-1]), math.prod(lead)
    result = product(
        "gemm", (1, rows, columns, depth), lambda b, i, k: left(*split_index(i, lead), k),
        lambda b, k, j: right[k, j], str(left.dtype), {FLOPS_ATTR: 2 * rows * columns * depth},
    )  # fmt: skip
    zero = te.const(0, "int32")
    return te.compute(
        (*lead, columns),
        lambda *i: result[zero, join_index(i[:-1], lead), i[-1]].astype(out_dtype or str(left.dtype)),
        name="out",
    )


def batch_gemm(left: te.Tensor, right: te.Tensor, *, out_dtype: str | None = None) -> te.Tensor:
    """(..., M, K) times (..., K, N) -> (..., M, N), of equal leading dimensions, in `out_dtype`."""
    *lead, rows, depth = (int(x) for x in left.shape)
    columns, batch = int(right.shape[-1]), math.prod(lead)
    result = product(
        "batch_gemm", (batch, rows, columns, depth), lambda b, i, k: left(*split_index(b, lead), i, k),
        lambda b, k, j: right(*split_index(b, lead), k, j), str(left.dtype),
        {FLOPS_ATTR: 2 * batch * rows * columns * depth},
    )  # fmt: skip
    return te.compute(
        (*lead, rows, columns),
        lambda *i: result[join_index(i[:-2], lead), i[-2], i[-1]].astype(out_dtype or str(left.dtype)),
        name="out",
    )


def split_index(index: te.PrimExpr, extents: Sequence[int]) -> list[te.PrimExpr]:
    """The indices of which `index` is the row-major one."""
    found: list[te.PrimExpr] = []
    for extent in reversed(extents[1:]):
        found.append(index % extent)
        index = index // extent
    return [*([index] if extents else []), *reversed(found)]


def join_index(indices: Sequence[te.PrimExpr], extents: Sequence[int]) -> te.PrimExpr:
    """The row-major index of `indices`."""
    joined: te.PrimExpr = te.const(0, "int32")
    for number, (index, extent) in enumerate(zip(indices, extents, strict=True)):
        joined = joined * extent + index if number else index
    return joined
