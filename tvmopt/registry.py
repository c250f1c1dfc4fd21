"""The one place where schedule rules are found: those of `schedules/`, and those of a user's own directory."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError, one_line

if TYPE_CHECKING:
    import tvm
    from tvm.s_tir import Schedule

    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine

Choices = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A schedule rule: its name and version stand in tuning logs; a record of another version is not replayed."""

    name: str
    version: int
    function: Callable[..., Any]


@dataclass(frozen=True)
class Scheduled:
    """A kernel scheduled by a rule: the schedule, and every choice that was made on the way."""

    rule: Rule
    choices: Choices
    schedule: Schedule


def rules(target_kind: str = "cpu", schedules_dir: str | Path | None = None) -> list[Rule]:
    """All rules for a kind of machine, the user's first, then ours from the most special to the most general.

    A user's directory holds Python files with `RULES = [(name, version, function), ...]`.

    Raises:
        UsageError: `schedules_dir` is no directory, or a file in it cannot be imported or has no `RULES`.
    """
    found: list[Rule] = []
    if schedules_dir is not None:
        directory = Path(schedules_dir)
        files = sorted(directory.glob("*.py")) if directory.is_dir() else []
        if not files:
            raise UsageError(f"--schedules {schedules_dir}: no directory with Python files in it")
        for file in files:
            found += _load(file)
    ours = importlib.import_module(f"tvmopt.schedules.{target_kind}")
    return found + [Rule(*entry) for entry in ours.RULES]


def write_kernels(module: tvm.IRModule, target_kind: str = "cuda") -> tvm.IRModule:
    """`module` with every kernel whose schedule only says which function to put in its place, as that function.

    TVM's schedule primitives do not lead to all instructions: what uses others is written in TIRx. Until it is built,
    such a kernel is a schedule like every other: logged, replayed, sent to workers.
    """
    from tvm import tirx

    from tvmopt.graph.gpu_pipeline import IN_TIRX

    ours = importlib.import_module(f"tvmopt.schedules.{target_kind}")
    updated = dict(module.functions_items())
    for var, func in module.functions_items():
        made = (write(func) for write in ours.WRITTEN) if isinstance(func, tirx.PrimFunc) else ()
        found = next((one for one in made if one is not None), None)
        if found is not None:
            updated[var] = found.with_attr(IN_TIRX, True)
    return type(module)(updated, attrs=module.attrs)


def _load(file: Path) -> list[Rule]:
    name = f"tvmopt_user_schedules_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"--schedules: {file} cannot be imported: {one_line(error)}") from error
    if not hasattr(module, "RULES"):
        raise UsageError(f"--schedules: {file} has no RULES = [(name, version, function), ...]")
    return [Rule(*entry) for entry in module.RULES]


class Recorder:
    """A `choose` that takes what it is told, else the default, and remembers names, candidates and values."""

    def __init__(self, choices: Mapping[str, Any] | None = None) -> None:
        self.given = dict(choices or {})
        self.choices: Choices = {}
        self.candidates: dict[str, list[Any]] = {}

    def __call__(self, name: str, candidates: Sequence[Any], default: Any) -> Any:
        """Decide `name`; a told value that is no candidate is taken as the default (the space may have changed)."""
        options = list(dict.fromkeys([default, *candidates]))
        value = self.given.get(name, default)
        if value not in options:
            value = default
        self.candidates[name] = options
        self.choices[name] = value
        return value


def apply_rule(
    kernel: Kernel, machine: AnyMachine, candidates: Sequence[Rule], choose: Callable[..., Any] | None = None
) -> Scheduled | None:
    """Schedule `kernel` by the first rule that does not decline; None where all do.

    `choose` decides the rule's numbers; without it the rule's own defaults are taken.
    """
    import tvm
    from tvm.s_tir import Schedule

    for rule in candidates:
        # A deep copy: some primitives (reorder) change a function in place, even where others refer to it.
        func = copy.deepcopy(kernel.func).with_attr("global_symbol", "main")
        schedule = Schedule(tvm.IRModule({"main": func}))
        recorder = choose if isinstance(choose, Recorder) else Recorder()
        result = rule.function(schedule, kernel, machine, choose or recorder)
        if result is not None:
            return Scheduled(rule, dict(recorder.choices), result)
    return None
