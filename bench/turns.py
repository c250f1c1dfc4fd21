"""Contenders take turns: random order in every round, one running, all others asleep.

Side by side in one process, or with a pool still spinning next door, contenders slow each other down to half
their speed. And what disturbs a machine for a second disturbs one round of everybody, not everything of one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tvmopt.runtime import timer

from . import statistics
from .process import WorkerError

# Building may take a while (an unscheduled vision transformer), but not for ever.
PREPARE_TIMEOUT_S = 1800.0
_ANSWER_MARGIN_S = 600.0


class Asked(Protocol):
    """What turns needs of a worker."""

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]: ...

    def settle(self) -> bool: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    """When a contender has been measured enough.

    `samples` at least, `per_round` of them a turn, and half the median's 95% interval within `precision` of the
    median; or `time_limit_s` seconds of turns, after which the row is marked.
    """

    samples: int = timer.MIN_SAMPLES
    per_round: int = 3
    precision: float = timer.PRECISION
    time_limit_s: float = 5.0
    seed: int = 0


@dataclass
class Contender:
    """One contender and what is known of it so far. `samples` are seconds per call, `rounds` the turn of each.

    `restless` says that threads still ran after its last turn, `check_at` how many samples make it worth looking
    again whether it is precise.
    """

    name: str
    worker: Asked
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    spent_s: float = 0.0
    restless: bool = False
    error: str | None = None
    check_at: int = 0

    @property
    def ci95(self) -> tuple[float, float]:
        """The median's 95% interval, in seconds."""
        return statistics.median_ci95(self.samples, self.rounds)

    def precise(self, settings: Settings) -> bool:
        """Whether there are enough samples and their median is known well enough."""
        if len(self.samples) < settings.samples:
            return False
        low, high = self.ci95
        return high - low <= 2 * settings.precision * sorted(self.samples)[len(self.samples) // 2]

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The worker's answer; None, with `error` set and the worker ended, where it failed."""
        try:
            answer = self.worker.ask(request, timeout_s)
        except WorkerError as error:
            self.error = str(error)
            self.worker.stop()
            return None
        self.restless = not self.worker.settle()
        return answer


Report = Callable[[str, str], None]


def take_turns(contenders: Sequence[Contender], settings: Settings, report: Report) -> None:
    """Times all contenders that have no error, until each is precise or out of time.

    `report(name, text)` is called between turns, when nobody runs.
    """
    shuffle = random.Random(settings.seed).shuffle
    waiting = [contender for contender in contenders if contender.error is None]
    number = 0
    while waiting:
        order = list(waiting)
        shuffle(order)
        for contender in order:
            _turn(contender, number, settings)
            report(contender.name, f"{len(contender.samples)} samples" if contender.error is None else "failed")
        waiting = [contender for contender in waiting if not _done(contender, settings)]
        number += 1


def _turn(contender: Contender, number: int, settings: Settings) -> None:
    # A slow contender gets single samples, so that its few are spread over rounds too.
    budget = settings.time_limit_s / 10
    begin = time.monotonic()
    answer = contender.ask(
        {"do": "round", "samples": settings.per_round, "budget_s": budget}, settings.time_limit_s + _ANSWER_MARGIN_S
    )
    contender.spent_s += time.monotonic() - begin
    if answer is not None:
        contender.samples += answer["samples"]
        contender.rounds += [number] * len(answer["samples"])


def _done(contender: Contender, settings: Settings) -> bool:
    if contender.error is not None:
        return True
    if contender.spent_s >= settings.time_limit_s and len(contender.samples) >= timer.FEWEST_SAMPLES:
        return True
    if len(contender.samples) < max(settings.samples, contender.check_at):
        return False
    # A thousand resamples take long beside a turn, and few more samples do not change the interval.
    contender.check_at = int(len(contender.samples) * 1.2)
    return contender.precise(settings)
