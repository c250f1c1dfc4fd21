"""Convolutions over boundary shapes: every kernel of both strategies against PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from bench.covering import Row, covering
from tests.kernels.support import avx2, compiled, failures, side_by_side, some_or_all
from tvmopt.machine import detect

FACTORS: dict[str, list[Any]] = {
    "in": [1, 3, 15, 16, 17, 24, 31, 33],
    "out": [1, 3, 15, 16, 17, 31, 33],
    "size": [7, 8, 14, 29, 56, 57],
    "kernel": [1, 3, 5, 7],
    "stride": [1, 2],
    "padding": [0, 1, 3],
    "dilation": [1, 2],
    "groups": ["one", "depthwise", "several"],
    "batch": [1, 3],
    "bias": [True, False],
}
PER_NETWORK = 12


def _groups(row: Row) -> int | None:
    if row["groups"] == "one":
        return 1
    if row["groups"] == "depthwise":
        return int(row["in"]) if row["in"] == row["out"] and row["in"] > 1 else None
    return next((g for g in (3, 5, 2, 31, 11) if row["in"] % g == 0 and row["out"] % g == 0 and g < row["in"]), None)


def _valid(row: Row) -> bool:
    fits = (row["kernel"] - 1) * row["dilation"] + 1 <= row["size"] + 2 * row["padding"]
    return fits and _groups(row) is not None and row["padding"] <= row["kernel"]


def _layer(row: Row) -> nn.Module:
    groups = _groups(row)
    assert groups is not None
    conv = nn.Conv2d(
        row["in"], row["out"], row["kernel"], row["stride"], row["padding"], row["dilation"], groups, bias=row["bias"]
    )
    return nn.Sequential(conv, nn.ReLU()) if row["bias"] else conv


def _run(rows: list[Row], strategies: dict[str, str], machine: Any = None) -> None:
    wrong: list[str] = []
    for start in range(0, len(rows), PER_NETWORK):
        some = rows[start : start + PER_NETWORK]
        shapes = [(row["batch"], row["in"], row["size"], row["size"]) for row in some]
        model = side_by_side([_layer(row) for row in some], shapes)
        built, _ = compiled(model, machine, strategies)
        wrong += failures(model, built, some, strategies)
    assert not wrong, "\n".join(wrong)


@some_or_all
@pytest.mark.parametrize("strategy", ["direct", "gemm"])
def test_every_pair_of_boundary_values(strategy: str, count: int | None) -> None:
    rows = covering(FACTORS, 2, _valid)
    assert len(rows) >= len(FACTORS["in"]) * len(FACTORS["out"])
    _run(rows[:count], {"conv2d": strategy})


@pytest.mark.slow
def test_pairs_on_avx2() -> None:
    if detect().isa not in ("avx2", "avx512"):
        pytest.skip("this CPU has no AVX2")
    _run(covering(FACTORS, 2, _valid, seed=1)[:24], {"conv2d": "direct"}, avx2(detect()))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["direct", "gemm"])
def test_every_triple_of_boundary_values(strategy: str) -> None:
    """The full product has 145,000 shapes: two days of building. Every triple of its values is in some 380 of them."""
    _run(covering(FACTORS, 3, _valid, tries=8), {"conv2d": strategy})
