"""Depthwise convolution in NHWC at boundary shapes."""

from __future__ import annotations

from tvmopt.operators.conv2d_nhwc import conv2d_depthwise_nhwc

from ...covering import covering
from .base import HALF, Case
from .product import convolutions

FACTORS = {
    "batch": [1, 3], "channels": [1, 3, 16, 17, 31, 32, 33, 96], "size": [7, 8, 13, 28], "kernel": [1, 3, 5],
    "stride": [1, 2], "padding": [0, 1, 2], "dilation": [1, 2],
}  # fmt: skip


def case(dtype: str = "float32", **row: int) -> Case:
    """A depthwise convolution of `channels`."""
    channels = row.pop("channels")
    return convolutions({**row, "in": channels, "out": channels}, dtype, conv2d_depthwise_nhwc)


def boundary() -> list[Case]:
    """Every pair of boundary values."""

    def valid(row: dict[str, int]) -> bool:
        fits = (row["kernel"] - 1) * row["dilation"] + 1 <= row["size"] + 2 * row["padding"]
        return fits and row["padding"] < row["kernel"]

    rows = covering(FACTORS, 2, valid)
    return [case(**row) for row in rows] + [case(HALF[i % 2], **row) for i, row in enumerate(rows[::4])]


MOBILE = {"batch": 1, "channels": 96, "size": 112, "kernel": 3, "stride": 1, "padding": 1, "dilation": 1}


def typical() -> list[Case]:
    """A layer of a MobileNet, in every dtype."""
    return [case(dtype, **MOBILE) for dtype in ("float32", *HALF)]
