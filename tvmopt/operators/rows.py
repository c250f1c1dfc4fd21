"""Softmax and layer norm: every row of the last axis is read, reduced and written while it is in the core's cache.

A row is held in whole registers, its end filled up; a reduction is over registers first (`..._lanes`), then the one
that is left is folded in the middle again and again (`..._half8`, and so on), down to two values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

from tvm import te, tirx

from tvmopt.operators import FLOPS_ATTR
from tvmopt.operators.blocking import blocks
from tvmopt.operators.elementary import exp_of_negative

# Reductions on the way are not counted as the kernel's useful operations.
_NOT_COUNTED = {FLOPS_ATTR: 0}


def fill_row(data: te.Tensor, lanes: int, fill: te.PrimExpr) -> te.Tensor:
    """(..., N) -> (..., ceil(N / lanes), lanes), the last register filled up."""
    *lead, length = (int(x) for x in data.shape)

    def element(*i: te.Var) -> te.PrimExpr:
        position = i[-2] * lanes + i[-1]
        value = data(*i[:-2], position)
        return value if length % lanes == 0 else te.if_then_else(position < length, value, fill)

    return te.compute((*lead, blocks(length, lanes), lanes), element, name="row")


def over_row(row: te.Tensor, name: str, reduce: Callable[..., te.PrimExpr]) -> te.Tensor:
    """(..., registers, lanes) -> (...), by way of one register of partial results, which is folded to two of them.

    One lane after the other, each waits for the one before: 16 instructions for every row and 4 cycles each.
    """
    *lead, registers, lanes = (int(x) for x in row.shape)
    register = te.reduce_axis((0, registers), "register")
    partial = te.compute(
        (*lead, lanes), lambda *i: reduce(row(*i[:-1], register, i[-1]), axis=register), name=f"{name}_lanes",
        attrs=_NOT_COUNTED,
    )  # fmt: skip
    while lanes % 2 == 0 and lanes > 2:
        lanes //= 2
        partial = _folded(partial, lanes, f"{name}_half{lanes}", reduce)
    lane = te.reduce_axis((0, lanes), "lane")
    return te.compute(lead, lambda *i: reduce(partial(*i, lane), axis=lane), name=name, attrs=_NOT_COUNTED)


def _folded(row: te.Tensor, half: int, name: str, reduce: Callable[..., te.PrimExpr]) -> te.Tensor:
    """(..., 2 half) -> (..., half): each value of the lower half with that of the upper."""
    both = tirx.max if reduce is te.max else operator.add
    return te.compute(
        (*row.shape[:-1], half), lambda *i: both(row(*i), row(*i[:-1], i[-1] + half)), name=name, attrs=_NOT_COUNTED
    )


def inverse(total: te.Tensor) -> te.Tensor:
    """1 / total: a row takes one division, and a product for each of its values."""
    return te.compute(total.shape, lambda *i: tirx.const(1, total.dtype) / total(*i), name="inverse")


def softmax(data: te.Tensor, lanes: int) -> te.Tensor:
    """Softmax over the last axis. Stages: `row`, `peak` (`over_row`), `power`, `total`, `inverse`, `softmax`."""
    shape = [int(x) for x in data.shape]
    row = fill_row(data, lanes, tirx.min_value(data.dtype))
    peak = over_row(row, "peak", te.max)
    power = powers(row, peak, shape[-1])
    share = inverse(over_row(power, "total", te.sum))
    return te.compute(
        shape,
        lambda *i: power(*i[:-1], i[-1] // lanes, i[-1] % lanes) * share(*i[:-1]),
        name="softmax",
        attrs={FLOPS_ATTR: 4 * math.prod(shape)},
    )


def powers(row: te.Tensor, peak: te.Tensor, length: int) -> te.Tensor:
    """exp(row - peak) of rows of `length` values, 0 in what fills them: exp itself never comes to 0."""
    lanes = int(row.shape[-1])
    power = exp_of_negative(te.compute(row.shape, lambda *i: row(*i) - peak(*i[:-2]), name="shifted"))

    def element(*i: te.Var) -> te.PrimExpr:
        if length % lanes == 0:
            return power(*i)
        return tirx.Select(i[-2] * lanes + i[-1] < length, power(*i), tirx.const(0, row.dtype))

    return te.compute(row.shape, element, name="power")


def layer_norm(data: te.Tensor, gamma: te.Tensor, beta: te.Tensor, lanes: int, epsilon: float) -> te.Tensor:
    """Layer norm over the last axis. Stages: `row`, `total`, `centred`, `squares`, `scale`, `layer_norm`.

    A reduction's own are those of `over_row`.
    """
    shape = [int(x) for x in data.shape]
    length = shape[-1]
    zero = tirx.const(0, data.dtype)
    row = fill_row(data, lanes, zero)
    total = over_row(row, "total", te.sum)
    share = tirx.const(1.0 / length, data.dtype)

    def distance(*i: te.Var) -> te.PrimExpr:
        value = row(*i) - total(*i[:-2]) * share
        return value if length % lanes == 0 else tirx.Select(i[-2] * lanes + i[-1] < length, value, zero)

    centred = te.compute(row.shape, distance, name="centred")
    square = te.compute(row.shape, lambda *i: centred(*i) * centred(*i), name="square")
    squares = over_row(square, "squares", te.sum)
    scale = te.compute(
        shape[:-1], lambda *i: tirx.rsqrt(squares(*i) * share + tirx.const(epsilon, data.dtype)), name="scale"
    )
    return te.compute(
        shape,
        lambda *i: centred(*i[:-1], i[-1] // lanes, i[-1] % lanes) * scale(*i[:-1]) * gamma(i[-1]) + beta(i[-1]),
        name="layer_norm",
        attrs={FLOPS_ATTR: 7 * math.prod(shape)},
    )
