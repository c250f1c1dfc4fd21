"""The space of a hand-written rule, and a walk through it.

A rule decides its numbers by `choose(name, candidates, default)`. Called with other answers it gives other schedules:
that is the search space, and it may branch (an answer may decide what is asked next). Small spaces are tried whole,
nearest to the defaults first. Large ones are walked: some seeded random points, then the neighbours of the best so
far (one choice moved one step, then further), with a random restart now and then.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmopt.tuning.log import key_module

if TYPE_CHECKING:
    from tvm.s_tir import Schedule

    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine
    from tvmopt.registry import Rule

# Spaces of up to this many points are tried whole.
SMALL_SPACE = 48
# Of what is proposed in a large space: random points first, and later one in so many.
_FIRST_RANDOM = 8
_RESTART_EVERY = 4
# So many random points in a row that were all known mean that hardly any other is left.
_RANDOM_ATTEMPTS = 40


@dataclass(frozen=True)
class Choice:
    """One answer a rule asked for."""

    name: str
    candidates: tuple[Any, ...]
    value: Any


@dataclass(frozen=True)
class Point:
    """A rule's schedule under one set of answers. `choices` are all that were asked for, in order."""

    rule: str
    version: int
    choices: tuple[Choice, ...]
    schedule: Schedule

    @property
    def values(self) -> dict[str, Any]:
        """Name -> value of every choice."""
        return {choice.name: choice.value for choice in self.choices}

    @property
    def candidate(self) -> str:
        """16 hex digits naming the point, the same in every run."""
        return candidate_name(self.rule, self.version, self.values)


