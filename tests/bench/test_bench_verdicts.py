"""How often the verdict is wrong, and how often it finds what is there, on simulated builds with fixed seeds.

A simulated process has rounds of three samples with a factor of their own (1%), one round in ten slow by 30% or so,
and samples off by 0.5%. Called different, of 1000 comparisons:

| compared | rounds | by the test alone | by the interval alone | by the verdict |
| --- | --- | --- | --- | --- |
| a build with itself | 4 | 3.0% | 6.7% | 2.8% |
| a build with itself | 10 | 3.5% | 2.7% | 1.3% |
| a build with itself | 30 | 3.3% | 2.8% | 0.3% |
| with one 3% slower | 4 | 54% | 65% | 54% |
| with one 3% slower | 10 | 85% | 80% | 78% |
| with one 3% slower | 30 | 100% | 100% | 100% |

So with few rounds the interval alone is too narrow, and both conditions are needed. Where each round is half like the
one before (a machine that drifts), a rule for independent rounds calls 11% of the builds different from themselves at
10 rounds and 4% at 30, its interval alone 15% at both; with the stretch that `statistics.likeness` asks for the
verdict is wrong 6% and 2% of the time. It costs 5 of 100 true differences of 3% at 10 rounds, and none at 30.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench import compare, statistics

Process = tuple[list[float], list[int]]


def process(rng: np.random.Generator, rounds: int, factor: float = 1.0, alike: float = 0, own: float = 0) -> Process:
    """The samples of one process of a build that takes `factor`.

    alike: how much a round's factor is that of the round before. own: standard deviation of what the process has to
    itself, common to all of its rounds.
    """
    noise = rng.normal(size=rounds)
    for number in range(1, rounds):
        noise[number] = alike * noise[number - 1] + math.sqrt(1 - alike**2) * noise[number]
    of_round = np.exp(0.01 * noise + own * rng.normal())
    of_round *= 1 + (rng.random(rounds) < 0.1) * rng.exponential(0.3, rounds)
    samples = factor * of_round[:, None] * np.exp(np.abs(rng.normal(0, 0.005, (rounds, 3))))
    return samples.ravel().tolist(), np.repeat(np.arange(rounds), 3).tolist()


def called_different(times: int, rounds: int, factor: float = 1.0, **kind: float) -> float:
    """The share of comparisons that are called faster or slower."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(times):
        new, old = process(rng, rounds, factor, **kind), process(rng, rounds, **kind)
        # The verdict needs the test, and nothing makes its p smaller than this: the rest need no bootstrap.
        if statistics.mann_whitney(*(np.median(np.reshape(run[0], (-1, 3)), axis=1) for run in (new, old))) < 0.05:
            verdict = compare.verdict(statistics.ratio(*new, *old), old[1], new[1])
            found += verdict in ("faster", "slower")
    return found / times


@pytest.mark.parametrize(("times", "rounds"), [(300, 4), (1000, 10), (100, 30)])
def test_a_build_and_itself_are_the_same(times: int, rounds: int) -> None:
    assert called_different(times, rounds) <= 0.05


@pytest.mark.parametrize(("rounds", "at_least"), [(4, 0.45), (10, 0.7), (30, 0.98)])
def test_three_per_cent_are_found(rounds: int, at_least: float) -> None:
    assert called_different(60, rounds, 1.03) >= at_least


def test_a_drifting_machine_makes_few_differences() -> None:
    # 11% where rounds are taken as independent draws.
    assert called_different(200, 10, alike=0.5) <= 0.1


def test_what_a_process_has_to_itself_is_not_seen_in_its_rounds() -> None:
    # A limit of one process a contender, which compare.py states: no rule on the rounds can tell it from the build's.
    assert called_different(100, 30, own=0.01) > 0.2
    # What SAME_WITHIN is for.
    assert called_different(100, 30, own=0.003) < 0.15


def test_likeness_is_estimated_and_a_short_series_has_none() -> None:
    rng = np.random.default_rng(0)

    def mean(alike: float) -> float:
        runs = [statistics.round_medians(*process(rng, 30, alike=alike)) for _ in range(100)]
        return float(np.mean([statistics.likeness(a, b) for a, b in zip(runs[::2], runs[1::2], strict=True)]))

    # Less than what was put in: slow rounds, and what is a sample's own, have no part in it.
    assert mean(0.0) < 0.1 and 0.2 < mean(0.5) < 0.5
    assert statistics.likeness([1.0, 2.0, 3.0, 4.0]) == 0.0
    assert statistics.likeness([1.0] * 9, [1.0] * 9) == 0.0
    assert statistics.likeness([float(i) for i in range(50)]) <= 0.9
