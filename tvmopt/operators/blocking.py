"""The blocked layout NCHWc: channels in blocks of one SIMD register, so that a vector is one pixel's block.

A tensor of shape (N, C, H, W) becomes (N, ceil(C / block), H, W, block). Where `block` does not divide C the last
block is filled up; what stands in the fill is finite but otherwise unspecified, and whoever leaves the layout cuts
it off. Layout as in "Optimizing CNN Model Inference on CPUs" (Liu et al., 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te


def blocks(channels: int, block: int) -> int:
    """How many blocks hold `channels` channels."""
    return -(-channels // block)


def pack(data: te.Tensor, block: int) -> te.Tensor:
    """(N, C, H, W) -> (N, C/block, H, W, block), the last block filled up with zeros."""
    n, c, h, w = (int(x) for x in data.shape)

    def element(bn: te.Var, co: te.Var, y: te.Var, x: te.Var, ci: te.Var) -> te.PrimExpr:
        value = data[bn, co * block + ci, y, x]
        return value if c % block == 0 else te.if_then_else(co * block + ci < c, value, te.const(0, data.dtype))

    return te.compute((n, blocks(c, block), h, w, block), element, name="pack")


def unpack(data: te.Tensor, channels: int) -> te.Tensor:
    """(N, C/block, H, W, block) -> (N, channels, H, W)."""
    n, _, h, w, block = (int(x) for x in data.shape)
    return te.compute((n, channels, h, w), lambda bn, c, y, x: data[bn, c // block, y, x, c % block], name="unpack")


def concat(*tensors: te.Tensor, channels: Sequence[int]) -> te.Tensor:
    """Concatenate blocked tensors of `channels[i]` channels each along the channels, without gaps."""
    n, _, h, w, block = (int(x) for x in tensors[0].shape)
    counts = [int(c) for c in channels]
    starts = np.cumsum([0, *counts]).tolist()
    total = starts[-1]
    # Whole blocks need no arithmetic on the lane, so that the copy stays a vector copy.
    aligned = all(start % block == 0 for start in starts[:-1])

    def element(bn: te.Var, co: te.Var, y: te.Var, x: te.Var, ci: te.Var) -> te.PrimExpr:
        channel = co * block + ci

        def source(i: int) -> te.PrimExpr:
            if aligned:
                return tensors[i][bn, co - starts[i] // block, y, x, ci]
            local = channel - starts[i]
            return tensors[i][bn, local // block, y, x, local % block]

        value = source(len(tensors) - 1)
        for i in reversed(range(len(tensors) - 1)):
            before = co < starts[i + 1] // block if aligned else channel < starts[i + 1]
            value = te.if_then_else(before, source(i), value)
        if total % block and not aligned:
            value = te.if_then_else(channel < total, value, te.const(0, tensors[0].dtype))
        return value

    return te.compute((n, blocks(total, block), h, w, block), element, name="concat")
