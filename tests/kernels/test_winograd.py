"""Winograd convolutions over boundary shapes, both tile sizes, against PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bench.covering import Row, covering
from tests.kernels.support import avx2, compiled, failures, reference, side_by_side, some_or_all
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import detect
from tvmopt.runtime.verify import check

STRATEGY = {"conv2d": "winograd"}
FACTORS: dict[str, list[Any]] = {
    "in": [3, 15, 16, 17, 33],
    "out": [1, 16, 17, 48],
    # One below, at and one above a whole number of tiles; a prime; sizes whose bands are whole and are not.
    "height": [3, 4, 7, 8, 9, 13, 16, 28],
    "width": [4, 5, 8, 14, 31],
    "padding": [0, 1, 2],
    "batch": [1, 3],
    "after": ["nothing", "relu", "residual"],
}
PER_NETWORK = 10


class Residual(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return torch.relu(y + y.mean((2, 3), keepdim=True))


def _layer(row: Row) -> nn.Module:
    # The first convolution brings the image into blocks, which this strategy needs.
    conv = nn.Sequential(nn.Conv2d(row["in"], 16, 1), nn.Conv2d(16, row["out"], 3, padding=row["padding"]))
    return {"nothing": conv, "relu": nn.Sequential(conv, nn.ReLU()), "residual": Residual(conv)}[row["after"]]


def _valid(row: Row) -> bool:
    return min(row["height"], row["width"]) + 2 * row["padding"] >= 3


def _run(rows: list[Row], machine: Any = None, strategies: dict[str, str] = STRATEGY) -> None:
    wrong: list[str] = []
    for start in range(0, len(rows), PER_NETWORK):
        some = rows[start : start + PER_NETWORK]
        shapes = [(row["batch"], row["in"], row["height"], row["width"]) for row in some]
        model = side_by_side([_layer(row) for row in some], shapes)
        built, lowered = compiled(model, machine, strategies)
        assert sum(kernel.op == "conv2d_winograd" for kernel in lowered.kernels) >= 1
        wrong += failures(model, built, some, strategies)
    assert not wrong, "\n".join(wrong)


@some_or_all
@pytest.mark.parametrize("m", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_every_pair_of_boundary_values(m: int, count: int | None) -> None:
    _run(covering(FACTORS, 2, _valid, seed=m)[:count], strategies={"conv2d": f"winograd-f{m}"})


@pytest.mark.slow
def test_pairs_on_avx2() -> None:
    if detect().isa not in ("avx2", "avx512"):
        pytest.skip("this CPU has no AVX2")
    _run(covering(FACTORS, 2, _valid, seed=1)[:20], avx2(detect()))


@pytest.mark.parametrize(("m", "bound"), [(2, 2e-6), (4, 5e-5)])
def test_errors_are_what_the_tile_size_costs(m: int, bound: float) -> None:
    """Well inside the tolerance table's row, which is for deep networks of them."""
    strategies = {"conv2d": f"winograd-f{m}"}
    model = side_by_side([nn.Conv2d(64, 64, 3, padding=1)], [(1, 64, 14, 14)])
    built, _ = compiled(model, None, strategies)
    wanted = reference(model, model.example_inputs)
    verdict = check(built(*model.example_inputs), wanted, strategy=strategies, top1=False)
    assert verdict.ok and verdict.rel_err < bound, verdict.message


@pytest.mark.parametrize("conv", [nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, dilation=2), nn.Conv2d(32, 32, 5),
                                  nn.Conv2d(32, 32, 3, groups=2), nn.Conv2d(32, 32, 1)])  # fmt: skip
def test_what_the_method_is_not_for_is_computed_directly(conv: nn.Module) -> None:
    model = side_by_side([conv], [(1, 32, 12, 12)])
    assert all(kernel.op != "conv2d_winograd" for kernel in lower_model(model, detect(), STRATEGY).kernels)
