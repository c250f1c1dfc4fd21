"""A schedule's ladder: the same rule with its steps taken back one by one, so that each can be timed.

A rung forces the choices of all later steps to what they were before (`Rung.before`), and leaves those of its own and
earlier ones to the rule, which computes them as always. The last rung is manual's schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError
from tvmopt.registry import Recorder

if TYPE_CHECKING:
    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine
    from tvmopt.registry import Rule, Scheduled

def ladder_of(kernel: Kernel, machine: AnyMachine, candidates: Sequence[Rule]) -> list[Any]:
    """The rungs of the rule that schedules `kernel`; raises UsageError where it has none."""
    import importlib

    from tvmopt.registry import apply_rule

    scheduled = apply_rule(kernel, machine, candidates)
    ladders = importlib.import_module(f"tvmopt.schedules.{machine.kind}").LADDERS
    if scheduled is None or scheduled.rule.name not in ladders:
        has = ", ".join(sorted(ladders))
        raise UsageError(f"--ladder: {kernel.op} is scheduled by a rule without one; those with a ladder are {has}")
    return list(ladders[scheduled.rule.name])


class Taken(Recorder):
    """A `choose` that takes the steps above rung `index` back, and remembers every choice."""

    def __init__(self, rungs: Sequence[Any], index: int) -> None:
        super().__init__()
        self._before = {name: before for rung in rungs[index + 1 :] for name, before in rung.before.items()}

    def __call__(self, name: str, candidates: Sequence[Any], default: Any) -> Any:
        """The rule's own value, or what it was before its step."""
        value = default
        if name in self._before:
            before = self._before[name]
            value = {"first": candidates[0], "last": candidates[-1]}.get(before, before)
        self.choices[name] = value
        return value


def schedule_rung(
    kernel: Kernel, machine: AnyMachine, candidates: Sequence[Rule], rungs: Sequence[Any], index: int
) -> Scheduled:
    """`kernel` as rung `index` schedules it."""
    from tvmopt.registry import apply_rule

    scheduled = apply_rule(kernel, machine, candidates, Taken(rungs, index))
    assert scheduled is not None  # the rule took the kernel when its ladder was looked up
    return scheduled
