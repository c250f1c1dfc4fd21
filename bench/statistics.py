"""What can be said of samples: percentiles, intervals, whether two contenders differ.

Samples of one turn (round) of a process are alike, because the clock, the caches and the memory's placement are
the same; so the unit that is resampled and tested is the round and not the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Ratio:
    """How much `value` = new / old is, its 95% interval, and the chance of such rounds if nothing differed."""

    value: float
    low: float
    high: float
    p: float


def summary(samples_ms: Sequence[float]) -> dict[str, float]:
    """The `latency_ms` of a result: median, p10, p90, p99, mean, std, min, max, in the samples' unit."""
    values = np.asarray(samples_ms, dtype=np.float64)
    p10, median, p90, p99 = (float(p) for p in np.percentile(values, [10, 50, 90, 99]))
    return {
        "median": median,
        "p10": p10,
        "p90": p90,
        "p99": p99,
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "min": float(values.min()),
        "max": float(values.max()),
    }


def bootstrap_medians(samples: Sequence[float], rounds: Sequence[int], seed: int = 0) -> np.ndarray:
    """Medians of `RESAMPLES` resamples: rounds are drawn with replacement, then samples within each round.

    Args:
        samples: times, any unit.
        rounds: the round each sample was taken in, as long as `samples`.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Float array of length `RESAMPLES`.
    """
    rng = np.random.default_rng(seed)
    values, which = np.asarray(samples, dtype=np.float64), np.asarray(rounds)
    groups = [values[which == r] for r in np.unique(which)]
    # Rectangular, short rounds filled with NaN: one vectorised draw instead of a thousand small ones.
    sizes = np.array([len(group) for group in groups])
    table = np.full((len(groups), sizes.max()), np.nan)
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    drawn = rng.integers(0, len(groups), size=(RESAMPLES, len(groups)))
    inside = (rng.random((RESAMPLES, len(groups), table.shape[1])) * sizes[drawn][..., None]).astype(np.int64)
    picked = table[drawn[..., None], inside]
    picked[np.arange(table.shape[1]) >= sizes[drawn][..., None]] = np.nan
    return np.asarray(np.nanmedian(picked.reshape(RESAMPLES, -1), axis=1))


def median_ci95(samples: Sequence[float], rounds: Sequence[int]) -> tuple[float, float]:
    """The median's 95% interval; with a single round, that of its samples alone."""
    if len(set(rounds)) == 1:
        rounds = range(len(samples))
    low, high = np.percentile(bootstrap_medians(samples, rounds), [2.5, 97.5])
    return float(low), float(high)


def round_medians(samples: Sequence[float], rounds: Sequence[int]) -> list[float]:
    """One median a round, in the order of the rounds' numbers."""
    values, which = np.asarray(samples, dtype=np.float64), np.asarray(rounds)
    return [float(np.median(values[which == r])) for r in np.unique(which)]


def ratio(new: Sequence[float], new_rounds: Sequence[int], old: Sequence[float], old_rounds: Sequence[int]) -> Ratio:
    """new / old of the medians, with a bootstrap interval, and a Mann-Whitney test between the round medians."""
    value = float(np.median(new) / np.median(old))
    quotients = bootstrap_medians(new, new_rounds, seed=1) / bootstrap_medians(old, old_rounds, seed=2)
    low, high = (float(q) for q in np.percentile(quotients, [2.5, 97.5]))
    return Ratio(value, low, high, mann_whitney(round_medians(new, new_rounds), round_medians(old, old_rounds)))


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the Mann-Whitney U test; 1.0 where all values are equal. Exact for small samples without ties."""
    # scipy comes with scikit-learn, which the built-in data set needs anyway; it takes half a second to import.
    from scipy.stats import mannwhitneyu

    if len(set(a) | set(b)) < 2:
        return 1.0
    return float(mannwhitneyu(a, b, alternative="two-sided").pvalue)


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive values; NaN of none."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan
