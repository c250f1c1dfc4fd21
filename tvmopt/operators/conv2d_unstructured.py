"""Convolution that multiplies the weights that are not zero, pixels in the lanes (operators/unstructured.py).

Input (N, I, H, W), the rows of `pack_unstructured_weight`, output (N, O, OH, OW): not the blocked layout, as every
kept weight takes pixels of one channel. Convolutions that follow one another stay in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import te

from tvmopt.operators import FLOPS_ATTR, OFFSETS_ATTR
from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.extent import LARGEST_TILE
from tvmopt.operators.sparse import bounded, power
from tvmopt.operators.unstructured import Rows, compress_rows, describe_rows, row_sum


@dataclass(frozen=True)
class Planes:
    """How the input lies for a convolution: a plane for every channel and, where strides are over 1, for every phase.

    A plane has `rows` rows of `pitch` values, zeros for the border among them. An output pixel reads, through a tap,
    one value of the plane of its phase; outputs that are next to each other read values next to each other. A band of
    `band` rows of the output is `vectors` registers of `lanes` values, all rows in one piece: those between the end of
    a row and the beginning of the next are computed in vain. `reach`: how far behind an output's own place in a plane
    the last tap reads.
    """

    phases: tuple[int, int]
    reach: int
    pitch: int
    rows: int
    band: int
    vectors: int

    @property
    def step(self) -> int:
        """What the number of a plane is multiplied by in an offset: a power of two, more than `reach`."""
        return power(self.reach + 1)

    @property
    def size(self) -> int:
        """Values of a plane."""
        return self.rows * self.pitch

    def are_the_input(self, conv: Conv2d) -> bool:
        """Whether the input lies so without a copy: no border, no phases, and nothing is read behind its end."""
        return self.without_border(conv) and (self.rows, self.pitch) == conv.in_size

    def without_border(self, conv: Conv2d) -> bool:
        """Whether the rows of a plane are those of the input."""
        return self.phases == conv.strides == (1, 1) and not any(conv.padding) and self.pitch == conv.in_size[1]


def planes_of(conv: Conv2d) -> Planes | None:
    """The planes of a convolution; None where a row of its output is more than registers hold."""
    (height, width), lanes = conv.out_size, conv.block
    taps = [[tap * d for tap in range(k)] for k, d in zip(conv.kernel, conv.dilation, strict=True)]
    phases = tuple(max(t % s for t in along) + 1 for along, s in zip(taps, conv.strides, strict=True))
    down, across = (along[-1] // s for along, s in zip(taps, conv.strides, strict=True))
    pitch = width + across

    def vectors(band: int) -> int:
        return -(-((band - 1) * pitch + width) // lanes)

    bands = [b for b in range(1, height + 1) if height % b == 0 and vectors(b) <= LARGEST_TILE]
    if not bands:
        return None
    # The fewest registers in vain, of those that leave room for tiles; the longest, as a weight serves all of it.
    band = min(bands, key=lambda b: (round(vectors(b) / b * (1 + 1 / vectors(b)), 3), -b))
    reach = down * pitch + across
    read = (height - band) * pitch + vectors(band) * lanes + reach
    return Planes((phases[0], phases[1]), reach, pitch, -(-read // pitch), band, vectors(band))


def fits(conv: Conv2d) -> bool:
    """Whether the strategy is for this convolution: one group, rows that registers hold, offsets an int32 holds."""
    planes = planes_of(conv) if conv.groups == 1 else None
    return planes is not None and conv.in_channels * math.prod(planes.phases) * max(planes.step, planes.size) < 1 << 31


def _distances(conv: Conv2d, planes: Planes) -> np.ndarray:
    """Offsets (I, KH, KW): the number of the plane times a power of two, and how far behind the output's own place."""
    channel, row, column = np.indices((conv.in_channels, *conv.kernel))
    (sh, sw), (dh, dw), (ph, pw) = conv.strides, conv.dilation, planes.phases
    plane = (channel * ph + row * dh % sh) * pw + column * dw % sw
    return plane * planes.step + row * dh // sh * planes.pitch + column * dw // sw


