"""Pooling and depthwise convolutions at borders and boundary sizes, the border read or made, against PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from torch import nn

from tests.kernels.support import avx2, compiled, failures, side_by_side
from tvmopt.graph.pipeline import Lowered
from tvmopt.machine import Machine, detect
from tvmopt.registry import Recorder, apply_rule, rules

# Widths of the output one below, at and one above the tile, primes, one column.
SIZES = (1, 3, 13, 14, 15, 16, 17, 33)
WINDOWS = (nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(2, 2, ceil_mode=True),
           nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.MaxPool2d((3, 5), (1, 2), (0, 2)))  # fmt: skip


def _pools() -> list[tuple[nn.Module, tuple[int, ...]]]:
    found: list[tuple[nn.Module, tuple[int, ...]]] = []
    for number, (size, window) in enumerate(itertools.product(SIZES[1:], WINDOWS)):
        channels, batch = (1, 3, 17, 32)[number % 4], (1, 3)[number % 2]
        # Behind a convolution, which gives them the blocked layout.
        found.append((nn.Sequential(nn.Conv2d(3, channels, 1), window), (batch, 3, size, size)))
    return found


def _depthwise() -> list[tuple[nn.Module, tuple[int, ...]]]:
    found: list[tuple[nn.Module, tuple[int, ...]]] = []
    for number, (size, kernel, stride) in enumerate(itertools.product(SIZES, (3, 5), (1, 2))):
        channels, batch = (3, 17, 16, 33)[number % 4], (1, 3)[number % 2]
        layer = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)
        found.append((nn.Sequential(layer, nn.ReLU6()), (batch, channels, size, size)))
    return found


def _border_made(lowered: Lowered, functions: dict[str, Any]) -> None:
    for kernel in lowered.kernels:
        if kernel.op in ("pool2d", "conv2d_depthwise"):
            asked = Recorder({"pad": "task", "border": "made"})
            scheduled = apply_rule(kernel, detect(), rules("cpu"), asked)
            assert scheduled is not None
            functions[kernel.name] = scheduled.schedule.mod["main"]


@pytest.mark.parametrize(
    "layers", [pytest.param(_pools(), marks=pytest.mark.slow), _depthwise()], ids=["pools", "depthwise"]
)
@pytest.mark.parametrize("border", ["read", *(pytest.param(name, marks=pytest.mark.slow) for name in ("made", "avx2"))])
def test_borders(layers: list[tuple[nn.Module, tuple[int, ...]]], border: str) -> None:
    machine: Machine = detect()
    if border == "avx2" and machine.isa not in ("avx2", "avx512"):
        pytest.skip("this CPU has no AVX2")
    model = side_by_side([layer for layer, _ in layers], [shape for _, shape in layers])
    chosen = avx2(machine) if border == "avx2" else machine
    built, _ = compiled(model, chosen, change=_border_made if border == "made" else None)
    assert not failures(model, built, [f"{layer} {shape}" for layer, shape in layers])
