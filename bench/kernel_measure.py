"""Measures one kernel's contenders: processes, turns, and a result row for each (what counts: see kernels.py)."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmopt.errors import VerificationError

from .quiet import STRICT, Level, References, best_of, quiet_turns, slowest
from .results import FEWEST_QUIET

if TYPE_CHECKING:
    from tvmopt.machine import Machine

    from .process import Worker

OURS = ("original", "manual", "auto")
TORCH = "torch"
_PREPARE_TIMEOUT_S = 900.0
_TURN_TIMEOUT_S = 120.0
# A contender this slow gets as few turns as there can be.
_SLOW_S = 0.5
_FEWEST_TURNS = 3


@dataclasses.dataclass
class Turns:
    """What was measured of one contender, turn by turn.

    Seconds a call; the references before and after (quiet.py), in GFLOP/s; how often the system took a core from it.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    before: list[References] = dataclasses.field(default_factory=list)
    after: list[References] = dataclasses.field(default_factory=list)
    interruptions: list[int] = dataclasses.field(default_factory=list)
    rounds: list[int] = dataclasses.field(default_factory=list)
    spent_s: float = 0.0

    def quiet(self, best: References) -> list[bool]:
        """Whether the references came near enough to `best`, by quiet.py, and nothing took a core in between."""
        found = quiet_turns(range(len(self.seconds)), lambda i, level: self._is_quiet(i, best, level))
        return [i in found for i in range(len(self.seconds))]

    def strictly_quiet(self, best: References) -> int:
        """How many turns are quiet by the strictest measure."""
        return sum(self._is_quiet(i, best, STRICT) for i in range(len(self.seconds)))

    def _is_quiet(self, i: int, best: References, level: Level) -> bool:
        return self.interruptions[i] == 0 and level.holds((self.before[i], self.after[i]), best)

    def counted(self, best: References) -> tuple[list[float], list[int]]:
        """The times, in seconds, and rounds of the quiet turns; of all where too few were."""
        quiet = self.quiet(best)
        kept = [i for i, is_quiet in enumerate(quiet) if is_quiet or sum(quiet) < FEWEST_QUIET]
        return [self.seconds[i] for i in kept], [self.rounds[i] for i in kept]

    def reference(self, best: References) -> float:
        """GFLOP/s of the references round the turns that count, the slowest of each turn: the machine's speed then."""
        _, rounds = self.counted(best)
        least = [slowest(pair) for pair in zip(self.before, self.after, strict=True)]
        return statistics.median(least[self.rounds.index(number)] for number in rounds)

    def peaks(self) -> list[float]:
        """GFLOP/s over registers, of each turn: the better of before and after."""
        return [max(before[0], after[0]) for before, after in zip(self.before, self.after, strict=True)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """`quiet` turns of every contender, or `limit_s` seconds of its turns."""

    variants: tuple[str, ...] = (*OURS, TORCH)
    quiet: int = 30
    limit_s: float = 5.0
    log_dir: str = "tuning_logs"
    schedules_dir: str | None = None
    strategies: dict[str, str] = dataclasses.field(default_factory=dict)
    ladder: bool = False
    show: str | None = None
    sparsities: tuple[float, ...] = ()
    method: str = "block-16x1"


class Workers:
    """The two processes kernels are timed in, TVM's and PyTorch's: started when needed, kept from kernel to kernel."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._started: dict[str, Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def get(self, name: str) -> Worker:
        """The worker of that name."""
        from .process import LARGE_PAGES, Worker, worker_command

        if name not in self._started:
            self._started[name] = Worker(self._threads, worker_command("kernel_worker"), LARGE_PAGES)
        return self._started[name]

    def stop(self) -> None:
        """Ends both; the next `get` starts anew."""
        for worker in self._started.values():
            worker.stop()
        self._started.clear()


def measure(
    op: str, shape: str, machine: Machine, settings: Settings, workers: Workers
) -> tuple[list[dict[str, Any]], list[str]]:
    """Builds, verifies and times the contenders of one kernel.

    Returns:
        A result of the bench's schema for each, and what there is to say beside them. `samples_ms` has one time a
        turn, `quiet` says which turns were, `shares` how much of the roof each reached; `latency_ms`, `gflops`,
        `bytes_per_s` and `peak_fraction` are of the quiet turns, or of all where the result is `unstable`.

    Raises:
        UsageError: a shape of another form. WorkerError: a contender that cannot be built, or is wrong.
    """
    request = {
        "do": "prepare", "op": op, "shape": shape, "threads": machine.cores, "log_dir": settings.log_dir,
        "schedules_dir": settings.schedules_dir, "ladder": settings.ladder, "strategies": settings.strategies,
        "sparsities": list(settings.sparsities), "method": settings.method, "limit_s": settings.limit_s,
    }  # fmt: skip
    ours = [name for name in settings.variants if name != TORCH]
    tvm = workers.get("tvm")
    peers = {}
    facts = tvm.ask({**request, "contenders": ours}, _PREPARE_TIMEOUT_S)
    if TORCH in settings.variants and not settings.ladder:
        peers[TORCH] = workers.get(TORCH)
        torch_facts = peers[TORCH].ask({**request, "contenders": [TORCH]}, _PREPARE_TIMEOUT_S)
        facts["errors"].update(torch_facts["errors"])
    turns = take_turns(tvm, peers, [*facts["contenders"], *peers], settings)
    for worker in (tvm, *peers.values()):
        finish = worker.ask({"do": "finish"}, _PREPARE_TIMEOUT_S)
        for name, error in finish["errors"].items():
            facts["errors"][name] = max(facts["errors"][name], error)
        if worker is tvm:
            facts["bandwidths"] = {(size, written): rate for size, written, rate in finish["bandwidths"]}
    notes = [f"{name}: {why}" for name, why in facts["missing"].items()]
    if settings.show:
        shown = list(facts["contenders"]) if settings.ladder else [name for name in turns if name not in peers][-1:]
        for name in shown:
            text = tvm.ask({"do": "show", "name": name, "form": settings.show}, _PREPARE_TIMEOUT_S)["text"]
            notes.append(f"--- {op} {shape}, {name}, {settings.show}\n{text}")
    best = best_of(look for one in turns.values() for look in (*one.before, *one.after))
    return [_row(op, shape, name, one, facts, best, machine, settings) for name, one in turns.items()], notes


def take_turns(tvm: Worker, peers: dict[str, Worker], names: Sequence[str], settings: Settings) -> dict[str, Turns]:
    """Turns of the contenders `names`, those of `peers` in their own processes, all others in `tvm`'s."""
    turns = {name: Turns() for name in names}
    shuffle = random.Random(0).shuffle
    waiting, number = list(names), 0
    while waiting:
        order = list(waiting)
        shuffle(order)
        for name in order:
            began = time.monotonic()
            if name in peers:
                before = tvm.ask({"do": "references"}, _TURN_TIMEOUT_S)["references"]
                tvm.settle()
                answer = peers[name].ask({"do": "turn", "name": name}, _TURN_TIMEOUT_S)
                peers[name].settle()
                answer["before"] = before
                answer["after"] = tvm.ask({"do": "references"}, _TURN_TIMEOUT_S)["references"]
            else:
                answer = tvm.ask({"do": "turn", "name": name}, _TURN_TIMEOUT_S)
            one = turns[name]
            one.seconds.append(answer["seconds"])
            one.before.append(tuple(answer["before"]))
            one.after.append(tuple(answer["after"]))
            one.interruptions.append(answer["interruptions"])
            one.rounds.append(number)
            one.spent_s += time.monotonic() - began
        best = best_of(look for one in turns.values() for look in (*one.before, *one.after))
        waiting = [name for name in waiting if not _enough(turns[name], best, settings)]
        number += 1
    return turns


def _enough(turns: Turns, best: References, settings: Settings) -> bool:
    if len(turns.seconds) < _FEWEST_TURNS:
        return False
    if min(turns.seconds) > _SLOW_S or turns.spent_s >= settings.limit_s:
        return True
    # For half of the time turns are waited for that are quiet by the strictest measure.
    late = turns.spent_s >= settings.limit_s / 2
    return (sum(turns.quiet(best)) if late else turns.strictly_quiet(best)) >= settings.quiet


def _row(
    op: str, shape: str, name: str, turns: Turns, facts: dict[str, Any], best: References, machine: Machine,
    settings: Settings,
) -> dict[str, Any]:  # fmt: skip
    """The result of one contender; raises VerificationError for a time that cannot be."""
    import numpy as np

    from . import statistics as ours
    from .results import empty_row

    contender = facts["contenders"].get(name, {})
    sizes = contender.get("kernel", facts["kernel"])
    flops, size = sizes["flops"], sizes["bytes"]
    bandwidth = facts["bandwidths"][size, sizes["written"]]
    peak = best[0]
    quiet = turns.quiet(best)
    unstable = sum(quiet) < FEWEST_QUIET
    counted = [i for i, is_quiet in enumerate(quiet) if is_quiet or unstable]
    roofs = [max(flops / (p * 1e9), size / bandwidth) for p in turns.peaks()]
    shares = [roof / seconds for roof, seconds in zip(roofs, turns.seconds, strict=True)]
    samples = [seconds * 1e3 for seconds in turns.seconds]
    used = [samples[i] for i in counted]
    median_s = float(np.median(used)) * 1e-3
    share = float(np.median([shares[i] for i in counted]))
    bound = "arithmetic" if flops / (peak * 1e9) >= size / bandwidth else "memory"
    # The bandwidth is of a set about as large, all of it read again and again: what a kernel reads once in a while may
    # lie better in the caches.
    # Winograd's operations are counted as a direct convolution's, of which it needs down to a quarter.
    labels = contender.get("labels", {})
    way = str(labels.get("strategy", sizes["op"]))
    if share > (4.0 if "winograd" in way else 1.02 if bound == "arithmetic" else 1.5):
        raise VerificationError(f"{op} {shape}, {name}: {share:.0%} of the roof cannot be: measured wrongly, repeat it")
    return {
        **empty_row(),
        "model": f"{op}:{shape}",
        "variant": f"peer:{name}" if name == TORCH else f"rung:{name}" if settings.ladder else name,
        "target": "llvm",
        "dtype": "float32",
        "batch": 1,
        "latency_ms": ours.summary(used),
        "samples_ms": samples,
        "compile_s": contender.get("compile_s"),
        "max_abs_err": facts["errors"][name],
        "flops": flops,
        "threads": machine.cores,
        "strategy": ",".join(f"{op}={way}" for op, way in sorted(settings.strategies.items())) or "default",
        "ci95": list(ours.median_ci95(used, range(len(used)))),
        "unstable": unstable,
        "rounds": turns.rounds,
        "op": op,
        "shape": shape,
        "gflops": flops / median_s * 1e-9,
        "bytes_per_s": size / median_s,
        "peak_fraction": share,
        "bound": bound,
        "peak_fraction_all_turns": float(np.median(shares)),
        "peak_gflops": peak,
        "reference_gflops": turns.reference(best),
        "bandwidth_bytes_per_s": bandwidth,
        "clock_ghz": facts["clock_ghz"],
        "lanes": facts["lanes"],
        "shares": shares,
        "quiet": quiet,
        "choices": contender.get("choices", {}),
        "text": contender.get("text", ""),
        **labels,
    }
