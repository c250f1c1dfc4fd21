"""Pooling in NHWC at boundary shapes."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from tvm import te, topi

from .base import Arrays, Case, random


def pool(kind: str, shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> Case:
    """Max or average (the border counted) pooling."""
    data = te.placeholder(shape, "float32", "data")
    window, steps, border = (kernel, kernel), (stride, stride), (padding,) * 4
    out = topi.nn.pool2d(data, window, steps, (1, 1), border, kind, layout="NHWC", count_include_pad=True)
    label = f"{kind} {'x'.join(map(str, shape))} {kernel} {stride} {padding}"
    expected = partial(_expected, kind=kind, kernel=kernel, stride=stride, padding=padding)
    return Case(label, kernel * kernel, te.create_prim_func([data, out]), partial(random, shape), expected)


def _expected(inputs: Arrays, kind: str, kernel: int, stride: int, padding: int) -> np.ndarray:
    function = torch.nn.functional.max_pool2d if kind == "max" else torch.nn.functional.avg_pool2d
    image = torch.from_numpy(inputs[0].astype("float64")).permute(0, 3, 1, 2)
    return function(image, kernel, stride, padding).permute(0, 2, 3, 1).numpy()


IMAGES = [("max", (1, 14, 15, 64)), ("avg", (3, 13, 7, 17)), ("max", (3, 8, 9, 3)), ("avg", (1, 28, 28, 33))]


def typical() -> list[Case]:
    """The first pooling of a residual network."""
    return [pool("max", (1, 112, 112, 64), 3, 2, 1)]


def boundary() -> list[Case]:
    """Both kinds and both windows that networks have."""
    return [pool(kind, shape, *window) for kind, shape in IMAGES for window in [(3, 2, 1), (2, 2, 0)]]
