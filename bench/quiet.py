"""Quiet turns: those in which nobody else used the cores.

A shared machine is now fast, now slow, by a factor of two and for milliseconds to minutes: the median over all turns
then says more about the neighbours than about the contender. What disturbs is seen without the contender's own time,
which must play no part in what counts:

- A probe, a process of its own, runs two reference loops between the turns (tvmopt/runtime/peak.py): one over
  registers, which sees the clock and cores taken away, and one fed from L1, which also sees who shares a core.
- The system counts how long a process's threads waited for a core they could have used.

A turn is quiet when both loops ran within 4% of the run's best, before and after it, and its threads waited for less
than 1% of the time that was measured. (Threads that were asleep are woken on one core as often as not and wait for each
other until the system has moved one, some milliseconds; a turn's warm-up lasts longer than that.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .process import Worker, WorkerError, worker_command

# What a turn's threads may have waited for cores, all together, as a share of the time its samples took.
WAITED = 0.01
_START_TIMEOUT_S = 120.0
_TIMEOUT_S = 60.0

# GFLOP/s over registers, and fed from L1.
References = tuple[float, float]


@dataclass(frozen=True)
class Surroundings:
    """What was seen round one turn: both references before and after it, and the share of its samples spent waiting."""

    before: References
    after: References
    waited: float

    def quiet(self, best: float) -> bool:
        """Whether nobody else used the cores; `best` is the most any reference reached in this run."""
        from tvmopt.runtime.peak import QUIET

        return self.waited < WAITED and min(*self.before, *self.after) >= QUIET * best


class Probe:
    """The process that runs the reference loops between turns. `best` is the most they reached, in GFLOP/s."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._worker = Worker(threads, worker_command("kernel_worker"))
        self.best = 0.0

    def start(self) -> None:
        """Builds the loops; raises WorkerError where that fails."""
        self._worker.ask({"do": "watch", "threads": self._threads}, _START_TIMEOUT_S)

    def look(self) -> References:
        """Runs both loops, some milliseconds, and leaves the cores asleep."""
        answer: dict[str, Any] = self._worker.ask({"do": "references"}, _TIMEOUT_S)
        self._worker.settle()
        registers, tile = answer["references"]
        self.best = max(self.best, registers, tile)
        return registers, tile

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
