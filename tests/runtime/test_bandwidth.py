"""The roof for bytes: of caches and memory, of reading and writing, and what is taken for the best."""

from __future__ import annotations

import pytest

from tvmopt.machine import detect
from tvmopt.runtime import bandwidth
from tvmopt.runtime.bandwidth import ADD_WRITES, Bandwidth, rounded


@pytest.fixture(scope="module")
def measured() -> Bandwidth:
    return Bandwidth(detect())


def test_sets_are_a_quarter_of_a_doubling_apart() -> None:
    assert rounded(1) == 1 << 14
    assert rounded(1 << 40) == 1 << 28
    assert rounded(1 << 20) == 1 << 20
    for size in range(1 << 20, 1 << 22, 99_991):
        assert 2 ** (-1 / 8) < rounded(size) / size < 2 ** (1 / 8) + 1e-6


def test_a_cache_is_faster_than_memory(measured: Bandwidth) -> None:
    """By more than twice between L1 and memory on any machine; nothing is slower than a byte a cycle of a slow core."""
    assert measured(1 << 15) > 2 * measured(1 << 28) > 2e9


def test_a_mixture_lies_between_reading_and_adding(measured: Bandwidth, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(1 << 16)
    monkeypatch.setattr(measured, "_measure", lambda size: None)
    reading, adding = measured(1 << 16), measured(1 << 16, ADD_WRITES)
    assert 1 / measured(1 << 16, ADD_WRITES / 2) == pytest.approx((1 / reading + 1 / adding) / 2)
    assert measured(1 << 16, 1.0) == adding


def test_what_a_larger_set_reaches_a_smaller_one_reaches_and_the_best_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Bandwidth(detect())
    seconds = {1 << 20: [4e-3, 4e-3, 8e-3, 8e-3], 1 << 21: [1e-3, 1e-3, 8e-3, 8e-3]}
    asked: list[int] = []

    def fastest(_run: object, shapes: list[tuple[int, ...]], _repeats: int) -> float:
        size = 4
        for extent in shapes[0]:
            size *= extent
        size *= 2 if len(shapes[0]) == 3 else 1
        asked.append(size)
        return seconds[size][0]

    monkeypatch.setattr(found, "_fastest", fastest)
    first = found(1 << 20)
    # 16 MiB in a call of either set.
    assert first == (1 << 24) / 1e-3
    for times in seconds.values():
        times[0] = 8e-3
    assert found(1 << 20) == first, "a disturbed measurement takes nothing back"
    assert asked.count(1 << 20) == asked.count(1 << 21) == 4 * bandwidth._ARRAYS
