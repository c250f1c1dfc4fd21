"""Contenders take turns: random order in every round, one running, all others asleep.

Side by side in one process, or with a pool still spinning next door, contenders slow each other down to half
their speed. And what disturbs a machine for a second disturbs one round of everybody, not everything of one.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from tvmopt.runtime import timer

from . import statistics
from .process import WorkerError
from .quiet import STRICT, References, Surroundings, quiet_turns, slowest
from .results import FEWEST_QUIET

# Building may take a while (an unscheduled vision transformer), but not for ever.
PREPARE_TIMEOUT_S = 1800.0
_ANSWER_MARGIN_S = 600.0


class Asked(Protocol):
    """What turns needs of a worker."""

    def tell(self, request: dict[str, Any]) -> None: ...

    def await_told(self, timeout_s: float) -> None: ...

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]: ...

    def settle(self) -> bool: ...

    def stop(self) -> None: ...


class Watching(Protocol):
    """What turns needs of a probe (quiet.py)."""

    best: References

    def look(self) -> References: ...


@dataclass(frozen=True)
class Settings:
    """When a contender has been measured enough.

    `samples` at least, of quiet turns, `per_round` of them a turn, and half the median's 95% interval within
    `precision` of the median; or `time_limit_s` seconds of turns, after which the row is marked. `cold`: whether
    calls with cold caches are timed beside the warm ones.
    """

    samples: int = timer.MIN_SAMPLES
    per_round: int = 3
    precision: float = timer.PRECISION
    time_limit_s: float = 5.0
    seed: int = 0
    cold: bool = False


@dataclass
class Samples:
    """Seconds per call, and which turn each is of; of these the quiet ones count, if there are enough of them."""

    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    def add(self, seconds: Sequence[float], number: int) -> None:
        """Those of turn `number`."""
        self.seconds += seconds
        self.rounds += [number] * len(seconds)

    def of(self, rounds: set[int]) -> Samples:
        """Those of some turns only."""
        kept = [i for i, number in enumerate(self.rounds) if number in rounds]
        return Samples([self.seconds[i] for i in kept], [self.rounds[i] for i in kept])

    @property
    def ci95(self) -> tuple[float, float]:
        """The median's 95% interval, in seconds."""
        return statistics.median_ci95(self.seconds, self.rounds)


