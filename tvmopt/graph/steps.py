"""What a network is made of when it is one function: values of a fixed size, and the calls that read and write them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm


@dataclass(frozen=True)
class Value:
    """A tensor of a fixed `shape` and `dtype`, `size` in bytes. `kind` says whose memory it lies in: the caller's
    (`input`, `output`), the executable's (`weight`) or the workspace (`between`); `index` is its place there, and
    `offset` where in that place it begins, in bytes: a part of a joined value (joining.py) lies behind others."""

    kind: str
    index: int
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ((tvm.DataType(self.dtype).bits + 7) // 8)


@dataclass(frozen=True)
class Step:
    """One call: of the kernel of that name, or of none, which copies the only value read to the only one written."""

    kernel: str | None
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
