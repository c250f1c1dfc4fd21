"""Attention, softmax(Q K^T) V, with the scores of a few rows in the core's cache, from where they never come out.

Q is (B, rows, depth), its rows filled up to what a register tile divides; K^T and V are held in panels of one
register's columns, (B, panels, depth, lanes), as the right-hand side of any product here. "FlashAttention" (Dao et al.,
2022) is the same for a GPU's shared memory; here all scores of a tile of rows fit in L2: the softmax needs one way.
"""

from __future__ import annotations

import math

from tvm import te, tirx

from tvmopt.operators import FLOPS_ATTR
from tvmopt.operators.blocking import blocks
from tvmopt.operators.dense import element
from tvmopt.operators.extent import padded_extent
from tvmopt.operators.rows import inverse, over_row, powers


def fill_rows(data: te.Tensor) -> te.Tensor:
    """(..., M, K) -> (B, M', K), M' being M filled up by zeros to what a register tile divides."""
    *lead, rows, depth = (int(x) for x in data.shape)
    filled = padded_extent(rows)

    def filled_up(b: te.Var, m: te.Var, k: te.Var) -> te.PrimExpr:
        value = element(data, b, m, k)
        return value if filled == rows else te.if_then_else(m < rows, value, tirx.const(0, data.dtype))

    return te.compute((math.prod(lead), filled, depth), filled_up, name="fill_rows")


def panels(data: te.Tensor, lanes: int, *, fill_depth: bool) -> te.Tensor:
    """(..., K, N) -> (B, ceil(N / lanes), K', lanes), zeros in the fill; K' is whole registers where `fill_depth`."""
    *lead, depth, columns = (int(x) for x in data.shape)
    deep = blocks(depth, lanes) * lanes if fill_depth else depth

    def in_panel(b: te.Var, no: te.Var, k: te.Var, ni: te.Var) -> te.PrimExpr:
        value = element(data, b, k, no * lanes + ni)
        inside = [no * lanes + ni < columns] if columns % lanes else []
        inside += [k < depth] if deep > depth else []
        return te.if_then_else(te.all(*inside), value, tirx.const(0, data.dtype)) if inside else value

    return te.compute((math.prod(lead), blocks(columns, lanes), deep, lanes), in_panel, name="panels")


def attention(query: te.Tensor, keys: te.Tensor, values: te.Tensor, *, length: int, flops: int) -> te.Tensor:
    """(B, M, D), panels (B, N, D, lanes) of `length` keys, panels (B, E, N * lanes, lanes) -> (B, M, E, lanes).

    Stages: `scores`, `masked` (where the keys fill no register), `peak` (`over_row`), `power`, `total`, `inverse`,
    `weighted` and the output `attention`.
    """
    batch, rows, depth = (int(x) for x in query.shape)
    _, key_panels, _, lanes = (int(x) for x in keys.shape)
    k = te.reduce_axis((0, depth), "k")
    shape = (batch, rows, key_panels, lanes)
    scores = te.compute(
        shape,
        lambda b, m, no, ni: te.sum(query[b, m, k] * keys[b, no, k, ni], axis=k),
        name="scores",
        attrs={FLOPS_ATTR: 0},
    )

    def masked(b: te.Var, m: te.Var, no: te.Var, ni: te.Var) -> te.PrimExpr:
        return tirx.Select(no * lanes + ni < length, scores[b, m, no, ni], tirx.min_value(query.dtype))

    row = scores if length % lanes == 0 else te.compute(shape, masked, name="masked")
    # What fills the last register comes to 1e-38 where the peak gives 1, and stands against values of 0: no mask more.
    power = powers(row, over_row(row, "peak", te.max), key_panels * lanes)
    share = inverse(over_row(power, "total", te.sum))
    ko, ki = te.reduce_axis((0, key_panels), "ko"), te.reduce_axis((0, lanes), "ki")
    weighted = te.compute(
        (batch, rows, int(values.shape[1]), lanes),
        lambda b, m, no, ni: te.sum(power[b, m, ko, ki] * values[b, no, ko * lanes + ki, ni], axis=[ko, ki]),
        name="weighted",
        attrs={FLOPS_ATTR: 0},
    )
    return te.compute(
        weighted.shape,
        lambda b, m, no, ni: weighted[b, m, no, ni] * share[b, m],
        name="attention",
        attrs={FLOPS_ATTR: flops},
    )
