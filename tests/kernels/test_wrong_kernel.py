"""A kernel that is wrong in one tile by one per cent is caught, by itself and in a network."""

from __future__ import annotations

from typing import Any

import torch
import tvm
from torch import nn
from tvm.script import tirx as T

from tests.kernels.support import compiled, failures, side_by_side
from tvmopt.graph.pipeline import Lowered


@T.prim_func(s_tir=True)
def spoiled(
    data: T.Buffer((1, 8), "float32"),
    weight: T.Buffer((1, 8, 16), "float32"),
    bias: T.Buffer((16,), "float32"),
    out: T.Buffer((1, 16), "float32"),
) -> None:
    """A dense layer whose columns 8 to 15 are one per cent too large."""
    T.func_attr({"tirx.noalias": True})
    for j in range(16):
        with T.sblock("dense"):
            vj = T.axis.spatial(16, j)
            out[0, vj] = bias[vj]
            for k in range(8):
                out[0, vj] = out[0, vj] + data[0, k] * weight[0, k, vj]
            out[0, vj] = out[0, vj] * T.if_then_else(vj >= 8, T.float32(1.01), T.float32(1.0))


def test_one_per_cent_in_one_tile_is_caught() -> None:
    model = side_by_side([nn.Linear(8, 16), nn.Conv2d(3, 16, 3)], [(1, 8), (1, 3, 9, 9)])

    def plant(lowered: Lowered, functions: dict[str, Any]) -> None:
        name = next(kernel.name for kernel in lowered.kernels if kernel.op == "dense")
        functions[name] = spoiled.with_attr("global_symbol", "main")

    right, _ = compiled(model)
    assert not failures(model, right, ["dense", "conv"])
    wrong, _ = compiled(model, change=plant)
    found = failures(model, wrong, ["dense", "conv"])
    assert len(found) == 1
    assert found[0].startswith("dense")
    assert not torch.equal(right(*model.example_inputs)[0], wrong(*model.example_inputs)[0])
    assert isinstance(spoiled, tvm.tirx.PrimFunc)
