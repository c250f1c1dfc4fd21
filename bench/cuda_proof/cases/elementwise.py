"""Element-wise chains at boundary sizes."""

from __future__ import annotations

from functools import partial

import numpy as np
from tvm import te

from .base import HALF, Arrays, Case, random


def chain(*shape: int, dtype: str = "float32") -> Case:
    """relu(a * b + a), the stages one by one."""
    a, b = (te.placeholder(shape, dtype, name) for name in "AB")
    multiplied = te.compute(shape, lambda *i: a(*i) * b(*i), name="multiply")
    added = te.compute(shape, lambda *i: multiplied(*i) + a(*i), name="add")
    out = te.compute(shape, lambda *i: te.max(added(*i), te.const(0, dtype)), name="relu")

    def expected(inputs: Arrays) -> np.ndarray:
        x, y = (array.astype("float64") for array in inputs)
        return np.maximum(x * y + x, 0)

    label = f"{'x'.join(map(str, shape))} {dtype}"
    inputs = partial(random, shape, shape, dtype=dtype)
    return Case(label, 2, te.create_prim_func([a, b, out]), inputs, expected)


def wide(*shape: int, dtype: str) -> Case:
    """max(exp(a) / 2, 1) in fp32 between two casts, as a network of half precision has what loses too much there."""
    a = te.placeholder(shape, dtype, "A")
    cast = te.compute(shape, lambda *i: a(*i).astype("float32"), name="cast")
    power = te.compute(shape, lambda *i: te.exp(cast(*i)) * te.const(0.5, "float32"), name="power")
    most = te.compute(shape, lambda *i: te.max(power(*i), te.const(1, "float32")), name="most")
    out = te.compute(shape, lambda *i: most(*i).astype(dtype), name="narrow")

    def expected(inputs: Arrays) -> np.ndarray:
        return np.maximum(np.exp(inputs[0].astype("float64")) / 2, 1)

    label = f"wide {'x'.join(map(str, shape))} {dtype}"
    return Case(label, 2, te.create_prim_func([a, out]), partial(random, shape, dtype=dtype), expected)


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
        *(make(size, dtype=dtype) for make in (chain, wide) for size in (1025, 2048) for dtype in HALF),
    ]  # fmt: skip


def typical() -> list[Case]:
    """All values between two layers of a residual network, in every dtype."""
    return [chain(8, 56, 56, 64, dtype=dtype) for dtype in ("float32", *HALF)]
