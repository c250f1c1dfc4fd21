"""Winograd's 3x3 convolution in NHWC, both tile sizes, at boundary shapes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tvm import te

from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_winograd_nhwc import conv2d_winograd_nhwc, pack_winograd_nhwc_weight

from ...covering import covering
from .base import Arrays, Case, biased, random
from .product import convolution_result


def winograd(batch: int, size: int, inner: int, outer: int, m: int, padding: int = 1) -> Case:
    """A 3x3 convolution of a `size` x `size + 1` image by F(m x m, 3x3), with bias and ReLU."""
    conv = Conv2d(batch, inner, outer, (size, size + 1), (3, 3), (1, 1), (padding,) * 4, (1, 1), 1, 1)
    shapes = [(batch, *conv.in_size, inner), ((m + 2) ** 2, inner, outer), (outer,)]
    data, weight, bias = (te.placeholder(shape, "float32", name) for shape, name in zip(shapes, "XWB", strict=True))
    func = te.create_prim_func([data, weight, bias, biased(conv2d_winograd_nhwc(data, weight, conv, m=m), bias)])
    plain = partial(random, shapes[0], (outer, inner, 3, 3), (outer,))

    def inputs() -> Arrays:
        x, w, b = plain()
        return [x, pack_winograd_nhwc_weight(w, m), b]

    def expected(_: Arrays) -> np.ndarray:
        x, w, b = plain()
        return convolution_result([x, np.ascontiguousarray(w.transpose(2, 3, 1, 0)), b], conv)

    label = f"{conv.geometry} F({m}x{m})"
    return Case(label, 9 * inner, func, inputs, expected)


FACTORS: dict[str, list[Any]] = {
    "batch": [1, 3],
    "inner": [16, 17, 32, 33],
    "outer": [16, 17, 31, 33, 64],
    # One tile; one below, at and one above a whole number of tiles of either size; primes.
    "size": [3, 4, 5, 7, 8, 9, 13, 28],
    "padding": [0, 1, 2],
    "m": [2, 4],
}


def typical() -> list[Case]:
    """A layer of a residual network by both tiles."""
    return [winograd(1, 56, 64, 64, m) for m in (2, 4)]


def boundary() -> list[Case]:
    """Every pair of boundary values."""
    return [winograd(**row) for row in covering(FACTORS, 2, lambda _: True)]
