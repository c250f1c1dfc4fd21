"""One kernel in a search: where its candidates come from, how they did, which are the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvmopt.graph.gpu_default import schedule_default
from tvmopt.machine import GpuMachine
from tvmopt.operators import ANCHORS
from tvmopt.plan import KernelPlan
from tvmopt.tuning.lines import Trial
from tvmopt.tuning.log import Log, key_module
from tvmopt.tuning.template import Space, Walk

if TYPE_CHECKING:
    import tvm
    from tvm.s_tir import Schedule

    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine
    from tvmopt.registry import Rule
    from tvmopt.tuning.metaschedule import Evolution
    from tvmopt.tuning.runner import Measurement

# Better than the best so far by less than this is noise, not an improvement.
IMPROVEMENT = 0.01
FINALISTS = 3
EVOLUTION_BATCH = 16
# More than any session measures on one kernel: the session counts, not the evolution.
_NO_LIMIT = 100_000


@dataclass(frozen=True)
class Proposal:
    """A candidate to measure. `handle` is what its source wants back with the result."""

    source: str
    candidate: str
    schedule: Schedule
    rule: str | None = None
    version: int | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    handle: Any = None


class Task:
    """A kernel, its space and its results.

    `measured` counts this run's candidates, failed ones included; `stale` those since the last improvement;
    `tried_before` is how many earlier runs measured, by source;
    `baseline` is manual's median time in seconds, None until something was measured; `ratio` the best candidate's
    time relative to manual's.
    """

    def __init__(self, index: int, kernel: Kernel, machine: AnyMachine, rules: Sequence[Rule], log: Log) -> None:
        self.index = index
        self.kernel = kernel
        self.space = Space(kernel, machine, rules)
        self.measured = 0
        self.stale = 0
        self.baseline: float | None = None
        self.failures: Counter[str] = Counter()
        self.finalists: list[tuple[float, Proposal]] = []
        self.verdict = ""
        self.broken = ""
        self._machine = machine
        self._log = log
        self.tried_before = {source: len(self._trials(source)) for source in ("template", "metaschedule")}
        self._walk: Walk | None = None
        self._evolution: Evolution | None = None

    @property
    def is_anchor(self) -> bool:
        """Whether it does an operator's arithmetic, and so most of the time goes there."""
        return self.kernel.op in ANCHORS

    @property
    def ratio(self) -> float | None:
        """The best candidate's time over manual's."""
        return self.finalists[0][0] if self.finalists else None

    @property
    def weight(self) -> float:
        """Seconds a run of the network spends here: measured, or (until then) guessed from operations and bytes."""
        guess = 2e-6 + max(self.kernel.flops / 1e11, self.kernel.bytes / 1e10)
        return self.kernel.calls * (self.baseline or guess) * min(self.ratio or 1.0, 1.0)

    @property
    def baseline_module(self) -> tvm.IRModule:
        """Manual's schedule; where no rule takes the kernel the unscheduled function, or a GPU's default schedule."""
        if self.space.manual is not None:
            return self.space.manual.schedule.mod
        if isinstance(self._machine, GpuMachine):
            return key_module(schedule_default(self.kernel.func, self._machine.target()))
        return key_module(self.kernel.func)

    def can(self, source: str) -> bool:
        """Whether there is anything to search in `source`."""
        return self.space.size > 1 if source == "template" else self.is_anchor or self.space.manual is None

    def exhausted(self, source: str) -> bool:
        """Whether `source` has nothing new to offer."""
        search = self._walk if source == "template" else self._evolution
        return bool(self.broken) or not self.can(source) or (search is not None and search.exhausted)

    def propose(self, source: str, count: int, seed: int, cost_model: Any = None) -> list[Proposal]:
        """Up to `count` candidates that no run has measured before."""
        if source == "template":
            if self._walk is None:
                self._walk = Walk(self.space, seed=seed + self.index, known=self._known())
            return [
                Proposal("template", p.candidate, p.schedule, p.rule, p.version, p.values, p)
                for p in self._walk.propose(count)
            ]
        if self._evolution is None:
            from tvmopt.tuning.metaschedule import Evolution

            known = {trial.candidate for trial in self._trials("metaschedule")}
            self._evolution = Evolution(
                self.kernel, self._machine, trials=_NO_LIMIT, batch=EVOLUTION_BATCH, seed=seed + self.index,
                known=known, log=self._log, cost_model=cost_model,
            )  # fmt: skip
        found = self._evolution.propose()[:count]
        return [Proposal("metaschedule", f.candidate, f.schedule, handle=f) for f in found]

    def take(
        self, proposals: Sequence[Proposal], results: Sequence[Measurement], target: tvm.target.Target,
        elapsed_s: float | None = None,
    ) -> None:  # fmt: skip
        """Takes in a batch measured `elapsed_s` into the search: to the log, the search, the list of the best."""
        evolved = []
        for proposal, result in zip(proposals, results, strict=True):
            self.measured += 1
            if result.ok:
                # The ratio counts, not the clock: seconds are those manual would have taken all the time.
                self.baseline = self.baseline or result.baseline
                seconds = result.ratio * self.baseline
                self._log.add(self.kernel.func, proposal.schedule, seconds, target)
                self._rank(result.ratio, proposal)
            else:
                self.failures[result.status] += 1
                seconds = None
                self.stale += 1
            self._log.add_trial(self._trial(proposal, result, seconds, elapsed_s))
            if proposal.source == "template" and result.ok and self._walk is not None:
                self._walk.tell(proposal.handle, result.ratio)
            elif proposal.source == "metaschedule":
                evolved.append((proposal.handle, seconds))
        if evolved and self._evolution is not None:
            self._evolution.tell(evolved)

    def recall(self) -> None:
        """Puts the best of earlier runs among the finalists, so that this run's have to beat it."""
        known = [(trial.ratio, trial) for trial in self._trials("template") if trial.ratio is not None]
        for ratio, trial in sorted(known, key=lambda item: item[0])[:FINALISTS]:
            point = self.space.at(trial.choices)
            if point is not None and point.candidate == trial.candidate:
                proposal = Proposal(
                    "template", point.candidate, point.schedule, point.rule, point.version, point.values
                )
                self._keep(ratio, proposal)
        best = min((t for t in self._trials("metaschedule") if t.ratio), key=lambda t: t.ratio or 0.0, default=None)
        record = self._log.find(self.kernel.func)
        if best is not None and best.ratio is not None and record is not None:
            schedule = self._log.apply(record, self.kernel.func)
            self._keep(best.ratio, Proposal("metaschedule", best.candidate, schedule))

    def plan(self, proposal: Proposal | None, seconds: float | None, baseline: float | None) -> KernelPlan:
        """The kernel's plan with `proposal`'s schedule, or with manual's."""
        manual = self.space.manual
        if proposal is not None:
            return KernelPlan(
                self.kernel.name, self.kernel.key, proposal.source, proposal.rule, proposal.version,
                dict(proposal.choices), seconds, baseline,
            )  # fmt: skip
        if manual is None:
            return KernelPlan(
                self.kernel.name, self.kernel.key, "original", seconds=baseline, baseline_seconds=baseline
            )
        return KernelPlan(
            self.kernel.name, self.kernel.key, "manual", manual.rule, manual.version, manual.values, baseline, baseline
        )  # fmt: skip

    def is_manual(self, proposal: Proposal) -> bool:
        """Whether `proposal` is manual's schedule itself."""
        return self.space.manual is not None and proposal.candidate == self.space.manual.candidate

    def close(self) -> None:
        """Ends its searches."""
        if self._evolution is not None:
            self._evolution.close()

    def _rank(self, ratio: float, proposal: Proposal) -> None:
        improved = self.ratio is None or ratio < self.ratio * (1 - IMPROVEMENT)
        self.stale = 0 if improved else self.stale + 1
        self._keep(ratio, proposal)

    def _keep(self, ratio: float, proposal: Proposal) -> None:
        if all(other.candidate != proposal.candidate for _, other in self.finalists):
            self.finalists = sorted([*self.finalists, (ratio, proposal)], key=lambda item: item[0])[:FINALISTS]

    def _trials(self, source: str) -> list[Trial]:
        manual = self.space.manual
        rule = (manual.rule, manual.version) if source == "template" and manual else (None, None)
        return [
            trial for trial in self._log.trials
            if trial.kernel == self.kernel.key and trial.source == source and (trial.rule, trial.version) == rule
        ]  # fmt: skip

    def _known(self) -> dict[str, tuple[dict[str, Any], float | None]]:
        return {trial.candidate: (trial.choices, trial.ratio) for trial in self._trials("template")}

    def _trial(
        self, proposal: Proposal, result: Measurement, seconds: float | None, elapsed_s: float | None
    ) -> Trial:
        return Trial(
            self.kernel.key, proposal.source, proposal.candidate, result.status, seconds,
            result.ratio if result.ok else None, proposal.rule, proposal.version, dict(proposal.choices),
            result.message, None if elapsed_s is None else round(elapsed_s, 3),
        )  # fmt: skip
