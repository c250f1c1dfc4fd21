"""Unstructured weights: single values that are not zero, a row of them an output channel (CSR, "compressed rows").

Pixels are in the lanes of a register, as in "Fast Sparse ConvNets" (Elsen et al., 2020): every kept weight is
multiplied with a vector of pixels of its own channel and tap, so a weight costs what it does in a dense kernel, and
one that is zero nothing, wherever it is. Pixels of a channel lie next to each other, in planes.

The arrays are values (kept,) float32, offsets (kept,) int32, which say what input the first output reads through a
weight (its plane, and where in it, as the operator counts them), and ranges (outputs, 2) int32, where each output's
weights begin and end. Shape and number of kept weights make a kernel; which they are is data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import te

_DESCRIBED = "rows"
# Of the weights that blocks hold: with more of them, blocks are the faster.
_FEW = 0.5


@dataclass(frozen=True)
class Rows:
    """Kept weights by output: `values` and `offsets` (kept,), `ranges` (outputs, 2)."""

    values: np.ndarray
    offsets: np.ndarray
    ranges: np.ndarray


def compress_rows(weight: np.ndarray, distances: np.ndarray) -> Rows:
    """Weights (O, ...) as rows; `distances`, of the shape of one output's weights, are the offsets, ascending in a row.

    Without any weight that is not zero there is a single zero, of no row, as no array may be empty.
    """
    flat = weight.reshape(weight.shape[0], -1)
    order = np.argsort(distances.reshape(-1), kind="stable")
    row, at = np.nonzero(flat[:, order])
    counts = np.bincount(row, minlength=len(flat))
    ends = np.cumsum(counts)
    ranges = np.stack([ends - counts, ends], axis=1).astype(np.int32)
    values, offsets = flat[row, order[at]].astype(np.float32), distances.reshape(-1)[order[at]].astype(np.int32)
    if not len(values):
        values, offsets = np.zeros(1, np.float32), np.zeros(1, np.int32)
    return Rows(values, offsets, ranges)


def scattered(weight: np.ndarray, block: int) -> int | None:
    """How many weights (O, ...) are not zero; None where blocks of `block` outputs hold them without many zeros."""
    flat = weight.reshape(len(weight), -1) != 0
    held = sum(len(rows) * rows.any(axis=0).sum() for rows in np.split(flat, range(block, len(flat), block)))
    nonzeros = int(flat.sum())
    return nonzeros if nonzeros < _FEW * held else None


def describe_rows(planes: int, size: int, most: int, kept: int) -> str:
    """What offsets there are, as text: up to `most` behind the beginning of each of `planes`, which are `size` long.

    `kept`: where the last row ends.
    """
    return f"{_DESCRIBED} {planes} {size} {most} {kept}"


def is_described(text: str) -> bool:
    """Whether `text` is `describe_rows`'s."""
    return text.startswith(_DESCRIBED)


def random_rows(described: str, shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Integers of `shape` for a kernel, drawn: offsets, or the ranges (rows, 2) of rows that are all alike."""
    planes, size, most, kept = (int(number) for number in described.removeprefix(_DESCRIBED).split())
    if len(shape) == 2 and shape[1] == 2:
        ends = np.linspace(0, kept, shape[0] + 1).astype(np.int32)
        return np.stack([ends[:-1], ends[1:]], axis=1)
    plane, at = generator.integers(0, planes, shape), generator.integers(0, most + 1, shape)
    return (plane * size + at).astype(np.int32)


def row_sum(
    data: te.Tensor, index: Callable[[te.PrimExpr], tuple[te.PrimExpr, ...]], values: te.Tensor, offsets: te.Tensor,
    ranges: te.Tensor, output: te.PrimExpr, k: te.IterVar,
) -> te.PrimExpr:  # fmt: skip
    """The sum over `k` of what `output` keeps: values times `data` at `index(offset)`.

    `k` runs over all weights an output could have; lowering makes a loop over those it has (graph/ragged.py).
    """
    begin, end = ranges[output, 0], ranges[output, 1]
    product = data[index(offsets[begin + k])] * values[begin + k]
    return te.sum(te.if_then_else(k < end - begin, product, te.const(0, data.dtype)), axis=k)
