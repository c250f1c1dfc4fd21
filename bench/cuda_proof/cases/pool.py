"""Pooling in NHWC at boundary shapes."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from tvm import te, topi

from .base import HALF, Arrays, Case, random


def pool(
    kind: str, shape: tuple[int, ...], kernel: int, stride: int, padding: int, dtype: str = "float32"
) -> Case:  # fmt: skip
    """Max or average (the border counted) pooling; averages of half precision are of fp32, as networks have them."""
    data = te.placeholder(shape, dtype, "data")
    cast = kind == "avg" and dtype != "float32"
    wide = te.compute(shape, lambda *i: data(*i).astype("float32"), name="wide") if cast else data
    window, steps, border = (kernel, kernel), (stride, stride), (padding,) * 4
    out = topi.nn.pool2d(wide, window, steps, (1, 1), border, kind, layout="NHWC", count_include_pad=True)
    result = te.compute(out.shape, lambda *i: out(*i).astype(dtype), name="narrow") if cast else out
    label = f"{kind} {'x'.join(map(str, shape))} {kernel} {stride} {padding} {dtype}"
    expected = partial(_expected, kind=kind, kernel=kernel, stride=stride, padding=padding)
    func = te.create_prim_func([data, result])
    return Case(label, kernel * kernel, func, partial(random, shape, dtype=dtype), expected)


def _expected(inputs: Arrays, kind: str, kernel: int, stride: int, padding: int) -> np.ndarray:
    function = torch.nn.functional.max_pool2d if kind == "max" else torch.nn.functional.avg_pool2d
    image = torch.from_numpy(inputs[0].astype("float64")).permute(0, 3, 1, 2)
    return function(image, kernel, stride, padding).permute(0, 2, 3, 1).numpy()


IMAGES = [("max", (1, 14, 15, 64)), ("avg", (3, 13, 7, 17)), ("max", (3, 8, 9, 3)), ("avg", (1, 28, 28, 33))]


def typical() -> list[Case]:
    """The first pooling of a residual network, in every dtype."""
    return [pool("max", (1, 112, 112, 64), 3, 2, 1, dtype) for dtype in ("float32", *HALF)]


def boundary() -> list[Case]:
    """Both kinds and both windows that networks have, and in half precision one of each."""
    windows = [(3, 2, 1), (2, 2, 0)]
    narrow = [pool(kind, shape, *windows[0], dtype) for kind, shape in IMAGES for dtype in HALF]
    return [pool(kind, shape, *window) for kind, shape in IMAGES for window in windows] + narrow
