"""Quiet turns: those in which nobody else used the cores.

A shared machine is now fast, now slow, by a factor of two and for milliseconds to minutes: the median over all turns
then says more about the neighbours than about the contender. What disturbs is seen without the contender's own time,
which must play no part in what counts:

- A probe, a process of its own, runs four loops between the turns (tvmopt/runtime/peak.py): one over
  registers, which sees the clock and cores taken away, one fed from L1, which also sees who shares a core, one fed from
  L2, which sees who empties it, and one of launches, which sees how far apart the cores are.
- The system counts how long a process's threads waited for a core they could have used.

A turn is quiet when the first three ran within 1.5% of the run's best and the fourth within 30%, before and after it,
and its threads waited for less than 1% of the time that was measured. Of a kernel of 42 us the medians of twenty such
turns spread by 1.1% in a minute in which those of turns by the first two loops and 4% spread by 4.5%. Where too few
turns are so quiet, the first two loops and 4% decide: on a machine that is never idle, or a CPU whose L2 cannot feed
the loop. (Threads that were asleep are woken on one core as often as not and wait for each other until the system has
moved one, some milliseconds; a turn's warm-up lasts longer than that.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tvmopt.runtime.peak import QUIET

from .process import Worker, WorkerError, worker_command
from .results import FEWEST_QUIET

# What a turn's threads may have waited for cores, all together, as a share of the time its samples took.
WAITED = 0.01
_START_TIMEOUT_S = 120.0
_TIMEOUT_S = 60.0

# GFLOP/s over registers, fed from L1, and fed from L2; then thousands of launches a second on all cores.
References = tuple[float, ...]
_ARITHMETIC = 3


@dataclass(frozen=True)
class Level:
    """What share of the best of a run each reference must reach; those beyond the last share do not matter."""

    shares: tuple[float, ...]

    def holds(self, looks: Iterable[References], best: References) -> bool:
        """Whether all of `looks` do."""
        return all(
            value >= share * most for look in looks for value, share, most in zip(look, self.shares, best, strict=False)
        )


# As the best of three runs a look, an idle core's arithmetic differs by half a percent, and its launches by 15%.
STRICT, LOOSE = Level((0.985, 0.985, 0.985, 0.7)), Level((QUIET, QUIET))


def best_of(looks: Iterable[References]) -> References:
    """The most each reference reached; of those of arithmetic the most any did, as they have one roof."""
    most = [max(values) for values in zip(*looks, strict=True)]
    roof = max(most[:_ARITHMETIC])
    return tuple(roof if i < _ARITHMETIC else value for i, value in enumerate(most))


def slowest(looks: Iterable[References]) -> float:
    """GFLOP/s of the slower of the first two loops, which say how fast the machine was."""
    return min(min(look[: len(LOOSE.shares)]) for look in looks)


def quiet_turns(turns: Iterable[int], quiet: Callable[[int, Level], bool]) -> set[int]:
    """The turns that are quiet by the strictest level that leaves enough of them."""
    known = list(turns)
    strict = {number for number in known if quiet(number, STRICT)}
    return strict if len(strict) >= FEWEST_QUIET else {number for number in known if quiet(number, LOOSE)}


@dataclass(frozen=True)
class Surroundings:
    """What was seen round one turn: the references before and after it, and the share of its samples spent waiting."""

    before: References
    after: References
    waited: float

    def quiet(self, best: References, level: Level = LOOSE) -> bool:
        """Whether nobody else used the cores; `best` is the most the references reached in this run."""
        return self.waited < WAITED and level.holds((self.before, self.after), best)


class Probe:
    """The process that runs the reference loops between turns. `best` is the most they reached (`best_of`)."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._worker = Worker(threads, worker_command("kernel_worker"))
        self.best: References = ()

    def start(self) -> None:
        """Builds the loops; raises WorkerError where that fails."""
        self._worker.ask({"do": "watch", "threads": self._threads}, _START_TIMEOUT_S)

    def look(self) -> References:
        """Runs the loops, some milliseconds, and leaves the cores asleep."""
        answer: dict[str, Any] = self._worker.ask({"do": "references"}, _TIMEOUT_S)
        self._worker.settle()
        found = tuple(answer["references"])
        self.best = best_of([self.best, found] if self.best else [found])
        return found

    def stop(self) -> None:
        """Ends the process."""
        self._worker.stop()


def start_probe(threads: int) -> Probe | None:
    """A probe; None where it cannot be had (then every turn counts), as on a CPU that TVM cannot build loops for."""
    probe = Probe(threads)
    try:
        probe.start()
    except WorkerError:
        probe.stop()
        return None
    return probe
