"""Element-wise chains at boundary sizes."""

from __future__ import annotations

import numpy as np
from tvm import te

from .base import Arrays, Case, random


def chain(*shape: int) -> Case:
    """relu(a * b + a), the stages one by one."""
    a, b = (te.placeholder(shape, "float32", name) for name in "AB")
    multiplied = te.compute(shape, lambda *i: a(*i) * b(*i), name="multiply")
    added = te.compute(shape, lambda *i: multiplied(*i) + a(*i), name="add")
    out = te.compute(shape, lambda *i: te.max(added(*i), te.const(0, "float32")), name="relu")

    def expected(inputs: Arrays) -> np.ndarray:
        x, y = (array.astype("float64") for array in inputs)
        return np.maximum(x * y + x, 0)

    return Case("x".join(map(str, shape)), 2, te.create_prim_func([a, b, out]), lambda: random(shape, shape), expected)


def transposed(*shape: int) -> Case:
    """(a, b, c) -> (c, a, b): no thread reads what its neighbour reads."""
    a = te.placeholder(shape, "float32", "A")
    out = te.compute((shape[2], *shape[:2]), lambda i, j, k: a[j, k, i], name="turned")
    label = "turned " + "x".join(map(str, shape))
    return Case(label, 1, te.create_prim_func([a, out]), lambda: random(shape), lambda x: x[0].transpose(2, 0, 1))


def boundary() -> list[Case]:
    """Sizes round a warp, a block and four of a block."""
    return [
        chain(1), chain(3), chain(255), chain(256), chain(257), chain(1023), chain(1024), chain(1025), chain(3, 17, 5),
        chain(2, 7, 7, 64), transposed(3, 17, 8), transposed(5, 16, 33),
    ]  # fmt: skip



def typical() -> list[Case]:
    """All values between two layers of a residual network."""
    return [chain(8, 56, 56, 64)]
