"""The geometry of a 2-D convolution, shared by every strategy, and the packing of its weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import te

from tvmopt.operators import FLOPS_ATTR, GEOMETRY_ATTR
from tvmopt.operators.blocking import blocks
from tvmopt.operators.sparse import kept_text


@dataclass(frozen=True)
class Conv2d:
    """Sizes of one convolution: `padding` is (top, left, bottom, right); channels are those of the user's model.

    `kept`: how many inputs an output depends on at most where weights are zero in whole blocks; None where none are.
    `nonzeros`: how many weights are not zero, where they are zero one by one, and not `kept`; None else.
    """

    batch: int
    in_channels: int
    out_channels: int
    in_size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    block: int
    kept: int | None = None
    nonzeros: int | None = None

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.padding
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        h = (self.in_size[0] + top + bottom - spans[0]) // self.strides[0] + 1
        w = (self.in_size[1] + left + right - spans[1]) // self.strides[1] + 1
        return h, w

    @property
    def flops(self) -> int:
        """Multiplications and additions of the convolution as defined, fill channels not counted."""
        h, w = self.out_size
        per_output = 2 * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]
        return self.batch * self.out_channels * h * w * per_output

    @property
    def geometry(self) -> str:
        """The sizes as text, such as `1x64x56x56 64 3x3 stride 1x1 pad 1,1,1,1`."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.strides, self.dilation
        text = f"{self.batch}x{self.in_channels}x{self.in_size[0]}x{self.in_size[1]} {self.out_channels} {kh}x{kw}"
        text += f" stride {sh}x{sw} pad {','.join(map(str, self.padding))}"
        text += f" dilation {dh}x{dw}" if (dh, dw) != (1, 1) else ""
        text += kept_text(self.kept, self.nonzeros)
        return text + (f" groups {self.groups}" if self.groups > 1 else "")

    @property
    def annotations(self) -> dict[str, object]:
        """What an anchor block of this convolution carries."""
        return {FLOPS_ATTR: self.flops, GEOMETRY_ATTR: self.geometry}

    @property
    def is_depthwise(self) -> bool:
        """One filter per channel."""
        return self.groups == self.in_channels == self.out_channels and self.groups > 1

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 convolution that reads every pixel once: a matrix product over pixels."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.padding) and self.groups == 1

    def inside(self, axis: int) -> float:
        """The share of (output, tap) of rows (axis 0) or columns (1) whose input is in the image."""
        size, stride, dilation, taps = (
            of[axis] for of in (self.in_size, self.strides, self.dilation, self.kernel)
        )
        begins = np.arange(self.out_size[axis])[:, None] * stride - self.padding[axis]
        at = begins + np.arange(taps) * dilation
        return float(((at >= 0) & (at < size)).mean())

    @property
    def in_blocks(self) -> int:
        """Blocks of input channels."""
        return blocks(self.in_channels, self.block)

    @property
    def out_blocks(self) -> int:
        """Blocks of output channels."""
        return blocks(self.out_channels, self.block)

    @property
    def input_steps(self) -> tuple[int, int]:
        """(steps, channels of a step): how the input channels an output depends on are counted, block by block.

        Where the last block is not full, steps of half a block or a quarter leave its fill out as far as they can.
        """
        if self.groups > 1:
            return self.window, self.block
        sizes = [size for size in (self.block, self.block // 2, self.block // 4) if size >= 2]
        step = min(sizes, key=lambda size: (blocks(self.in_channels, size) * size, -size), default=self.block)
        return blocks(self.in_channels, step), step

    def input_place(self, step: te.PrimExpr, channel: te.PrimExpr) -> tuple[te.PrimExpr, te.PrimExpr]:
        """Block and lane of `channel` of `step` of `input_steps`."""
        size = self.input_steps[1]
        a_block = self.block // size
        return (step, channel) if a_block == 1 else (step // a_block, step % a_block * size + channel)

    # A block of output channels of a grouped convolution depends on a window of the input's blocks only.

    def window_base(self, out_block: int) -> int:
        """First input block that output block `out_block` depends on."""
        first = min(out_block * self.block, self.out_channels - 1) // self._out_per_group * self._in_per_group
        return min(first // self.block, self.in_blocks - self.window)

    @property
    def window(self) -> int:
        """How many input blocks one output block depends on (the most, over all output blocks)."""
        widest = 1
        for out_block in range(self.out_blocks):
            first = out_block * self.block // self._out_per_group * self._in_per_group
            last_out = min((out_block + 1) * self.block, self.out_channels) - 1
            last = (last_out // self._out_per_group + 1) * self._in_per_group - 1
            widest = max(widest, last // self.block - first // self.block + 1)
        return widest

    @property
    def _in_per_group(self) -> int:
        return self.in_channels // self.groups

    @property
    def _out_per_group(self) -> int:
        return self.out_channels // self.groups

    def window_base_expr(self, out_block: te.PrimExpr) -> te.PrimExpr:
        """`window_base` of a loop variable, as an expression that stays affine where the groups fit the blocks."""
        bases = [self.window_base(b) for b in range(self.out_blocks)]
        if not any(bases):
            return te.const(0, "int32")
        per, group_in = self._out_per_group, self._in_per_group
        if per % self.block == 0 and group_in % self.block == 0:
            return out_block // (per // self.block) * (group_in // self.block)
        if all(base == bases[1] * b for b, base in enumerate(bases)):
            return out_block * bases[1]
        first = out_block * self.block // per * group_in // self.block
        return te.min(first, te.const(self.in_blocks - self.window, "int32"))


def pack_weight(weight: np.ndarray, conv: Conv2d, *, plain_input: bool) -> np.ndarray:
    """Weights (O, I/groups, KH, KW) -> (O/block, window, KH, KW, in_block, block), zeros in every fill.

    `plain_input` keeps the input channels as one block of their own number (a 3-channel image is not filled up to
    16). Grouped weights become the dense weights of each output block over its window of input blocks.
    """
    kh, kw = conv.kernel
    in_block = conv.in_channels if plain_input else conv.block
    window = 1 if plain_input else conv.window
    packed = np.zeros((conv.out_blocks, window, kh, kw, in_block, conv.block), weight.dtype)
    per_out, per_in = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    for out_channel in range(conv.out_channels):
        out_block, lane = divmod(out_channel, conv.block)
        base = 0 if plain_input else conv.window_base(out_block) * conv.block
        channels = np.arange(per_in) + out_channel // per_out * per_in - base
        packed[out_block, channels // in_block, :, :, channels % in_block, lane] = weight[out_channel]
    return packed


def pack_depthwise_weight(weight: np.ndarray, conv: Conv2d) -> np.ndarray:
    """Depthwise weights (C, 1, KH, KW) -> (C/block, KH, KW, block)."""
    kh, kw = conv.kernel
    packed = np.zeros((conv.out_blocks * conv.block, kh, kw), weight.dtype)
    packed[: conv.out_channels] = weight[:, 0]
    return np.ascontiguousarray(packed.reshape(conv.out_blocks, conv.block, kh, kw).transpose(0, 2, 3, 1))


def pad_input(data: te.Tensor, conv: Conv2d, out_width: int, *, plain_input: bool) -> te.Tensor:
    """The input with its border of zeros, wide enough for `out_width` output columns.

    Data is (N, C/block, H, W, block), or (N, C, H, W) where `plain_input`, which this stage brings into the blocked
    layout as a single block of C channels. Returns `data` itself where nothing is to be added.
    """
    top, left, _, _ = conv.padding
    in_h, in_w = conv.in_size
    height = (conv.out_size[0] - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1
    width = (out_width - 1) * conv.strides[1] + (conv.kernel[1] - 1) * conv.dilation[1] + 1
    if not plain_input and top == left == 0 and height <= in_h and width <= in_w:
        return data
    in_blocks, in_block = (1, conv.in_channels) if plain_input else (conv.in_blocks, conv.block)

    def element(n: te.Var, co: te.Var, y: te.Var, x: te.Var, ci: te.Var) -> te.PrimExpr:
        value = data[n, ci, y - top, x - left] if plain_input else data[n, co, y - top, x - left, ci]
        bounds = [y >= top] if top else []
        bounds += [y < in_h + top] if height > in_h + top else []
        bounds += [x >= left] if left else []
        bounds += [x < in_w + left] if width > in_w + left else []
        return te.if_then_else(te.all(*bounds), value, te.const(0, data.dtype)) if bounds else value

    return te.compute((conv.batch, in_blocks, height, width, in_block), element, name="pad")


def image(pixels: te.Tensor, conv: Conv2d) -> te.Tensor:
    """(N, blocks, pixels, block) -> (N, blocks, rows, columns, block); pixels too many are left out."""
    height, width = conv.out_size
    return te.compute(
        (conv.batch, conv.out_blocks, height, width, conv.block),
        lambda n, co, y, x, ci: pixels[n, co, y * width + x, ci],
        name="image",
    )
