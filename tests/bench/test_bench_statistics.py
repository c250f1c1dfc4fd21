"""Intervals that cover, tests that find, means that are means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench import statistics


def run(rng: np.random.Generator, median: float, rounds: int = 12) -> tuple[list[float], list[int]]:
    """Samples as turns give them: every round has an offset of its own."""
    samples, which = [], []
    for number in range(rounds):
        offset = rng.normal(0, 0.004)
        samples += [median * (1 + offset + rng.normal(0, 0.001)) for _ in range(3)]
        which += [number] * 3
    return samples, which


def test_summary_has_every_field() -> None:
    found = statistics.summary([3.0, 1.0, 2.0])
    assert (found["median"], found["min"], found["max"], found["mean"]) == (2.0, 1.0, 3.0, 2.0)
    assert set(found) == {"median", "p10", "p90", "p99", "mean", "std", "min", "max"}
    assert statistics.summary([5.0])["std"] == 0.0


def test_the_interval_covers_the_median_although_rounds_are_correlated() -> None:
    rng = np.random.default_rng(0)
    hits = sum(low <= 1.0 <= high for low, high in (statistics.median_ci95(*run(rng, 1.0)) for _ in range(60)))
    assert hits >= 50


def test_one_round_and_rounds_of_different_lengths() -> None:
    low, high = statistics.median_ci95([1.0, 2.0, 3.0, 4.0], [0, 0, 0, 0])
    assert 1.0 <= low < high <= 4.0
    low, high = statistics.median_ci95([1.0, 1.1, 1.2, 1.3], [0, 0, 0, 1])
    assert 1.0 <= low <= high <= 1.3


def test_ratio_sees_three_per_cent_and_not_nothing() -> None:
    rng = np.random.default_rng(1)
    same = [statistics.ratio(*run(rng, 1.0), *run(rng, 1.0)) for _ in range(20)]
    slower = [statistics.ratio(*run(rng, 1.03), *run(rng, 1.0)) for _ in range(20)]
    assert sum(r.p < 0.05 for r in same) <= 3
    assert sum(r.p < 0.05 and r.low > 1 for r in slower) >= 18


def test_mann_whitney_and_geometric_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    assert statistics.mann_whitney([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert statistics.mann_whitney([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx(2 / math.comb(8, 4))
    tied = [1, 2, 3, 4], [4, 5, 6, 7]
    counted = statistics.mann_whitney(*tied), statistics.mann_whitney(range(20), range(5, 25))
    assert counted[0] == pytest.approx(4 / math.comb(8, 4))
    monkeypatch.setattr(statistics, "_EXACT_PAIRS", 0)
    # The normal curve calls the few tied ones different, which 4 in 70 arrangements are; for many it is as good.
    assert statistics.mann_whitney(*tied) < 0.05 < counted[0]
    assert statistics.mann_whitney(range(20), range(5, 25)) == pytest.approx(counted[1], rel=0.1)
    assert statistics.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert math.isnan(statistics.geometric_mean([]))
