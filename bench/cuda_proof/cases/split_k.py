"""Products of few rows and a long depth, split among the threads of a block."""

from __future__ import annotations

from typing import Any

from ...covering import covering
from .base import Case
from .product import convolutions, products


def image(size: int, channels: int, out: int, kernel: int = 1, batch: int = 1, stride: int = 1) -> Case:
    """A convolution at the end of a network: few pixels, many channels."""
    geometry = {"stride": stride, "padding": kernel // 2, "dilation": 1, "groups": 1}
    return convolutions({"batch": batch, "in": channels, "out": out, "size": size, "kernel": kernel} | geometry)


def typical() -> list[Case]:
    """A classifier, the last layer of a residual network, and other products of few rows."""
    return [
        products(1, 1000, 2048), image(7, 2048, 512), products(3, 33, 512), products(17, 31, 1000),
        products(8, 2, 4096), products(32, 10, 64), image(7, 64, 33, kernel=3), image(8, 128, 40, batch=2, stride=2),
    ]  # fmt: skip


SHAPES: dict[str, list[Any]] = {
    "rows": [1, 2, 3, 7, 8, 9, 17],
    "columns": [1, 7, 8, 9, 31, 32, 33, 100, 1000],
    "depth": [64, 68, 120, 128, 1000, 2048, 4100],
}


def boundary() -> list[Case]:
    """Every pair of boundary values."""
    return [products(**row) for row in covering(SHAPES, 2, lambda _: True)]
