"""From a log to schedules: what each kernel of a model gets, and why.

hit        the plan names a searched schedule, and its record is in the database and applies
manual     the plan says so: manual's schedule was not beaten
original   the plan says so: no rule takes the kernel
miss       the plan does not have the kernel, or its record is not there: manual's schedule is taken
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.plan import KernelPlan, Plan
from tvmopt.tuning.log import Log
from tvmopt.tuning.manifest import Manifest, check_manifest, read_manifest

if TYPE_CHECKING:
    from tvm.s_tir import Schedule

    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model

SEARCHED = ("template", "metaschedule")


@dataclass(frozen=True)
class Resolved:
    """What the log says about a kernel. `schedule` is there for a hit; `reason` says why it is a miss."""

    kernel: Kernel
    status: str
    plan: KernelPlan | None = None
    schedule: Schedule | None = None
    reason: str = ""


@dataclass(frozen=True)
class OpenLog:
    """A log that was read and checked. `differences` of the machine it was made on, one line each."""

    path: Path
    manifest: Manifest
    log: Log
    differences: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        """The manifest's plan."""
        return self.manifest.plan

    def resolve(self, kernel: Kernel) -> Resolved:
        """What the log has for `kernel`.

        Raises:
            LogError: its record does not apply.
        """
        plan = self.plan.get(kernel.key)
        if plan is None:
            return Resolved(kernel, "miss", reason="the plan does not have it")
        if plan.source not in SEARCHED:
            return Resolved(kernel, plan.source, plan)
        schedule = self.log.lookup(kernel)
        if schedule is None:
            return Resolved(kernel, "miss", plan, reason=f"the plan says {plan.source}, the database has no record")
        return Resolved(kernel, "hit", plan, schedule)

    def resolve_all(self, kernels: Sequence[Kernel]) -> list[Resolved]:
        """`resolve` for each."""
        return [self.resolve(kernel) for kernel in kernels]


def open_log(path: Path, machine: AnyMachine, model: Model | None = None) -> OpenLog:
    """The log in the directory `path`, checked against the machine and the model to be built.

    Raises:
        LogError: missing, damaged, of another model, target kind or TVM.
    """
    manifest = read_manifest(path)
    differences = check_manifest(manifest, path, machine, model)
    log = Log.read(path)
    log.check_modules()
    return OpenLog(path, manifest, log, tuple(differences))
