"""Block-sparse weights: only the blocks that are not zero are kept, as many in every row of output channels.

A *block* is one SIMD register of output channels by one input element (a channel at a tap of the window), or by
`GROUP` neighbouring channels at a tap. All rows of blocks keep as many as the fullest one, the others being filled up
with blocks of zeros (the form ELL, "ELLPACK", of Rice and Boisvert, 1985, here with vectors for elements). So the loop
over a row's blocks has a constant extent, and a kernel depends on the shape and on the blocks a row, while the
pattern itself is data: networks pruned differently share schedules and tuning records.

Offsets are data, and not constants in the code, in a final model, too: with the loops over a layer's kept blocks
unrolled and their offsets put into the multiply-adds, one thread of Zen 4 took 17.8 us for 16.8 (16 channels at 32x32,
3x3, 57% zeros), 11.4 for 9.9 (32 at 16x16, 74%) and 14.9 for 5.5 (64 at 8x8, 84%): code that runs once is fetched for
every kept block, where a loop is fetched once and an offset's load costs nothing beside its multiply-adds. Only a
product of 256 x 128 gained, 0.05 us.

An element is one int32: its distance, in values, from the element that the window's first tap has in channel 0; behind
it, where a window reaches over the edge of an image, which tap it is. Where the input is read as it is, the element's
indices are divided out of it in TE, and the divisions fall away when TVM flattens the index. Where a stage before the
anchor makes a copy of the input, part by part, TVM must see which part a kept block may lie in: there a `bounded`
remainder says so, by a power of two, which is a single instruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import te

# Neighbouring input channels that a wider block holds: one offset serves them all.
GROUP = 4


@dataclass(frozen=True)
class Pattern:
    """Which input elements every block of output channels depends on.

    values: (output blocks, kept, group, block) float32; offsets: (output blocks, kept) int32, of the first of a
    block's `group` neighbouring elements.
    """

    values: np.ndarray
    offsets: np.ndarray

    @property
    def kept(self) -> int:
        """Blocks in a row, those that fill it up included."""
        return int(self.offsets.shape[1])

    @property
    def group(self) -> int:
        """Input elements of a block."""
        return int(self.values.shape[2])


def kept_elements(packed: np.ndarray) -> np.ndarray:
    """Which elements a block of output channels depends on: packed weights (O, ..., block) -> bool (O, ...)."""
    return np.asarray((packed != 0).any(axis=-1))


def most_kept(weight: np.ndarray, block: int) -> int | None:
    """How many inputs a block of outputs depends on at most: weights (O, ...); None where one depends on all."""
    outputs = weight.shape[0]
    rows = [np.count_nonzero((weight[i : i + block] != 0).any(axis=0)) for i in range(0, outputs, block)]
    most = max(rows)
    return int(most) if most < weight[0].size else None


def kept_text(kept: int | None, nonzeros: int | None = None) -> str:
    """What the text of a layer's sizes says of its zeros (`Conv2d`'s `kept` and `nonzeros`)."""
    text = f" kept {kept}" if kept is not None else ""
    return text + (f" nonzeros {nonzeros}" if nonzeros is not None else "")


def without_kept(geometry: str) -> str:
    """The sizes of a layer as they would be without its zeros: what its dense kernels are told apart by."""
    return re.sub(r" (kept|nonzeros) \d+", "", geometry)


def describe_offsets(shape: Sequence[int], steps: Sequence[int], group: int, order: Sequence[int] = ()) -> str:
    """All offsets there can be, as text: of packed weights (output blocks, *shape, block), distances `steps` apart.

    Axis by axis as in `shape`, or in the `order` that `compress` sorts a row by.
    """
    axes = [*zip(shape[:-1], steps[:-1], strict=True), (shape[-1] // group, steps[-1] * group)]
    return ",".join(f"{axes[axis][0]}x{axes[axis][1]}" for axis in order or range(len(axes)))


def random_offsets(described: str, shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Offsets of `shape` (output blocks, kept), drawn from `describe_offsets`'s, every row in the order of these."""
    grid = np.zeros(1, np.int64)
    for count, step in (map(int, axis.split("x")) for axis in described.split(",")):
        grid = (grid[:, None] + np.arange(count) * step).reshape(-1)
    rows, kept = shape
    chosen = [generator.choice(len(grid), kept, replace=kept > len(grid)) for _ in range(rows)]
    return grid[np.sort(np.stack(chosen), axis=-1)].astype(np.int32)


def power(extent: int) -> int:
    """The smallest power of two that is not less than `extent`."""
    return 1 << (extent - 1).bit_length()


def bounded(offset: te.PrimExpr, extent: int) -> te.PrimExpr:
    """`offset`, which is less than `extent`, so written that TVM can tell that it stays within the power of two."""
    return offset % power(extent)


def compress(packed: np.ndarray, steps: Sequence[int], order: Sequence[int] = ()) -> Pattern:
    """Packed weights (output blocks, a, b, ..., block), the input channel being the last but one, as a pattern.

    `steps` are the distances, in the input, of neighbours along a, b, ... . Blocks of `GROUP` channels are taken where
    they hold no more zeros than blocks of one.
    order: the axes of a, b, ... that the kept blocks of a row are sorted by, the slowest first; as they are by default.
    """
    kept = kept_elements(packed)
    rows, lanes = packed.shape[0], packed.shape[-1]
    shape = packed.shape[1:-1]
    at = np.indices(shape).reshape(len(shape), -1)
    axes = list(order or range(len(shape)))
    rank = np.ravel_multi_index(tuple(at[axes]), [shape[axis] for axis in axes])
    group = 1
    if packed.shape[-2] % GROUP == 0:
        quads = kept.reshape(rows, -1, GROUP).any(axis=-1)
        if GROUP * quads.sum(axis=1).max(initial=0) <= kept.reshape(rows, -1).sum(axis=1).max(initial=0):
            group = GROUP
    where = np.asarray(kept.reshape(rows, -1, group).any(axis=-1))
    starts = (np.asarray(steps) @ at)[::group]
    in_order = np.argsort(rank[::group])
    blocks = packed.reshape(rows, -1, group, lanes)
    most = max(1, int(where.sum(axis=1).max(initial=0)))
    values = np.zeros((rows, most, group, lanes), np.float32)
    offsets = np.zeros((rows, most), np.int32)
    for row in range(rows):
        found = in_order[where[row][in_order]]
        values[row, : len(found)] = blocks[row, found]
        offsets[row, : len(found)] = starts[found]
        # What fills the row up reads where its last block reads: no other part of the input is touched.
        offsets[row, len(found) :] = starts[found[-1]] if len(found) else 0
    return Pattern(values, offsets)
