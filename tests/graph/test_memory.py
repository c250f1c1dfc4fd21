"""The memory plan: values that live together never overlap, and the others share."""

from __future__ import annotations

import random

import pytest

from tvmopt.graph.memory import ALIGNMENT, Life, MemoryPlan, plan_memory


def overlaps(lives: list[Life], plan: MemoryPlan) -> list[tuple[int, int]]:
    """Pairs of values that live in the same step and lie, in part, at the same place. Step by step, byte by byte."""
    found = set()
    for step in range(max(life.last for life in lives) + 1):
        owner: dict[int, int] = {}
        for index, life in enumerate(lives):
            if life.first <= step <= life.last:
                for byte in range(plan.offsets[index], plan.offsets[index] + life.size):
                    if owner.setdefault(byte, index) != index:
                        found.add((owner[byte], index))
    return sorted(found)


def most_alive(lives: list[Life]) -> int:
    """The bytes that live at once in the fullest step, each value rounded up: no plan can be smaller."""
    rounded = [(-(-life.size // ALIGNMENT) * ALIGNMENT, life) for life in lives]
    steps = range(max(life.last for life in lives) + 1)
    return max(sum(size for size, life in rounded if life.first <= step <= life.last) for step in steps)


def random_lives(seed: int) -> list[Life]:
    draw = random.Random(seed)
    steps = draw.randint(1, 12)
    lives = []
    for _ in range(draw.randint(1, 14)):
        first = draw.randrange(steps)
        last = draw.randrange(first, steps)
        lives.append(Life(draw.choice((0, 1, 40, 64, 65, draw.randint(1, 900))), first, last))
    return lives


@pytest.mark.parametrize("seed", range(150))
def test_random_lives(seed: int) -> None:
    lives = random_lives(seed)
    plan = plan_memory(lives)
    assert overlaps(lives, plan) == []
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets)
    assert all(offset + life.size <= plan.size for offset, life in zip(plan.offsets, lives, strict=True))
    assert most_alive(lives) <= plan.size <= sum(-(-life.size // ALIGNMENT) * ALIGNMENT for life in lives)


def test_a_chain_takes_two_places() -> None:
    # Each step reads the value of the step before.
    plan = plan_memory([Life(640, step, step + 1) for step in range(10)])
    assert plan.size == 2 * 640 and set(plan.offsets) == {0, 640}


def test_the_smallest_gap_that_fits_is_taken() -> None:
    # In step 1, gaps of 256 and of 128 bytes lie between what lives longer; step 0 held something in each.
    lives = [
        Life(1024, 0, 1), Life(320, 0, 0), Life(960, 0, 1), Life(128, 0, 0), Life(896, 0, 1), Life(100, 1, 1),
    ]  # fmt: skip
    plan = plan_memory(lives)
    assert overlaps(lives, plan) == [] and plan.size == most_alive(lives)


def test_nothing_to_place() -> None:
    assert plan_memory([]) == MemoryPlan((), 0)


def test_an_overlap_is_seen() -> None:
    lives = [Life(100, 0, 1), Life(100, 1, 2), Life(100, 2, 2)]
    assert overlaps(lives, MemoryPlan((0, 64, 0), 164)) == [(0, 1), (1, 2)]
