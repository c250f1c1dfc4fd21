"""HOW it is computed: schedule rules, one file an operator and strategy, written to be read.

A rule is `rule(sch, kernel, machine, choose) -> Schedule | None`. It changes `sch`, a `tvm.s_tir.Schedule` of the
kernel's function, and returns it, or returns `None` where the kernel is not of its kind. Every number it decides, it
decides through `choose(name, candidates, default)`: by hand the default is taken, which the rule computes from the
machine; in tuning the candidates are the search space. A programming error inside a rule propagates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

Value = TypeVar("Value", int, str)


class Kernel(Protocol):
    """What a rule may know of a kernel."""

    name: str
    op: str
    func: Any
    flops: int
    bytes: int


class Choose(Protocol):
    """How a rule decides a number: `default` by hand, one of `candidates` in tuning."""

    def __call__(self, name: str, candidates: Sequence[Value], default: Value) -> Value: ...


Rule = Callable[..., Any]
