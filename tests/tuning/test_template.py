"""A rule's space, and the walk through it."""

from __future__ import annotations

import random
from typing import Any

from tests.tuning.conftest import make_kernel
from tvmopt.registry import Rule
from tvmopt.tuning.template import Space, Walk


def branching(sch: Any, kernel: Any, machine: Any, choose: Any) -> Any:
    """3 + 1 points: what is asked second depends on the first answer. Only annotates, so every point differs."""
    loop = sch.get_loops(sch.get_sblock("relu"))[0]
    if choose("split", [True, False], True):
        sch.split(loop, [None, choose("factor", [2, 4, 8], 4)])
    return sch


def test_a_space_starts_with_the_rules_defaults(machine: Any, rules: list[Any]) -> None:
    space = Space(make_kernel(), machine, rules)
    assert space.size == 12
    assert space.manual is not None and space.manual.values == {"rows": 4, "columns": 32}


def test_a_kernel_no_rule_takes_has_no_space(machine: Any) -> None:
    space = Space(make_kernel(), machine, [Rule("none", 1, lambda *_: None)])
    assert space.manual is None and space.size == 0
    assert Walk(space).propose(4) == []


def test_small_spaces_are_tried_whole_nearest_first(machine: Any, rules: list[Any]) -> None:
    walk = Walk(Space(make_kernel(), machine, rules))
    points = [point.values for point in walk.propose(100)]
    assert len(points) == 12 and walk.exhausted
    assert len({tuple(point.items()) for point in points}) == 12
    changed = [sum(point[name] != points[0][name] for name in point) for point in points]
    assert changed == sorted(changed)


def test_branches_are_each_taken_once(machine: Any) -> None:
    walk = Walk(Space(make_kernel(), machine, [Rule("branching", 1, branching)]))
    points = [point.values for point in walk.propose(100)]
    assert points[0] == {"split": True, "factor": 4}
    assert len(points) == 4 and {"split": False} in points


def test_equal_seeds_give_equal_orders(machine: Any, rules: list[Any]) -> None:
    def order(seed: int) -> list[dict[str, Any]]:
        walk = Walk(Space(make_kernel(), machine, rules), seed=seed, small=0)
        seen = []
        while not walk.exhausted:
            for point in walk.propose(3):
                seen.append(point.values)
                walk.tell(point, point.values["rows"] / point.values["columns"])
        return seen

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert len(order(1)) == 12


def test_the_best_point_is_looked_around(machine: Any, rules: list[Any]) -> None:
    space = Space(make_kernel(), machine, rules)
    best = space.at({"rows": 8, "columns": 16})
    assert best is not None
    near = [point.values for point in space.neighbours(best, random.Random(0)) if point]
    assert all(sum(point[name] != best.values[name] for name in point) == 1 for point in near)
    assert {"rows": 4, "columns": 16} in near[:2]


def test_what_is_known_is_not_proposed_again(machine: Any, rules: list[Any]) -> None:
    space = Space(make_kernel(), machine, rules)
    first = Walk(space).propose(5)
    known: dict[str, tuple[dict[str, Any], float | None]] = {p.candidate: (p.values, 1.0) for p in first}
    rest = Walk(space, known=known).propose(100)
    assert len(rest) == 7
    assert not {p.candidate for p in first} & {p.candidate for p in rest}


def test_equal_programs_are_proposed_once(machine: Any) -> None:
    def idle(sch: Any, kernel: Any, machine: Any, choose: Any) -> Any:
        choose("unused", [1, 2, 3], 1)
        return sch

    assert len(Walk(Space(make_kernel(), machine, [Rule("idle", 1, idle)])).propose(10)) == 1