def pack_unstructured_weight(weight: np.ndarray, conv: Conv2d) -> Rows:
    """Weights (O, I, KH, KW) as the rows of `conv2d_unstructured`."""
    planes = planes_of(conv)
    assert planes is not None
    return compress_rows(weight, _distances(conv, planes))


def conv2d_unstructured(
    data: te.Tensor, values: te.Tensor, offsets: te.Tensor, ranges: te.Tensor, conv: Conv2d
) -> te.Tensor:
    """Stages: `planes`, the anchor `conv2d_unstructured`, `image`.

    These are (N, I, phases, rows, pitch), (N, O, bands, vectors, lanes), (N, O, OH, OW); there is no `planes` where the
    input itself lies so.
    """
    planes = planes_of(conv)
    assert planes is not None
    pitch, band, lanes = planes.pitch, planes.band, conv.block
    (height, width), (ph, pw) = conv.out_size, planes.phases
    as_it_is = planes.are_the_input(conv)
    source = data if as_it_is else _planes(data, conv, planes)
    k = te.reduce_axis((0, conv.in_channels * math.prod(conv.kernel)), "k")

    def element(n: te.Var, o: te.Var, b: te.Var, v: te.Var, lane: te.Var) -> te.PrimExpr:
        pixel = b * (band * pitch) + v * lanes + lane

        def index(offset: te.PrimExpr) -> tuple[te.PrimExpr, ...]:
            # The divisions fall away when TVM flattens the index.
            # A remainder by a power of two tells TVM which part of a plane a band depends on.
            plane = bounded(offset, conv.in_channels * ph * pw * planes.step) // planes.step
            at = offset % planes.step + pixel
            phase = () if as_it_is else (plane // pw % ph, plane % pw)
            return n, plane // (ph * pw), *phase, at // pitch, at % pitch

        return row_sum(source, index, values, offsets, ranges, o, k)

    kept = int(values.shape[0])
    operations = 2 * conv.batch * height * width * kept
    sums = te.compute(
        (conv.batch, conv.out_channels, height // band, planes.vectors, lanes),
        element,
        name="conv2d_unstructured",
        attrs={
            **conv.annotations,
            FLOPS_ATTR: round(operations * conv.inside(0) * conv.inside(1)),
            OFFSETS_ATTR: describe_rows(conv.in_channels * ph * pw, planes.step, planes.reach, kept),
        },
    )

    def pixel(n: te.Var, o: te.Var, y: te.Var, x: te.Var) -> te.PrimExpr:
        at = y % band * pitch + x
        return sums[n, o, y // band, at // lanes, at % lanes]

    return te.compute((conv.batch, conv.out_channels, height, width), pixel, name="image")


def _planes(data: te.Tensor, conv: Conv2d, planes: Planes) -> te.Tensor:
    """The input plane by plane, zeros where it has no value."""
    (ph, pw), (sh, sw), (top, left, _, _) = planes.phases, conv.strides, conv.padding
    rows, columns = conv.in_size

    def element(n: te.Var, c: te.Var, down: te.Var, across: te.Var, y: te.Var, x: te.Var) -> te.PrimExpr:
        y_in, x_in = y * sh + down - top, x * sw + across - left
        if planes.without_border(conv):
            # Rows behind the image are read for pixels that are left out only: whatever is there.
            return data[n, c, te.min(y_in, te.const(rows - 1, "int32")), x_in]
        inside = te.all(y_in >= 0, y_in < rows, x_in >= 0, x_in < columns)
        return te.if_then_else(inside, data[n, c, y_in, x_in], te.const(0, data.dtype))

    shape = (conv.batch, conv.in_channels, ph, pw, planes.rows, planes.pitch)
    return te.compute(shape, element, name="planes")
