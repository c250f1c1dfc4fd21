"""`python -m tvmopt.tune`: search schedules for a model's kernels, and keep what is found in a tuning log."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.compress.one_shot import OneShot, add_options
from tvmopt.errors import TargetError, UsageError
from tvmopt.options import (
    BuildOptions,
    Parser,
    add_build_options,
    build_options,
    duration,
    make_parser,
    positive_int,
    run,
)
from tvmopt.tuning.selection import check_selection, kernel_lines, selection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tvmopt.graph.pipeline import Lowered
    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model
    from tvmopt.tuning.fleet import Fleet
    from tvmopt.tuning.manifest import Manifest
    from tvmopt.tuning.network import Compared
    from tvmopt.tuning.session import Report, Settings

SEARCHES = ("template", "metaschedule", "both")


@dataclass(frozen=True)
class Tuned:
    """What a search came to: the log's directory and its manifest, with the plan."""

    path: Path
    manifest: Manifest


def tune(
    model: Model | nn.Module | OneShot | str | None = None,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    target: str = "llvm",
    trials: int | None = None,
    log_dir: str | Path = "tuning_logs",
    *,
    search: str = "template",
    time_budget: float | None = None,
    early_stop: int | None = None,
    seed: int = 0,
    kernels: set[int] | None = None,
    fresh: bool = False,
    options: BuildOptions | None = None,
    report: Report | None = None,
    fleet: Fleet | None = None,
) -> Tuned:
    """Searches schedules for `model`: a spec, that of a network to be pruned, a loaded model, or a module with inputs.

    trials: candidates measured, over all kernels; by default 24 for each kernel with an operator in it, 8 for others.
    time_budget: seconds of search. early_stop: end when no kernel got faster in its last so many candidates.
    kernels: indices of those to tune (`python -m tvmopt.tune --list-kernels`). fresh: forget what was found before.
    options: everything else that decides what is built; `target` and `log_dir` are then its own.
    fleet: other machines to measure on; the log is then one of theirs, in the directory of their machine.

    Raises:
        UsageError: trials below 1, an unknown search or kernel. OutputError: the log cannot be written.
        LogError: the log that is there is damaged or of another model. FleetError: no server, or unequal ones.
    """
    if trials is not None and trials < 1:
        raise UsageError(f"trials={trials}: at least one candidate must be measured to find anything")
    if search not in SEARCHES:
        raise UsageError(f"search={search!r}: choose one of {', '.join(SEARCHES)}")
    options = options or BuildOptions(target={"cpu": "llvm"}.get(target, target), log_dir=Path(log_dir))
    if options.cuda_graphs or options.fast_math:
        name = "cuda_graphs" if options.cuda_graphs else "fast_math"
        raise UsageError(f"{name}: schedules are searched for exact code, kernel by kernel; build from the log with it")
    from tvmopt.machine import GpuMachine, available_cores, configure_threads

    machine = fleet.machine(options, _say) if fleet is not None else options.machine()
    if isinstance(machine, GpuMachine) and not machine.present:
        raise TargetError(
            f"tuning for {machine.arch} measures candidates on the GPU, and it is not here: tune where it is "
            "(bench/gpu/run.sh tune), or build with hand-written schedules: python -m tvmopt.export --target cuda "
            f"--arch {machine.arch} --variant manual"
        )
    from tvmopt.tuning.log import make_writable
    from tvmopt.tuning.session import Settings

    # Before the model is loaded and lowered, which may take a while.
    make_writable(options.log_dir / machine.slug)
    configure_threads(machine.cores if fleet is None else available_cores())
    settings = Settings(search, trials, time_budget, early_stop, seed)
    loaded = _model(model, example_inputs, options)
    return _search(loaded, machine, options, settings, kernels, fresh, report, fleet)


def _say(text: str) -> None:
    print(f"tvmopt: {text}", file=sys.stderr)