@dataclass
class Contender:
    """One contender and what is known of it so far: all its samples, warm and cold, and what surrounded each turn.

    `restless` says that threads still ran after its last turn, `check_at` how many samples make it worth looking
    again whether it is precise.
    """

    name: str
    worker: Asked
    facts: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    cold: Samples = field(default_factory=Samples)
    surroundings: dict[int, Surroundings] = field(default_factory=dict)
    spent_s: float = 0.0
    restless: bool = False
    error: str | None = None
    check_at: int = 0

    def forget(self) -> None:
        """Drops what was measured; the contender stays built."""
        self.samples, self.cold, self.surroundings = Samples(), Samples(), {}
        self.spent_s, self.check_at = 0.0, 0

    def quiet(self, best: References) -> set[int]:
        """The turns that count; without a probe (`best` is empty) all of them do."""
        turns = set(self.samples.rounds)
        return quiet_turns(turns, lambda n, level: self.surroundings[n].quiet(best, level)) if best else turns

    def strictly_quiet(self, best: References) -> bool:
        """Whether the turns that count are quiet by the strictest measure."""
        return not best or all(self.surroundings[n].quiet(best, STRICT) for n in self.quiet(best))

    def counted(self, samples: Samples, best: References) -> tuple[Samples, bool]:
        """The samples that count, and whether these are of quiet turns: all of them, where too few turns were."""
        quiet = self.quiet(best)
        enough = not best or len(quiet) >= FEWEST_QUIET
        return (samples.of(quiet) if enough else samples), enough

    def reference(self, counted: Samples) -> float:
        """GFLOP/s of the probe round the turns that count, the slowest of each turn: the machine's speed then."""
        seen = [self.surroundings[n] for n in set(counted.rounds)]
        return median(slowest((one.before, one.after)) for one in seen)

    def precise(self, settings: Settings, best: References = ()) -> bool:
        """Whether there are enough samples and their median is known well enough."""
        kinds = (self.samples, self.cold) if settings.cold else (self.samples,)
        return all(self._precise(kind, settings, best) for kind in kinds)

    def _precise(self, kind: Samples, settings: Settings, best: References) -> bool:
        counted, quiet = self.counted(kind, best)
        if not quiet or len(counted.seconds) < settings.samples:
            return False
        low, high = counted.ci95
        return high - low <= 2 * settings.precision * sorted(counted.seconds)[len(counted.seconds) // 2]

    def tell(self, request: dict[str, Any]) -> None:
        """Hands over a request without waiting for it."""
        with self._failing():
            self.worker.tell(request)

    def await_told(self, timeout_s: float) -> None:
        """Waits until that is done."""
        if self.error is None:
            with self._failing():
                self.worker.await_told(timeout_s)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            self.error = str(error)
            self.worker.stop()

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The worker's answer; None, with `error` set and the worker ended, where it failed."""
        answer = None
        with self._failing():
            answer = self.worker.ask(request, timeout_s)
            self.restless = not self.worker.settle()
        return answer


Report = Callable[[str, str], None]


def take_turns(
    contenders: Sequence[Contender], settings: Settings, report: Report, probe: Watching | None = None,
    rounds: range | None = None,
) -> None:  # fmt: skip
    """Times all contenders that have no error, until each is precise or out of time, or for some numbered `rounds`.

    `report(name, text)` is called between turns, when nobody runs. `probe` looks before and after every turn whether
    others use the cores.
    """
    shuffle = random.Random(settings.seed).shuffle
    waiting = [contender for contender in contenders if contender.error is None]
    number = rounds.start if rounds is not None else 0
    before = probe.look() if probe is not None else None
    while waiting and (rounds is None or number in rounds):
        order = list(waiting)
        shuffle(order)
        for contender in order:
            begin = time.monotonic()
            waited = _turn(contender, number, settings)
            if probe is not None and before is not None:
                after = probe.look()
                contender.surroundings[number] = Surroundings(before, after, waited)
                before = after
            contender.spent_s += time.monotonic() - begin
            samples = len(contender.samples.seconds)
            report(contender.name, f"{samples} samples" if contender.error is None else "failed")
        best = probe.best if probe is not None else ()
        waiting = [contender for contender in waiting if not _done(contender, settings, best)]
        number += 1


def _turn(contender: Contender, number: int, settings: Settings) -> float:
    """Takes one turn; for what share of its samples the contender's threads waited for a core."""
    # A slow contender gets single samples, so that its few are spread over rounds too.
    budget = settings.time_limit_s / 10
    request = {"do": "round", "samples": settings.per_round, "budget_s": budget, "cold": settings.cold}
    answer = contender.ask(request, settings.time_limit_s + _ANSWER_MARGIN_S)
    if answer is None:
        return 1.0
    contender.samples.add(answer["samples"], number)
    contender.cold.add(answer.get("cold", []), number)
    return float(answer["waited"])


def _done(contender: Contender, settings: Settings, best: References) -> bool:
    if contender.error is not None:
        return True
    samples = len(contender.samples.seconds)
    if contender.spent_s >= settings.time_limit_s and samples >= timer.FEWEST_SAMPLES:
        return True
    if samples < max(settings.samples, contender.check_at):
        return False
    # A thousand resamples take long beside a turn, and few more samples do not change the interval.
    contender.check_at = int(samples * 1.2)
    if not contender.strictly_quiet(best) and contender.spent_s < settings.time_limit_s / 2:
        return False
    return contender.precise(settings, best)
