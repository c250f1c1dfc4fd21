"""The timer's rules, on stopwatches that do not depend on the machine."""

from __future__ import annotations

import random
import statistics
import time

import pytest

from tvmopt.runtime import timer


def constant(seconds: float, log: list[int] | None = None) -> timer.Stopwatch:
    """A stopwatch on which every call takes `seconds`."""

    def watch(calls: int) -> float:
        if log is not None:
            log.append(calls)
        return calls * seconds

    return watch


@pytest.mark.parametrize("seconds", [2e-7, 1e-5, 3e-3, 0.2])
def test_a_sample_lasts_at_least_ten_milliseconds(seconds: float) -> None:
    found = timer.measure(constant(seconds))
    assert found.calls * seconds >= timer.SAMPLE_S
    assert found.calls * seconds < max(2 * timer.SAMPLE_S, 1.5 * seconds)
    assert len(found.samples) == timer.MIN_SAMPLES
    assert found.median == pytest.approx(seconds)
    assert not found.unstable


def test_a_wrong_first_guess_is_corrected() -> None:
    assert timer.calibrate(constant(1e-6), 1e-3) * 1e-6 >= timer.SAMPLE_S


def test_noise_is_called_unstable_and_a_slow_call_gets_three_samples() -> None:
    noise = random.Random(0)

    def noisy(calls: int) -> float:
        time.sleep(0.001)
        return calls * 0.02 * noise.uniform(1, 3)

    assert timer.measure(noisy, time_limit_s=0.2).unstable

    def slow(calls: int) -> float:
        time.sleep(0.05 * calls)
        return 0.05 * calls

    found = timer.measure(slow, time_limit_s=0.01)
    assert len(found.samples) == timer.FEWEST_SAMPLES
    assert found.unstable


def test_warm_up_goes_on_until_the_time_no_longer_falls() -> None:
    calls_made = 0

    def falling(calls: int) -> float:
        nonlocal calls_made
        calls_made += calls
        return calls * (0.02 if calls_made > 40 else 0.02 * (2 - calls_made / 40))

    assert timer.warm_up(falling, limit_s=60) == pytest.approx(0.02, rel=0.05)


def test_a_round_keeps_to_its_budget_but_gives_one_sample() -> None:
    def slow(calls: int) -> float:
        time.sleep(0.02)
        return 0.02

    assert len(timer.take_round(slow, 1, 5, budget_s=0.0)) == 1
    assert len(timer.take_round(slow, 1, 3)) == 3


def test_stopwatch_times_real_calls() -> None:
    assert timer.stopwatch(lambda: time.sleep(0.002))(5) >= 0.010


def test_median_interval_covers_the_median() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(400):
        low, high = timer.median_interval([draw.gauss(0, 1) for _ in range(30)])
        hits += low <= 0 <= high
    assert hits / 400 >= 0.93
    assert timer.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    even = [float(n) for n in range(31)]
    assert timer.median_interval(even)[0] < statistics.median(even) < timer.median_interval(even)[1]