def _search(
    model: Model, machine: AnyMachine, options: BuildOptions, settings: Settings, selected: set[int] | None,
    fresh: bool, report: Report | None, fleet: Fleet | None,
) -> Tuned:  # fmt: skip
    from tvmopt.registry import rules
    from tvmopt.tuning.lines import MANIFEST
    from tvmopt.tuning.log import Log
    from tvmopt.tuning.manifest import check_manifest, new_manifest, read_manifest
    from tvmopt.tuning.progress import Progress
    from tvmopt.tuning.rpc_runner import FleetRunner
    from tvmopt.tuning.runner import Runner
    from tvmopt.tuning.session import Session
    from tvmopt.tuning.strategies import measure_strategies
    from tvmopt.variants import log_path_of, lower_model, schedule_kernels

    path = log_path_of(model, machine, options.log_dir, options.strategies)
    manifest = new_manifest(model, machine, options.strategies, settings.search, settings.seed)
    goes_on = (path / MANIFEST).is_file() and not fresh
    if goes_on:
        earlier = read_manifest(path)
        check_manifest(earlier, path, machine, model)
        manifest = replace(
            earlier, machine=manifest.machine, target=manifest.target, versions=manifest.versions,
            model=manifest.model,
        )  # fmt: skip
    log = Log.start(path, fresh=fresh)
    manual = lower_model(model, machine, options.strategies)
    check_selection(selected, manual.kernels)
    found = rules(machine.kind, options.schedules_dir)
    started = time.monotonic()
    with Progress(f"tuning {model.name} for {machine.slug}") as progress:
        told = report or progress
        told.note(machine.describe())
        for name in log.torn:
            told.note(f"{path / name}: its last line was half-written, and dropped")
        strategies = manifest.strategies if goes_on else options.strategies
        if fleet is not None:
            told.note("strategies are as asked for or planned: which is fastest is measured on this machine only")
        elif selected is None:
            strategies = measure_strategies(model, machine, found, strategies, told.note)
        lowered = lower_model(model, machine, strategies, like=manual)
        check_selection(selected, lowered.kernels)
        # What the log knew before stays: of the same network pruned otherwise, too.
        before = manifest.strategies
        manifest = replace(manifest, strategies={**before, **options.strategies, **lowered.strategies})
        differs = lowered.strategies != manual.strategies
        session = Session(
            lowered.kernels, machine, found, log, manifest, settings, told, selected=selected, always_compare=differs,
            compare=lambda _: _compare(manual, lowered, path, model, machine, options, fleet),
            make_runner=Runner if fleet is None else partial(FleetRunner, fleet, told.note),
        )  # fmt: skip
        session.run()
        told.note(f"ended by: {session.ended_by}")
    done = replace(session.manifest, tuning_s=manifest.tuning_s + time.monotonic() - started)
    if differs and done.network.get("kept") == "manual":
        # Manual's plan is one for the kernels of its own lowering.
        plan = schedule_kernels(manual, "manual", machine, schedules_dir=options.schedules_dir).plan
        done = replace(done, strategies={**before, **options.strategies, **manual.strategies}, plan=plan)
    manifest = done
    manifest.write(path)
    return Tuned(path, manifest)


def _compare(
    manual: Lowered, auto: Lowered, path: Path, model: Model, machine: AnyMachine, options: BuildOptions,
    fleet: Fleet | None,
) -> Compared:  # fmt: skip
    """The whole network, manual's first, auto's (as the log at `path` has it by now) second."""
    from tvmopt.graph.pipeline import with_kernels
    from tvmopt.tuning.network import assemble, compare
    from tvmopt.variants import schedule_kernels

    functions = [
        schedule_kernels(lowered, name, machine, log_path=path, schedules_dir=options.schedules_dir).functions
        for lowered, name in ((manual, "manual"), (auto, "auto"))
    ]
    used = {**manual.strategies, **{f"auto {op}": way for op, way in auto.strategies.items()}}
    if fleet is not None:
        from tvmopt.tuning.rpc_runner import compare_networks

        modules = [with_kernels(lowered.module, made) for lowered, made in zip((manual, auto), functions, strict=True)]
        return compare_networks(fleet, machine, modules[0], modules[1], model, used)
    with tempfile.TemporaryDirectory(prefix="tvmopt-tune-") as folder:
        artifacts = {name: Path(folder) / f"{name}.so" for name in ("manual", "auto")}
        for lowered, made, (name, file) in zip((manual, auto), functions, artifacts.items(), strict=True):
            assemble(lowered, made, machine, model, name).export(file)
        first, second = artifacts.items()
        return compare(first, second, model, machine.cores, used)


def _model(model: Any, example_inputs: Any, options: BuildOptions) -> Model:
    from tvmopt.model import Model, from_module

    if isinstance(model, Model):
        return model
    if isinstance(model, OneShot):
        return model.load(options.dtype)
    if model is None or isinstance(model, str):
        return options.load(model)
    if example_inputs is None:
        raise UsageError("tune: a module needs example_inputs beside it")
    return from_module(model, example_inputs)


