"""What can be said of samples: percentiles, intervals, whether two contenders differ.

Samples of one turn (round) of a process are alike, because the clock, the caches and the memory's placement are
the same; so the unit that is resampled and tested is the round and not the sample. Rounds that follow each other are
alike too, where the machine's speed drifts (lag-1 correlations of 0.3 to 0.6 are usual on a shared one): that is
estimated, and intervals and tests are those of as many fewer rounds. What they cannot see is what all rounds of one
process have in common: see `compare.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 1000
# Up to this many pairs of rounds a test counts every arrangement, in milliseconds; above, the normal curve is as good.
_EXACT_PAIRS = 400
# Rounds more alike than this are hardly more than one; an estimate beyond it is noise, and would divide by nothing.
_MOST_ALIKE = 0.9


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
    # NaN is sorted to the end; numpy's own nanmedian takes several times as long.
    ordered = np.sort(picked.reshape(RESAMPLES, -1), axis=1)
    count, row = sizes[drawn].sum(axis=1), np.arange(RESAMPLES)
    return np.asarray((ordered[row, (count - 1) // 2] + ordered[row, count // 2]) / 2)


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
    """new / old of the medians, with a bootstrap interval, and a Mann-Whitney test between the round medians.

    Both as wide as they are for rounds that are as alike as these (see `likeness`).
    """
    value = float(np.median(new) / np.median(old))
    quotients = np.log(bootstrap_medians(new, new_rounds, seed=1) / bootstrap_medians(old, old_rounds, seed=2))
    medians = round_medians(new, new_rounds), round_medians(old, old_rounds)
    alike = likeness(*medians)
    # The standard error of a mean of n values with this lag-1 correlation, beside that of n independent ones.
    stretch = math.sqrt((1 + alike) / (1 - alike))
    low, middle, high = (float(q) for q in np.percentile(quotients, [2.5, 50, 97.5]))
    low, high = (math.exp(middle + stretch * (end - middle)) for end in (low, high))
    return Ratio(value, low, high, _weakened(mann_whitney(*medians), stretch))


def likeness(*series: Sequence[float]) -> float:
    """How much a round is like the one before it: the lag-1 correlation of ranks, 0 (not at all) to 0.9.

    Ranks, so that a single slow round does not decide it. One figure for all series, of the machine they share, and
    corrected for a short series' correlation coming out too low (by about (1 + 3r) / n).
    """
    from scipy.stats import rankdata

    found, lengths = [], []
    for values in series:
        centred = rankdata(values) - (len(values) + 1) / 2
        power = float(centred @ centred)
        if len(values) > 4 and power > 0:
            found.append(float(centred[1:] @ centred[:-1]) / power)
            lengths.append(len(values))
    if not found:
        return 0.0
    length = sum(lengths) / len(lengths)
    measured = sum(r * n for r, n in zip(found, lengths, strict=True)) / sum(lengths)
    return min(max((measured * length + 1) / (length - 3), 0.0), _MOST_ALIKE)


def _weakened(p: float, stretch: float) -> float:
    """The two-sided p of a deviation that is `stretch` times less remarkable than p says."""
    if stretch == 1.0 or p >= 1.0:
        return p
    normal = NormalDist()
    return 2 * normal.cdf(normal.inv_cdf(max(p, 1e-300) / 2) / stretch)


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the Mann-Whitney U test; 1.0 where all values are equal. Exact for small samples, tied or not."""
    # scipy comes with scikit-learn, which the built-in data set needs anyway; it takes half a second to import.
    from scipy.stats import mannwhitneyu, rankdata

    if len(set(a) | set(b)) < 2:
        return 1.0
    if len(a) * len(b) > _EXACT_PAIRS:
        return float(mannwhitneyu(a, b, alternative="two-sided").pvalue)
    # Tied values share their mean rank, so ranks are halves, and twice a rank is a whole number.
    ranks = np.rint(2 * rankdata([*a, *b])).astype(int)
    # ways[k, s]: how many choices of k of the values have ranks that sum up to s.
    ways = np.zeros((len(a) + 1, int(ranks.sum()) + 1))
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    found = ways[len(a)]
    expected = len(a) * (len(a) + len(b) + 1)
    off = np.abs(np.arange(len(found)) - expected)
    return float(found[off >= off[ranks[: len(a)].sum()]].sum() / found.sum())


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive values; NaN of none."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan
