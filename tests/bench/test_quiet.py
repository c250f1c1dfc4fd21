"""Which turns count as quiet: the strict measure where enough turns meet it, the loose one where they do not."""

from __future__ import annotations

import pytest

from bench.quiet import LOOSE, STRICT, References, Surroundings, best_of, quiet_turns, slowest
from bench.results import FEWEST_QUIET

BEST = (100.0, 100.0, 100.0, 1300.0)
IDLE, EMPTIED, SHARED = (100.0, 99.5, 99.0, 1250.0), (99.8, 99.5, 80.0, 1250.0), (99.9, 60.0, 50.0, 1250.0)
SLOWER, APART = (97.0, 97.5, 97.0, 1250.0), (100.0, 99.5, 99.0, 560.0)


@pytest.mark.parametrize(
    ("look", "strict", "loose"),
    [
        (IDLE, True, True), (EMPTIED, False, True), (SHARED, False, False), (SLOWER, False, True),
        (APART, False, True),
    ],
)  # fmt: skip
def test_a_narrow_margin_and_the_last_two_loops_are_strict(look: References, strict: bool, loose: bool) -> None:
    for before, after in ((look, IDLE), (IDLE, look)):
        seen = Surroundings(before, after, waited=0.0)
        assert (seen.quiet(BEST, STRICT), seen.quiet(BEST, LOOSE)) == (strict, loose)
    assert not Surroundings(IDLE, IDLE, waited=0.5).quiet(BEST, LOOSE)


@pytest.mark.parametrize("idle", [FEWEST_QUIET - 1, FEWEST_QUIET])
def test_the_loose_measure_decides_where_too_few_turns_are_strictly_quiet(idle: int) -> None:
    looks = [IDLE] * idle + [EMPTIED] * 20 + [SHARED] * 20
    turns = {number: Surroundings(look, look, 0.0) for number, look in enumerate(looks)}
    found = quiet_turns(turns, lambda number, level: turns[number].quiet(BEST, level))
    assert found == set(range(idle if idle >= FEWEST_QUIET else idle + 20))


def test_the_best_of_arithmetic_is_one_roof() -> None:
    assert best_of([(90.0, 100.0, 80.0, 700.0), (95.0, 85.0, 99.0, 1300.0)]) == (100.0, 100.0, 100.0, 1300.0)
    assert slowest([IDLE, EMPTIED]) == 99.5
