"""How convolutions and products with unstructured weights are put into the graph (operators/unstructured.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_unstructured import conv2d_unstructured, pack_unstructured_weight
from tvmopt.operators.dense_unstructured import (
    MANY_ROWS,
    dense_unstructured,
    dense_unstructured_rows,
    pack_columns,
    pack_rows,
)

if TYPE_CHECKING:
    from tvmopt.graph.blocking import Blocker
    from tvmopt.operators.dense import Dense


def convolution(state: Blocker, data: relax.Expr, weight: relax.Expr, kernel: np.ndarray, conv: Conv2d) -> relax.Expr:
    """(N, I, H, W) -> (N, O, OH, OW); `kernel` is the array of `weight`."""
    rows = state.rows((weight, conv), lambda: pack_unstructured_weight(kernel, conv))
    return state.anchor(conv2d_unstructured, data, *rows, conv=conv)


def product(
    state: Blocker, data: relax.Expr, right: relax.Expr, weight: np.ndarray, layer: Dense
) -> relax.Expr:
    """(..., K) times (K, N), the array of `right`."""
    if layer.rows < MANY_ROWS:
        packed = state.rows((right, "columns"), lambda: pack_columns(weight, state.block))
        return state.anchor(dense_unstructured, data, *packed, columns=layer.columns, geometry=layer.geometry)
    packed = state.rows((right, "rows"), lambda: pack_rows(weight))
    return state.anchor(dense_unstructured_rows, data, *packed, lanes=state.block, geometry=layer.geometry)
