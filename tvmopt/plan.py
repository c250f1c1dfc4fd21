"""What each kernel of a model is built with: what a tuning log's manifest keeps and a variant is built from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

SOURCES = ("template", "metaschedule", "manual", "original")


@dataclass(frozen=True)
class KernelPlan:
    """One kernel's schedule.

    `name` as in its module (for people), `key` as `Kernel.key` (what it is matched by). `source`: a rule searched as
    a template, MetaSchedule's general space, the rule's own defaults, or no schedule. `rule`, `version` and
    `choices` are those of the rule where there is one. `seconds` per call, and `baseline_seconds` manual's in the
    same measurement; None where it was not measured.
    """

    name: str
    key: str
    source: str
    rule: str | None = None
    version: int | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    baseline_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> KernelPlan:
        """From `to_json`'s dict; raises ValueError for anything else."""
        try:
            plan = cls(**data)
        except TypeError:
            raise ValueError("not a kernel's plan") from None
        texts = isinstance(plan.name, str) and isinstance(plan.key, str) and isinstance(plan.choices, dict)
        if not texts or plan.source not in SOURCES:
            raise ValueError("not a kernel's plan")
        return plan


@dataclass(frozen=True)
class Plan:
    """The plans of a model's kernels, found by key."""

    kernels: tuple[KernelPlan, ...] = ()

    def __iter__(self) -> Iterator[KernelPlan]:
        return iter(self.kernels)

    def __len__(self) -> int:
        return len(self.kernels)

    def get(self, key: str) -> KernelPlan | None:
        """The plan of the kernel with this key."""
        return next((plan for plan in self.kernels if plan.key == key), None)

    def updated(self, plans: Iterable[KernelPlan]) -> Plan:
        """With `plans` in the place of those with the same keys, new ones behind."""
        new = {plan.key: plan for plan in plans}
        kept = tuple(new.pop(plan.key, plan) for plan in self.kernels)
        return Plan(kept + tuple(new.values()))

    def to_json(self) -> list[dict[str, Any]]:
        """A list of plain dicts."""
        return [plan.to_json() for plan in self.kernels]

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """From `to_json`'s list; raises ValueError for anything else."""
        if not isinstance(data, list):
            raise ValueError("the plan is not a list")
        return cls(tuple(KernelPlan.from_json(item) for item in data))
