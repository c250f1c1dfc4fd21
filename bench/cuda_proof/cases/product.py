"""Matrix products and convolutions as implicit products, in any dtype, at boundary shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tvm import te

from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_nhwc import conv2d_depthwise_nhwc, conv2d_implicit_gemm
from tvmopt.operators.gemm import batch_gemm, gemm

from ...covering import Row, covering
from .base import Arrays, Case, biased, random


def products(rows: int, columns: int, depth: int, batch: int = 0, dtype: str = "float32") -> Case:
    """(rows, depth) times (depth, columns), of `batch` independent pairs where it is not 0."""
    lead = (batch,) if batch else ()
    shapes = [(*lead, rows, depth), (*lead, depth, columns), (columns,)]
    left, right, bias = (te.placeholder(shape, dtype, name) for shape, name in zip(shapes, "ABC", strict=True))
    out = biased((batch_gemm if batch else gemm)(left, right), bias)
    label = f"{'x'.join(map(str, [*lead, rows, columns, depth]))} {dtype}"
    func = te.create_prim_func([left, right, bias, out])
    return Case(label, depth, func, partial(random, *shapes, dtype=dtype), _product)


def _product(inputs: Arrays) -> np.ndarray:
    left, right, bias = (x.astype("float64") for x in inputs)
    return np.maximum(left @ right + bias, 0)


def convolutions(row: Row, dtype: str = "float32", operator: Callable[..., te.Tensor] = conv2d_implicit_gemm) -> Case:
    """A convolution with bias and ReLU."""
    groups = row["in"] if operator is conv2d_depthwise_nhwc else row["groups"]
    kernel, stride, padding, dilation = (row[k] for k in ("kernel", "stride", "padding", "dilation"))
    conv = Conv2d(
        row["batch"], row["in"], row["out"], (row["size"], row["size"] + 1), (kernel, kernel), (stride, stride),
        (padding,) * 4, (dilation, dilation), groups, 1,
    )  # fmt: skip
    channels = () if operator is conv2d_depthwise_nhwc else (row["in"] // groups,)
    shapes = [(row["batch"], *conv.in_size, row["in"]), (kernel, kernel, *channels, row["out"]), (row["out"],)]
    data, weight, bias = (te.placeholder(shape, dtype, name) for shape, name in zip(shapes, "XWB", strict=True))
    func = te.create_prim_func([data, weight, bias, biased(operator(data, weight, conv), bias)])
    label = " ".join(f"{key}={value}" for key, value in row.items()) + f" {dtype}"
    depth = kernel * kernel * max(1, *channels, 1)
    return Case(label, depth, func, partial(random, *shapes, dtype=dtype), partial(convolution_result, conv=conv))


def convolution_result(inputs: Arrays, conv: Conv2d) -> np.ndarray:
    """relu(convolution + bias) by PyTorch."""
    data, weight, bias = (torch.from_numpy(x.astype("float64")) for x in inputs)
    weight = weight.reshape(*conv.kernel, conv.in_channels // conv.groups, conv.out_channels).permute(3, 2, 0, 1)
    assert conv.padding[:2] == conv.padding[2:]
    out = torch.nn.functional.conv2d(
        data.permute(0, 3, 1, 2), weight, bias, conv.strides, conv.padding[:2], conv.dilation, conv.groups
    )
    return out.relu().permute(0, 2, 3, 1).numpy()


# One below, at and one above a warp's tile and a block's, and primes.
PRODUCTS: dict[str, list[Any]] = {
    "rows": [1, 3, 31, 32, 33, 127, 128, 129, 257],
    "columns": [1, 3, 31, 32, 33, 64, 127, 128, 129],
    "depth": [1, 3, 15, 16, 17, 33, 67],
    "batch": [0, 0, 3],
}
CONVOLUTIONS: dict[str, list[Any]] = {
    "batch": [1, 3],
    "in": [1, 3, 16, 17, 32],
    "out": [1, 3, 31, 32, 33, 64],
    "size": [7, 8, 13, 28],
    "kernel": [1, 3, 5],
    "stride": [1, 2],
    "padding": [0, 1, 2],
    "dilation": [1, 2],
    "groups": [1, 1, 2, 4],
}


def valid(row: Row) -> bool:
    """Whether the filter fits into the image and the groups into the channels."""
    fits = (row["kernel"] - 1) * row["dilation"] + 1 <= row["size"] + 2 * row["padding"]
    return fits and row["padding"] < row["kernel"] and not row["in"] % row["groups"] and not row["out"] % row["groups"]


def product_cases(strength: int, dtype: str = "float32") -> list[Case]:
    """Products in which every `strength` boundary values occur together."""
    return [products(**row, dtype=dtype) for row in covering(PRODUCTS, strength, lambda _: True)]


def convolution_cases(strength: int, dtype: str = "float32") -> list[Case]:
    """Convolutions in which every `strength` boundary values occur together."""
    return [convolutions(row, dtype) for row in covering(CONVOLUTIONS, strength, valid)]


def typical() -> list[Case]:
    """A large product, and a layer of a residual network."""
    layer = {"batch": 1, "out": 64, "size": 56, "kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    return [products(2048, 2048, 2048), convolutions(layer | {"in": 64})]


def boundary() -> list[Case]:
    """Every pair of boundary values of both."""
    return product_cases(2) + convolution_cases(2)
