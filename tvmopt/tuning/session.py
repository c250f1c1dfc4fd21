"""A tuning session: all kernels of a model, one budget, one log.

for each search asked for (template, then MetaSchedule's):
    while no limit is reached: the kernel that needs it most proposes a batch, which is measured and logged
for each kernel: the best candidates and manual, taking turns; the winner's record stays
the whole network: auto against manual; where auto is not faster, manual's plan is kept
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from tvmopt.errors import FleetError, VerificationError
from tvmopt.plan import KernelPlan, Plan
from tvmopt.tuning.interrupts import Interrupts
from tvmopt.tuning.log import Log
from tvmopt.tuning.manifest import Manifest
from tvmopt.tuning.process import WorkerError
from tvmopt.tuning.runner import Runner
from tvmopt.tuning.task import Proposal, Task

if TYPE_CHECKING:
    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine
    from tvmopt.registry import Rule
    from tvmopt.tuning.network import Compared

# Candidates measured in one go. A batch of the evolution costs seconds whatever its size.
BATCH = {"template": 8, "metaschedule": 16}
# Without --trials: so many candidates for each kernel with an operator in it, and for each other one.
ANCHOR_TRIALS = {"template": 24, "metaschedule": 32}
OTHER_TRIALS = {"template": 8, "metaschedule": 8}
# With --trials: so many for each kernel first, where there are enough; the rest by time.
FLOOR = 16
# A winner must beat manual's schedule by this much in the final, where medians scatter by about one percent.
MARGIN = 0.98


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    `trials` over all kernels; `time_budget` in seconds; `early_stop` in candidates; `workers`: processes that build
    and measure, by default one a core.
    """

    search: str = "template"
    trials: int | None = None
    time_budget: float | None = None
    early_stop: int | None = None
    seed: int = 0
    workers: int | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The searches, in the order they are made."""
        return ("template", "metaschedule") if self.search == "both" else (self.search,)


class Report(Protocol):
    """Who is told how it goes."""

    def show(self, session: Session) -> None:
        """Something changed."""

    def note(self, text: str) -> None:
        """Something to say in a line."""


class Session:
    """A search under way. `measured` counts this run's candidates; `ended_by` names the limit that ended it."""

    def __init__(
        self, kernels: Sequence[Kernel], machine: AnyMachine, rules: Sequence[Rule], log: Log, manifest: Manifest,
        settings: Settings, report: Report, *, selected: set[int] | None = None,
        always_compare: bool = False, compare: Callable[[Plan], Compared] | None = None,
        make_runner: Callable[..., Runner] = Runner,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.manifest = manifest
        self.started = time.monotonic()
        self.measured = 0
        self.ended_by = ""
        self._machine = machine
        self._target = machine.target()
        self._log = log
        self._report = report
        self._compare = compare
        self._always_compare = always_compare
        self._make_runner = make_runner
        self._cost_model: Any = None
        self._interrupts = Interrupts()
        self._everything = [Task(index, kernel, machine, rules, log) for index, kernel in enumerate(kernels)]
        self.tasks = [
            task for task in self._everything
            if (selected is None or task.index in selected) and any(task.can(source) for source in settings.sources)
        ]  # fmt: skip
        # When the search was over, in seconds since the start, and how many kernels' best was measured once more since.
        self.deciding_since: float | None = None
        self.decided = 0
        self._before = manifest.trials
        # An interrupted run leaves its time in its trials only.
        self._searched_s = max([manifest.tuning_s, *(trial.elapsed_s or 0.0 for trial in log.trials)])

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def planned(self) -> int:
        """How many candidates this run is to measure, at most."""
        if self.settings.trials is not None:
            return self.settings.trials
        return sum(self._quota(task, source) for source in self.settings.sources for task in self.tasks)

    def run(self) -> Manifest:
        """Searches until a limit is reached, decides, and writes the manifest; returns it.

        KeyboardInterrupt, and SystemExit (SIGTERM), leave the log in order, with the best so far as its plan, and are
        raised again.
        """
        # What stood in an earlier plan stays until something better is found.
        kept = {plan.key for plan in self.manifest.plan}
        missing = [t.plan(None, None, None) for t in self._everything if t.kernel.key not in kept]
        finished_before = self.manifest.status == "finished" and not missing
        self._write(plans=missing, status="running")
        try:
            with self._interrupts, self._runner() as runner:
                for source in self.settings.sources:
                    self._search(source, runner)
                self.ended_by = self.ended_by or "every candidate there is was measured"
                if self.measured or not finished_before:
                    self.deciding_since = self.elapsed
                    for task in self.tasks:
                        self._interrupts.check()
                        self._decide(task, runner)
                        self.decided += 1
                        self._report.show(self)
            if self.measured or not finished_before:
                self._check_network()
        except (KeyboardInterrupt, SystemExit, FleetError) as reason:
            self.ended_by = "no server is left" if isinstance(reason, FleetError) else "interrupted"
            self._write(status="interrupted")
            raise
        finally:
            for task in self.tasks:
                task.close()
        self._write(status="finished")
        return self.manifest

    def _runner(self) -> Runner:
        settings = self.settings
        workers = {} if settings.workers is None else {"workers": settings.workers}
        return self._make_runner(self._machine, strategy=_strategy(self.manifest), seed=settings.seed, **workers)

    def _search(self, source: str, runner: Runner) -> None:
        if source == "metaschedule":
            from tvmopt.tuning.metaschedule import cost_model

            self._cost_model = cost_model(self._machine, self.settings.seed)
        self.ended_by = ""
        for task in self.tasks:
            task.stale = 0
        done = dict.fromkeys(self.tasks, 0)
        while True:
            self._interrupts.check()
            chosen = self._next(source, done)
            if chosen is None:
                return
            task = chosen
            count = min(BATCH[source], self._left(task, source, done))
            proposals = task.propose(source, count, self.settings.seed, self._cost_model)
            if not proposals:
                continue
            try:
                runner.open(task.kernel.key, task.kernel.func, task.baseline_module)
                results = runner.measure([proposal.schedule.mod for proposal in proposals])
            except WorkerError as error:
                task.broken = str(error)
                self._report.note(f"kernel {task.index} ({task.kernel.op}) cannot be tuned: {error}")
                continue
            task.take(proposals, results, self._target, self._searched_s + self.elapsed)
            for result in results:
                if result.status == "wrong":
                    self._report.note(f"kernel {task.index}: a candidate computes something else: {result.message}")
            done[task] += len(proposals)
            self.measured += len(proposals)
            self._write(plans=[self._provisional(task)], status="running")
            self._report.show(self)

    def _next(self, source: str, done: dict[Task, int]) -> Task | None:
        """The kernel whose turn it is; None, with `ended_by` set, when a limit is reached."""
        budget, early = self.settings.time_budget, self.settings.early_stop
        if budget is not None and self.elapsed >= budget:
            self.ended_by = f"the time budget of {budget:.0f} s"
            return None
        live = [task for task in self.tasks if not task.exhausted(source)]
        open_tasks = [task for task in live if self._left(task, source, done) > 0]
        if live and not open_tasks and not self.planned:
            self.ended_by = "earlier runs measured every kernel's share of candidates (--trials N measures more)"
            return None
        if live and not open_tasks:
            trials = self.settings.trials
            self.ended_by = f"{trials} trials" if trials else "every kernel's share of candidates was measured"
            return None
        awake = [task for task in open_tasks if early is None or task.stale < early]
        if not awake:
            if open_tasks:
                self.ended_by = f"early stop: no kernel got faster in its last {early} candidates"
            return None
        poor = [task for task in awake if done[task] < self._floor]
        # Each batch goes where most of the network's time is per candidate already spent on it.
        return max(poor or awake, key=lambda task: task.weight / (done[task] + BATCH[source]))

    @property
    def _floor(self) -> int:
        trials = self.settings.trials
        return FLOOR if trials is None else min(FLOOR, trials // max(1, len(self.tasks) * len(self.settings.sources)))

    def _left(self, task: Task, source: str, done: dict[Task, int]) -> int:
        if self.settings.trials is None:
            return self._quota(task, source) - done[task]
        # Of two searches each gets half; what the first leaves over goes to the second.
        last = source == self.settings.sources[-1]
        return (self.settings.trials if last else self.settings.trials // 2) - self.measured

    @staticmethod
    def _quota(task: Task, source: str) -> int:
        """What --trials' default leaves to measure of a kernel: earlier runs count."""
        if not task.can(source):
            return 0
        quota = (ANCHOR_TRIALS if task.is_anchor else OTHER_TRIALS)[source]
        if source == "template":
            quota = min(quota, task.space.size)
        return max(0, quota - task.tried_before[source])

    def _provisional(self, task: Task) -> KernelPlan:
        """A plan from single measurements, for a run that does not come to its end."""
        best = task.finalists[0] if task.finalists else None
        if best is None or task.baseline is None or best[0] >= MARGIN or task.is_manual(best[1]):
            return task.plan(None, None, task.baseline)
        return task.plan(best[1], best[0] * task.baseline, task.baseline)

    def _decide(self, task: Task, runner: Runner) -> None:
        """The final of one kernel: its best candidates and manual, taking turns; the winner's record stays."""
        task.recall()
        if not task.finalists:
            return
        finalists = [proposal for ratio, proposal in task.finalists if ratio < 1.0 and not task.is_manual(proposal)]
        winner: Proposal | None = None
        seconds = baseline = task.baseline
        if finalists:
            runner.open(task.kernel.key, task.kernel.func, task.baseline_module)
            results = runner.duel([proposal.schedule.mod for proposal in finalists])
            sound = [(result, proposal) for result, proposal in zip(results, finalists, strict=True) if result.ok]
            if sound:
                result, proposal = min(sound, key=lambda item: item[0].ratio)
                baseline = result.baseline
                if result.ratio < MARGIN:
                    winner, seconds = proposal, result.ratio * baseline
                task.verdict = f"{1 / result.ratio:.2f}x"
        if winner is None:
            seconds, task.verdict = baseline, "manual"
        schedule = winner.schedule if winner is not None else task.space.manual and task.space.manual.schedule
        if schedule is not None and seconds is not None:
            self._log.settle(task.kernel.func, schedule, seconds, self._target)
        self._write(plans=[task.plan(winner, seconds, baseline)], status="running")

    def _check_network(self) -> None:
        """Keeps manual's plan where the network is not faster with ours."""
        plan = self.manifest.plan
        searched = any(p.source in ("template", "metaschedule") for p in plan)
        if self._compare is None or not (searched or self._always_compare):
            return
        self._report.note("measuring the whole network, auto against manual")
        try:
            compared = self._compare(plan)
            kept = "auto" if compared.ratio < 1.0 else "manual"
            network: dict[str, Any] = {
                "manual_ms": compared.first * 1e3, "auto_ms": compared.second * 1e3, "ratio": compared.ratio,
            }  # fmt: skip
        except VerificationError as error:
            self._report.note(f"auto is not kept: {error}")
            kept, network = "manual", {}
        if kept == "manual":
            ours = {task.kernel.key: task for task in self._everything}
            back = [ours[p.key].plan(None, None, p.baseline_seconds) for p in plan if p.key in ours]
            self.manifest = self.manifest.with_plan(plan.updated(back))
        self.manifest = replace(self.manifest, network={**network, "kept": kept})

    def _write(self, *, plans: Sequence[KernelPlan] = (), status: str) -> None:
        self.manifest = replace(
            self.manifest,
            plan=self.manifest.plan.updated(plans),
            status=status,
            ended_by=self.ended_by,
            search=self.settings.search,
            seed=self.settings.seed,
            trials=self._before + self.measured,
        )
        self.manifest.write(self._log.path)


def _strategy(manifest: Manifest) -> str | None:
    return "winograd" if any(way.startswith("winograd") for way in manifest.strategies.values()) else None
