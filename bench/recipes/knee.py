"""Where a curve of accuracy over sparsity stops being flat, and where it bends most."""

from __future__ import annotations

from collections.abc import Sequence


def flat_to(shares: Sequence[float], scores: Sequence[float], tolerance: float = 0.01) -> float:
    """The largest share up to which no score is more than `tolerance` below the first."""
    last = shares[0]
    for share, score in zip(shares, scores, strict=True):
        if scores[0] - score > tolerance:
            break
        last = share
    return last


def knee(shares: Sequence[float], scores: Sequence[float]) -> float:
    """The share at which the curve lies farthest above the line from its first to its last point.

    Satopää et al. (2011), "Finding a 'Kneedle' in a Haystack", for a falling concave curve, both axes scaled to 0..1.
    """
    width, height = shares[-1] - shares[0], scores[0] - scores[-1]
    if width <= 0 or height <= 0:
        return shares[-1]
    above = [
        (score - scores[-1]) / height - (1 - (share - shares[0]) / width)
        for share, score in zip(shares, scores, strict=True)
    ]
    return shares[above.index(max(above))]