def candidate_name(rule: str, version: int, values: dict[str, Any]) -> str:
    """16 hex digits naming the point of `rule` with these values."""
    text = json.dumps([rule, version, sorted(values.items())], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Pick = Callable[[str, Sequence[Any], Any], Any]


class Space:
    """All schedules of the first of `rules` that takes `kernel`. `manual` is None where none does."""

    def __init__(self, kernel: Kernel, machine: AnyMachine, rules: Sequence[Rule]) -> None:
        self._kernel = kernel
        self._machine = machine
        self._rule: Rule | None = None
        self.manual: Point | None = None
        for rule in rules:
            point = self._apply(rule, lambda name, candidates, default: default)
            if point is not None:
                self._rule, self.manual = rule, point
                break

    @property
    def size(self) -> int:
        """How many points there are, estimated from the choices asked for by default (exact if none branch)."""
        return math.prod(len(choice.candidates) for choice in self.manual.choices) if self.manual else 0

    def at(self, values: dict[str, Any]) -> Point | None:
        """The point with these answers; what they do not name, or name impossibly, takes its default."""
        return self._draw(
            lambda name, candidates, default: values[name] if values.get(name) in candidates else default
        )  # fmt: skip

    def sample(self, generator: random.Random) -> Point | None:
        """A point with every answer drawn from its candidates."""
        return self._draw(lambda name, candidates, default: generator.choice(list(candidates)))

    def everything(self) -> Iterator[Point | None]:
        """Every point once, the defaults first, then by how many answers differ; None for what the rule declines."""
        waiting: deque[dict[str, Any]] = deque([{}])
        while waiting:
            fixed = waiting.popleft()
            asked: list[tuple[str, Sequence[Any], Any]] = []
            yield self._draw(_recorded(fixed, asked))
            taken = dict(fixed)
            for name, candidates, value in asked:
                if name not in fixed:
                    # Answers before this one stay as they were here; those after it are open again.
                    waiting += [{**taken, name: other} for other in candidates if other != value]
                taken[name] = value

    def neighbours(self, point: Point, generator: random.Random) -> Iterator[Point | None]:
        """Points that differ in one answer, those one step away in its candidates first, each group shuffled."""
        steps: list[tuple[int, str, Any]] = []
        for choice in point.choices:
            here = choice.candidates.index(choice.value)
            steps += [(abs(i - here), choice.name, c) for i, c in enumerate(choice.candidates) if i != here]
        generator.shuffle(steps)
        for _, name, value in sorted(steps, key=lambda step: step[0]):
            yield self.at({**point.values, name: value})

    def _draw(self, pick: Pick) -> Point | None:
        if self._rule is None:
            return None
        from tvm.s_tir.schedule import ScheduleError

        try:
            return self._apply(self._rule, pick)
        except ScheduleError:
            # This combination of answers cannot be scheduled. (With the defaults that is a bug of the rule, and
            # raises from __init__.)
            return None

    def _apply(self, rule: Rule, pick: Pick) -> Point | None:
        from tvm.s_tir import Schedule

        choices: list[Choice] = []

        def choose(name: str, candidates: Sequence[Any], default: Any) -> Any:
            # A default computed from the machine need not be one of the candidates: it is one all the same.
            options = _ordered(candidates if default in candidates else [*candidates, default])
            value = pick(name, options, default)
            choices.append(Choice(name, options, value))
            return value

        scheduled = rule.function(Schedule(key_module(self._kernel.func)), self._kernel, self._machine, choose)
        if scheduled is None:
            return None
        return Point(rule.name, rule.version, tuple(choices), scheduled)


def _ordered(candidates: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers by size, so that neighbours in the list are neighbours in value; others as the rule gave them."""
    if all(isinstance(item, (int, float)) for item in candidates):
        return tuple(sorted(set(candidates)))
    return tuple(dict.fromkeys(candidates))


def _recorded(fixed: dict[str, Any], asked: list[tuple[str, Sequence[Any], Any]]) -> Pick:
    def pick(name: str, candidates: Sequence[Any], default: Any) -> Any:
        value = fixed.get(name, default)
        asked.append((name, candidates, value))
        return value

    return pick


class Walk:
    """Proposes points of a space, each once, guided by how the earlier ones did.

    `known` are candidates of earlier runs: they are not proposed again, but their ratios steer. With the same seed,
    the same space and the same ratios the same points come in the same order.
    """

    def __init__(
        self, space: Space, *, seed: int = 0, known: dict[str, tuple[dict[str, Any], float | None]] | None = None,
        small: int = SMALL_SPACE,
    ) -> None:  # fmt: skip
        self._space = space
        self._random = random.Random(seed)
        self._seen = set(known or {})
        # Different answers can lead to the same program: it is measured once.
        self._programs: set[int] = set()
        self._ratios: list[tuple[float, Point]] = []
        self._whole = space.everything()
        self._small = space.size <= small
        self._proposed = 0
        self._around: tuple[str, Iterator[Point | None]] | None = None
        self.exhausted = space.manual is None
        for values, ratio in (known or {}).values():
            point = space.at(values) if ratio is not None else None
            if point is not None and ratio is not None:
                self._ratios.append((ratio, point))

    def propose(self, count: int) -> list[Point]:
        """Up to `count` new points; fewer only where none are left."""
        points: list[Point] = []
        while len(points) < count and not self.exhausted:
            point = self._next()
            if point is None:
                self.exhausted = True
            else:
                points.append(point)
                self._proposed += 1
        return points

    def tell(self, point: Point, ratio: float) -> None:
        """How a proposed point did, relative to manual's schedule; failed ones are not told."""
        self._ratios.append((ratio, point))

    def _next(self) -> Point | None:
        if self._proposed == 0 and self._space.manual is not None and self._is_new(self._space.manual):
            return self._space.manual
        if not self._small:
            if self._proposed > _FIRST_RANDOM and self._proposed % _RESTART_EVERY:
                near = self._near_best()
                if near is not None:
                    return near
            for _ in range(_RANDOM_ATTEMPTS):
                point = self._space.sample(self._random)
                if point is not None and self._is_new(point):
                    return point
        for point in self._whole:
            if point is not None and self._is_new(point):
                return point
        return None

    def _near_best(self) -> Point | None:
        for _, best in sorted(self._ratios, key=lambda item: item[0])[:3]:
            if self._around is None or self._around[0] != best.candidate:
                self._around = (best.candidate, self._space.neighbours(best, self._random))
            for point in self._around[1]:
                if point is not None and self._is_new(point):
                    return point
        return None

    def _is_new(self, point: Point) -> bool:
        from tvmopt.tuning.log import structural_hash

        if point.candidate in self._seen:
            return False
        self._seen.add(point.candidate)
        program = structural_hash(point.schedule.mod)
        if program in self._programs:
            return False
        self._programs.add(program)
        return True