def parser() -> Parser:
    """The command line."""
    made = make_parser(
        "tune", "tvmopt.tune",
        "Searches schedules for a model's kernels on this machine. What is found is kept under tuning_logs/; another "
        "start goes on from there. Trials, time budget and early stop: the first reached ends the search.",
        ["", "torchvision:resnet18 --time-budget 10m", "digits_cnn --search both --trials 500 --seed 1",
         "torchvision:resnet18 --list-kernels", "torchvision:resnet18 --kernels 0,3-5 --fresh",
         "torchvision:resnet18 --sparsity 0.8,0.9 --method block",
         "torchvision:resnet18 --runner rpc --tracker HOST:9190 --key epyc"],
    )  # fmt: skip
    made.add_argument("model", nargs="?", metavar="MODEL", default="digits_cnn",
                      help="digits_cnn, torchvision:NAME, FILE.py:FACTORY or MODEL.pt2")  # fmt: skip
    group = made.add_argument_group("the search")
    group.add_argument("--search", choices=SEARCHES, default="template",
                       help="the rules' own choices, MetaSchedule's general space, or one after the other")  # fmt: skip
    group.add_argument("--trials", type=positive_int, metavar="N",
                       help="candidates to measure over all kernels; by default 24 a convolution or dense kernel "
                       "(the whole space where it is smaller) and 8 for others")  # fmt: skip
    group.add_argument("--time-budget", type=duration, metavar="T", help="end after 90s, 10m or 1.5h of search")
    group.add_argument("--early-stop", type=positive_int, metavar="N",
                       help="end when no kernel got faster in its last N candidates")  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="of the search's random choices")
    group.add_argument("--kernels", type=selection, metavar="LIST", help="only these, by index: 0,3-5")
    group.add_argument("--list-kernels", action="store_true", help="print the kernels and their indices, and end")
    group.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    add_options(group, "tune", "; each has the trials and the time to itself, and bench finds it by the same options")
    group = made.add_argument_group("where candidates are measured")
    group.add_argument("--runner", choices=("local", "rpc"), default="local",
                       help="this machine, or others through TVM's RPC tracker (tvmopt.serve on each)")  # fmt: skip
    group.add_argument("--tracker", metavar="HOST:PORT", help="where the tracker listens")
    group.add_argument("--key", metavar="NAME", help="of the servers at the tracker: equal machines, all are used")
    # What is found is built from with them.
    add_build_options(made, leave_out=("cuda-graphs", "fast-math"))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parser().parse_args(argv)
    fleet = None
    if args.runner == "rpc":
        from tvmopt.tuning.fleet import Fleet

        fleet = Fleet.parse(args.tracker, args.key)
    elif args.tracker or args.key:
        raise UsageError("--tracker and --key go with --runner rpc")
    options = build_options(args)
    # All of them before the first search, which may take long: a method that is none is told at once.
    networks = [
        OneShot.of(args.model, args.method, share, options) if share else args.model
        for share in dict.fromkeys(args.sparsity or (0.0,))
    ]
    for network in networks:
        if isinstance(network, OneShot):
            print(f"{network.arguments}:", flush=True)
        if args.list_kernels:
            machine = fleet.machine(options, _say) if fleet else options.machine()
            print("\n".join(_kernel_lines(network, machine, options)))
            continue
        try:
            tuned = tune(
                network, trials=args.trials, search=args.search, time_budget=args.time_budget,
                early_stop=args.early_stop, seed=args.seed, kernels=args.kernels, fresh=args.fresh, options=options,
                fleet=fleet,
            )  # fmt: skip
        except KeyboardInterrupt:
            print("tvmopt: interrupted; the log is in order, and the same command goes on from it", file=sys.stderr)
            return 130
        from tvmopt.tuning.progress import result_lines

        print("\n".join([*result_lines(tuned.manifest), f"log: {tuned.path}"]))
    return 0


def _kernel_lines(network: OneShot | str, machine: AnyMachine, options: BuildOptions) -> list[str]:
    from tvmopt.variants import lower_model

    return kernel_lines(lower_model(_model(network, None, options), machine, options.strategies).kernels)


if __name__ == "__main__":
    sys.exit(run(main))
