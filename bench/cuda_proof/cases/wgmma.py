"""Products and 1x1 convolutions in half precision, large enough for Hopper's wgmma."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tvm import te

from tvmopt.operators.gemm import gemm

from ...covering import covering
from .base import Case, biased, random
from .product import convolutions, products


def image(size: int, channels: int, out: int, kernel: int = 1, batch: int = 8, **geometry: int) -> Case:
    """A convolution of fp16; 1x1, without stride and border unless told otherwise."""
    row = {"batch": batch, "in": channels, "out": out, "size": size, "kernel": kernel}
    return convolutions(row | {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | geometry, "float16")


def layer(lead: tuple[int, ...], columns: int, depth: int, dtype: str = "float16") -> Case:
    """A linear layer over several leading axes, with bias, ReLU and a residual, its result in fp32."""
    shapes = [(*lead, depth), (depth, columns), (columns,), (*lead, columns)]
    x, w, b, r = (te.placeholder(shape, dtype, name) for shape, name in zip(shapes, "XWBR", strict=True))
    plain = biased(gemm(x, w), b)
    out = te.compute(plain.shape, lambda *i: plain(*i).astype("float32") + r(*i).astype("float32"), name="sum")

    def expected(inputs: list[np.ndarray]) -> np.ndarray:
        x, w, b, r = (one.astype("float64") for one in inputs)
        return np.maximum(x @ w + b, 0) + r

    label = f"{'x'.join(map(str, lead))}x{columns}x{depth} {dtype}, residual"
    return Case(label, depth, te.create_prim_func([x, w, b, r, out]), partial(random, *shapes, dtype=dtype), expected)


# Round a whole number of tiles, and of steps of the depth; columns and depth in rows of whole 16 bytes.
SHAPES: dict[str, list[Any]] = {
    "rows": [2047, 2048, 2049],
    "columns": [2040, 2048, 2056],
    "depth": [64, 72, 328],
    "dtype": ["float16", "bfloat16"],
}


def typical() -> list[Case]:
    """Large products, a linear layer with a residual, and 1x1 convolutions of a residual network."""
    half, brain = (partial(products, dtype=dtype) for dtype in ("float16", "bfloat16"))
    return [
        half(2048, 2048, 2048), brain(2048, 2048, 2048), half(2049, 2056, 72), brain(2047, 2040, 64),
        layer((16, 129), 2048, 512), image(56, 64, 256), image(57, 256, 64),
    ]  # fmt: skip


def boundary() -> list[Case]:
    """Every pair of boundary values."""
    return [products(**row) for row in covering(SHAPES, 2, lambda _: True)]
