"""The three variants: one lowering, and a schedule for every kernel by hand, from a tuning log, or none."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.graph.pipeline import DEFAULT_STRATEGIES, Lowered, lower_model, with_kernels
from tvmopt.plan import KernelPlan, Plan
from tvmopt.registry import Rule, apply_rule, rules
from tvmopt.runtime.assemble import assemble

if TYPE_CHECKING:
    import tvm

    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model
    from tvmopt.options import BuildOptions
    from tvmopt.runtime.executable import Compiled

VARIANTS = ("original", "manual", "auto")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scheduling:
    """What every kernel is built with: scheduled functions by name, and the plan they come from.

    `missing` counts kernels whose plan or record was not found in the tuning log; `differences` are those of the
    machine the log was made on, `tuning_s` the seconds its search took.
    """

    functions: dict[str, tvm.tirx.PrimFunc]
    plan: Plan
    missing: int = 0
    differences: tuple[str, ...] = ()
    tuning_s: float | None = None


def schedule_manual(
    kernel: Kernel, machine: AnyMachine, candidates: list[Rule]
) -> tuple[tvm.tirx.PrimFunc, KernelPlan]:
    """`kernel` by the first rule that takes it, with the rule's own numbers; as it is where none does."""
    scheduled = apply_rule(kernel, machine, candidates)
    if scheduled is None:
        return kernel.func, KernelPlan(kernel.name, kernel.key, "original")
    plan = KernelPlan(kernel.name, kernel.key, "manual", scheduled.rule.name, scheduled.rule.version, scheduled.choices)
    return scheduled.schedule.mod["main"], plan


def schedule_kernels(
    lowered: Lowered,
    variant: str,
    machine: AnyMachine,
    *,
    log_path: Path | None = None,
    schedules_dir: Path | None = None,
    model: Model | None = None,
) -> Scheduling:
    """Schedules for all kernels of a variant; auto reads the log at `log_path`, where there is one.

    Raises:
        LogError: the log is damaged, or does not fit this model or target.
    """
    if variant == "original":
        return Scheduling({}, Plan(tuple(KernelPlan(k.name, k.key, "original") for k in lowered.kernels)))
    candidates = rules(machine.kind, schedules_dir)
    opened = None
    if variant == "auto" and log_path is not None and (log_path / "manifest.json").is_file():
        from tvmopt.tuning.resolve import open_log

        opened = open_log(log_path, machine, model)
    functions: dict[str, tvm.tirx.PrimFunc] = {}
    plans = []
    missing = 0
    for kernel in lowered.kernels:
        found = opened.resolve(kernel) if opened is not None else None
        if found is not None and found.schedule is not None and found.plan is not None:
            functions[kernel.name] = found.schedule.mod["main"]
            plans.append(found.plan)
            continue
        missing += variant == "auto" and (found is None or found.status == "miss")
        functions[kernel.name], plan = schedule_manual(kernel, machine, candidates)
        plans.append(plan)
    if opened is None:
        return Scheduling(functions, Plan(tuple(plans)), missing)
    return Scheduling(functions, Plan(tuple(plans)), missing, opened.differences, opened.manifest.tuning_s)


def log_path_of(model: Model, machine: AnyMachine, log_dir: Path, strategies: Mapping[str, str]) -> Path:
    """Where the tuning log of `model` on `machine` lies; a strategy that is not the default has a log of its own."""
    chosen = {name: value for name, value in strategies.items() if DEFAULT_STRATEGIES.get(name) != value}
    suffix = "".join(f"-{name}={value}" for name, value in sorted(chosen.items()))
    return Path(log_dir) / machine.slug / (model.log_name + suffix)


def strategies_of(variant: str, log_path: Path, strategies: Mapping[str, str]) -> dict[str, str]:
    """What a variant is lowered with: for auto what its log has measured, else what is asked for.

    Raises:
        LogError: the log's manifest is damaged.
    """
    if variant == "auto" and (log_path / "manifest.json").is_file():
        from tvmopt.tuning.manifest import read_manifest

        return {**read_manifest(log_path).strategies, **strategies}
    return dict(strategies)


def build_variant(
    model: Model,
    variant: str,
    machine: AnyMachine,
    *,
    log_dir: str | Path = "tuning_logs",
    strategies: Mapping[str, str] | None = None,
    schedules_dir: str | Path | None = None,
    dump_dir: str | Path | None = None,
    cuda_graphs: bool = False,
    fast_math: bool = False,
) -> Compiled:
    """Build `model` as `original`, `manual` or `auto`; `cuda_graphs` and `fast_math` are of a GPU's code.

    auto takes each kernel's schedule from the model's log below `log_dir`, and manual's where that has none, which
    is said in one warning.

    Raises:
        ModelError, UnsupportedOperatorError: the model cannot be imported or lowered.
        LogError: the log is damaged, or belongs to another model.
    """
    started = time.perf_counter()
    chosen = dict(strategies or {})
    dump_path = Path(dump_dir) if dump_dir is not None else None
    log_path = log_path_of(model, machine, Path(log_dir), chosen)
    chosen = strategies_of(variant, log_path, chosen)
    lowered = lower_model(model, machine, chosen, variant=variant, dump_dir=dump_path)
    scheduling = schedule_kernels(
        lowered, variant, machine, log_path=log_path,
        schedules_dir=Path(schedules_dir) if schedules_dir is not None else None, model=model,
    )  # fmt: skip
    for difference in scheduling.differences:
        _log.warning("%s was tuned on another machine: %s", log_path, difference)
    if scheduling.missing:
        from tvmopt.compress.one_shot import OneShot

        # The file of a network that bench pruned is soon gone.
        made = OneShot.of_model(model)
        _log.warning(
            "%d of %d kernels of %s have no record in %s and take manual's schedule; "
            "tune with: python -m tvmopt.tune %s%s",
            scheduling.missing, len(lowered.kernels), model.name, log_path,
            model.spec if made is None else made.arguments,
            " --target cuda" if machine.kind == "cuda" else "",
        )  # fmt: skip
    meta = {
        "model": model.name,
        "variant": variant,
        "dtype": model.dtype,
        "strategies": lowered.strategies,
        "plan": scheduling.plan,
        "tuning_s": scheduling.tuning_s,
    }
    return assemble(
        with_kernels(lowered.module, scheduling.functions), lowered.program, machine, meta,
        dump_dir=dump_path, cuda_graphs=cuda_graphs, fast_math=fast_math, started=started,
    )  # fmt: skip


def build_by_options(model: Model, variant: str, machine: AnyMachine, options: BuildOptions) -> Compiled:
    """`build_variant` with what a command line or `tvmopt.compile` was told."""
    return build_variant(
        model, variant, machine,
        log_dir=options.log_dir, strategies=options.strategies,
        schedules_dir=options.schedules_dir, dump_dir=options.dump_dir,
        cuda_graphs=options.cuda_graphs, fast_math=options.fast_math,
    )  # fmt: skip
