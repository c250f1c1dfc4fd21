"""Block-sparse products, and 1x1 convolutions over pixels, at boundary shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tvm import te, tirx

from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_sparse_nhwc import conv2d_sparse_nhwc, pack_sparse_nhwc_weight
from tvmopt.operators.dense_sparse import dense_sparse, pack_sparse_dense_weight
from tvmopt.operators.sparse import Pattern

from ...covering import covering
from .base import Arrays, Case, biased

SHAPES: dict[str, list[Any]] = {
    # One below, at and one above a warp and a block; pixels of an image; a single sample.
    "lead": [(1,), (2,), (31,), (32,), (33,), (129,), (2, 7, 9), (1, 24, 24)],
    "depth": [1, 3, 32, 33, 67],
    "columns": [1, 15, 16, 17, 48, 100],
    "kept": ["some", "quads", "all", "none"],
}


def case(lead: tuple[int, ...], depth: int, columns: int, kept: str) -> Case:
    """(*lead, depth) times a matrix of which `kept` blocks of 16 columns are not zero, with bias and ReLU."""
    generator = np.random.default_rng(0)
    panels = -(-columns // 16)
    rows = -(-depth // 4) if kept == "quads" else depth
    share = {"all": 1.0, "none": 0.0}.get(kept, 0.3)
    blocks = generator.random((rows, panels)) < share
    mask = blocks.repeat(16, axis=1)[:, :columns].repeat(4 if kept == "quads" else 1, axis=0)[:depth]
    weight = (generator.standard_normal((depth, columns)) * mask).astype(np.float32)
    pattern = pack_sparse_dense_weight(weight, 16)
    func, inputs = _built((*lead, depth), columns, pattern, lambda x, v, o: dense_sparse(x, v, o, columns=columns))
    label = f"{'x'.join(map(str, lead))} {depth} {columns} {kept}"
    return Case(label, depth, func, inputs, partial(_product, weight=weight))


def _built(
    shape: tuple[int, ...], columns: int, pattern: Pattern, compute: Callable[..., te.Tensor]
) -> tuple[tirx.PrimFunc, Callable[[], Arrays]]:
    """The kernel of `compute(data, values, offsets)` with bias and ReLU, and what makes its arguments."""
    data, bias = te.placeholder(shape, name="X"), te.placeholder((columns,), name="B")
    values = te.placeholder(pattern.values.shape, name="V")
    offsets = te.placeholder(pattern.offsets.shape, "int32", name="O")
    out = biased(compute(data, values, offsets), bias)
    func = te.create_prim_func([data, values, offsets, bias, out], index_dtype_override="int64")

    def inputs() -> Arrays:
        random = np.random.default_rng(1)
        x, b = (random.standard_normal(size).astype(np.float32) for size in (shape, (columns,)))
        return [x, pattern.values, pattern.offsets, b]

    return func, inputs


def _product(inputs: Arrays, weight: np.ndarray) -> np.ndarray:
    return np.maximum(inputs[0].astype("float64") @ weight.astype("float64") + inputs[3], 0)


# (N, H, W, I), outputs, strides: of the last pixels some are left out, and of an image of 2 x 2 one is taken.
STRIDED: list[tuple[tuple[int, ...], int, tuple[int, int]]] = [
    ((2, 9, 8, 33), 48, (2, 2)), ((1, 25, 24, 64), 17, (2, 2)), ((3, 7, 14, 20), 100, (1, 3)),
    ((1, 2, 2, 40), 16, (2, 2)), ((4, 13, 12, 16), 15, (1, 1)),
]  # fmt: skip


def strided(shape: tuple[int, ...], out: int, strides: tuple[int, int]) -> Case:
    """A 1x1 convolution of images (N, H, W, I), of whose weights three blocks in ten are kept, with bias and ReLU."""
    batch, height, width, channels = shape
    generator = np.random.default_rng(0)
    mask = (generator.random((-(-out // 16), channels, 1, 1)) < 0.3).repeat(16, axis=0)[:out]
    weight = (generator.standard_normal((out, channels, 1, 1)) * mask).astype(np.float32)
    conv = Conv2d(batch, channels, out, (height, width), (1, 1), strides, (0, 0, 0, 0), (1, 1), 1, 1)
    pattern = pack_sparse_nhwc_weight(weight)
    func, inputs = _built(shape, out, pattern, lambda x, v, o: conv2d_sparse_nhwc(x, v, o, conv=conv))

    def expected(arrays: Arrays) -> np.ndarray:
        x, *_, b = (torch.from_numpy(array.astype("float64")) for array in arrays)
        y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), torch.from_numpy(weight).double(), b, strides)
        return np.asarray(torch.relu(y).permute(0, 2, 3, 1).numpy())

    return Case(f"{'x'.join(map(str, shape))} {out} stride {strides[0]}x{strides[1]}", channels, func, inputs, expected)


def typical() -> list[Case]:
    """A pruned layer of a residual network."""
    return [case((8, 56, 56), 64, 256, "some")]


def boundary() -> list[Case]:
    """Every pair of boundary values, and convolutions with strides."""
    return [case(**row) for row in covering(SHAPES, 2, lambda _: True)] + [strided(*sizes) for sizes in STRIDED]
