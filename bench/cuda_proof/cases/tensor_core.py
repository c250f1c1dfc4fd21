"""Products and convolutions in half precision, on tensor cores, at boundary shapes."""

from __future__ import annotations

from .base import Case
from .product import convolution_cases, convolutions, product_cases, products

DTYPES = ("float16", "bfloat16")


def typical() -> list[Case]:
    """A large product in either dtype, a layer of a residual network, and one whose tiles are the largest."""
    layer = {"batch": 1, "out": 64, "size": 28, "kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    large = [products(1024, 1024, 1024, dtype=dtype) for dtype in DTYPES]
    return [*large, convolutions(layer | {"in": 64}, "float16"), products(25088, 512, 512, dtype="float16")]


def boundary() -> list[Case]:
    """Every pair of boundary values, alternately of each dtype."""
    found = [product_cases(2, dtype) + convolution_cases(2, dtype) for dtype in DTYPES]
    return [pair[number % 2] for number, pair in enumerate(zip(*found, strict=True))]
