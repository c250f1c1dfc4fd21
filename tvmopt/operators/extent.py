"""Extents a register tile can divide: an odd extent is computed slightly larger and cropped afterwards.

A tile that does not divide its loop puts a condition into the innermost loop, where it costs far more than the few
columns computed in vain (at most 1 in 8 here, for the widths real networks have at most 1 in 20).
"""

from __future__ import annotations

# A register tile under 6 rows leaves multiply-add units idle (latency 4 x 2 units = 8 sums in flight, two vectors a
# row), one over 28 cannot be held in 32 registers.
SMALLEST_TILE, LARGEST_TILE = 6, 28


def has_good_tile(extent: int) -> bool:
    """Whether some tile between the smallest and the largest divides `extent` (or `extent` itself is one tile)."""
    return extent <= LARGEST_TILE or any(extent % t == 0 for t in range(SMALLEST_TILE, LARGEST_TILE + 1))


def padded_extent(extent: int) -> int:
    """The smallest number not under `extent` that a good register tile divides."""
    while not has_good_tile(extent):
        extent += 1
    return extent
