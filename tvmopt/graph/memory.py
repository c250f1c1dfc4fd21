"""Where the values between kernels lie: offsets into one workspace, planned before anything runs.

Every value has a size and a life, the steps from the one that writes it to the last that reads it. Values whose lives
overlap must not overlap in memory; all others may share it. The plan is greedy by size with the best fitting gap,
"Greedy by Size for Offset Calculation" in "Efficient Memory Management for Deep Neural Net Inference" (Pisarchyk and
Lee, 2020): the largest value is placed first, each next one into the smallest gap that holds it between those already
placed that live when it lives, and behind all of them where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# TVM's kernels load and store whole vectors at addresses they take to be multiples of this.
ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """A value of `size` bytes, written in step `first` and read for the last time in step `last` (both included).

    A step's inputs and outputs live in it together: a kernel never writes where it reads.
    """

    size: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        """Whether there is a step in which both live."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """`offsets[i]` is where value `i` begins in a workspace of `size` bytes; both are multiples of `ALIGNMENT`."""

    offsets: tuple[int, ...]
    size: int


def plan_memory(lives: Sequence[Life]) -> MemoryPlan:
    """Offsets at which no two values that live together overlap."""
    offsets: dict[int, int] = {}
    for index in sorted(range(len(lives)), key=lambda i: (-lives[i].size, lives[i].first, i)):
        life = lives[index]
        size = _aligned(life.size)
        taken = sorted((offsets[i], offsets[i] + _aligned(lives[i].size)) for i in offsets if lives[i].meets(life))
        end, best, best_gap = 0, None, 0
        for begin, after in taken:
            gap = begin - end
            if gap >= size and (best is None or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, after)
        offsets[index] = end if best is None else best
    ends = [offset + _aligned(lives[index].size) for index, offset in offsets.items()]
    return MemoryPlan(tuple(offsets[index] for index in range(len(lives))), max(ends, default=0))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
