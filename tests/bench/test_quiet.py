"""Which turns count as quiet: the strict measure where enough turns meet it, the loose one where they do not."""

from __future__ import annotations

import pytest

from bench.quiet import LOOSE, STRICT, Surroundings, quiet_turns
from bench.results import FEWEST_QUIET

BEST = 100.0
IDLE, EMPTIED, SHARED = (100.0, 99.5, 99.0), (99.8, 99.5, 80.0), (99.9, 60.0, 50.0)
SLOWER = (97.0, 97.5, 97.0)


@pytest.mark.parametrize(
    ("look", "strict", "loose"),
    [(IDLE, True, True), (EMPTIED, False, True), (SHARED, False, False), (SLOWER, False, True)],
)
def test_the_third_loop_and_a_narrow_margin_are_strict(look: tuple[float, ...], strict: bool, loose: bool) -> None:
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
