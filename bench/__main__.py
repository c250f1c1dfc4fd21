"""`python -m bench`: original, manual and auto beside what a user would run instead."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.compress.one_shot import add_options
from tvmopt.errors import UsageError
from tvmopt.options import (
    add_build_options,
    build_options,
    duration,
    make_parser,
    names,
    positive_int,
    run,
)

if TYPE_CHECKING:
    import argparse

    from .measure import Data
    from .pruned import Pruned
    from .turns import Report, Settings

# Literal, because --help must not import what measures; a test compares them with where they are defined.
_VARIANTS = "original,manual,auto"
_PEERS = "torch,inductor,onnxruntime,openvino"
# A load average above this is others at work.
_BUSY = 0.5
_QUICK_SAMPLES, _QUICK_LIMIT_S = 6, 1.0


def parser() -> argparse.ArgumentParser:
    """The command line of `bench`."""
    made = make_parser(
        "bench",
        "bench",
        "Measures latency, accuracy and size of a model's variants and of the peers a user would run instead, "
        "each in a process of its own, taking turns.",
        [
            "",
            "torchvision:resnet18 --peers onnxruntime,openvino",
            "torchvision:resnet18 --variants manual --peers none --threads 1",
            "my_model.py:make --batch 8 --json out.json",
            "torchvision:resnet18 --variants manual --peers none --profile",
            "--quick --report report.html",
            "--sparsity 0,0.5,0.9 --method block --peers none",
        ],
    )
    made.add_argument("models", nargs="*", metavar="MODEL", default="digits_cnn",
                      help="digits_cnn, torchvision:NAME, FILE.py:FACTORY or MODEL.pt2")  # fmt: skip
    group = made.add_argument_group("what is compared, and how long")
    group.add_argument("--variants", type=names, default=_VARIANTS, metavar="V,...", help="our variants, or none")
    group.add_argument("--peers", type=names, default=_PEERS, metavar="P,...",
                       help="peers, or none; torch-channels-last is one more; on a GPU torch, torch-channels-last, "
                       "inductor and inductor-max-autotune")  # fmt: skip
    group.add_argument("--samples", type=positive_int, default=30, help="the fewest samples of a contender")
    group.add_argument("--time-limit", type=duration, default="5s",
                       help="how long a contender is timed at most; one not precise by then is marked")  # fmt: skip
    group.add_argument("--cold", action="store_true",
                       help="time calls with cold caches, too, in rows of their own")  # fmt: skip
    group.add_argument("--quick", action="store_true", help="a few samples, to see that all works; not saved")
    group.add_argument("--profile", action="store_true",
                       help="time every kernel of our variants alone, beside the machine's roof")  # fmt: skip
    group.add_argument("--dataset", metavar="D",
                       help="what accuracy is measured on: digits, mnist, fashionmnist, cifar10, cifar100, an image "
                       "folder, or none; built-in models have their own")  # fmt: skip
    group.add_argument("--data-dir", metavar="DIR", help="where data sets are")
    group.add_argument("--limit", type=positive_int, help="the most images accuracy is measured on")
    add_options(group, "measure", "; auto is what tune found with the same options")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    group.add_argument("--report", type=Path, metavar="FILE",
                       help="write charts and tables to this HTML page; implies --profile")  # fmt: skip
    group.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    add_build_options(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and saves; 1 where a variant of ours failed."""
    args = parser().parse_args(argv)
    options = build_options(args)
    from tvmopt.machine import GpuMachine
    from tvmopt.model import check_spec

    from . import commands, environment, on_gpu, report, results, table
    from .cases import contenders
    from .measure import Data
    from .peers import installed
    from .pruned import networks
    from .turns import Settings

    specs = tuple(dict.fromkeys([args.models] if isinstance(args.models, str) else args.models))
    if args.json is not None:
        results.check_writable(args.json, "--json")
    if args.report is not None:
        report.check(args.report, "--report")
    peers, skipped = installed(args.peers, options.kind)
    # Wrong names are told before TVM is loaded, which `machine` does.
    contenders(specs, args.variants, peers, options)
    if len(specs) == 1:
        check_spec(specs[0].strip())
    if args.dataset == "none" and args.limit:
        raise UsageError("--limit has no meaning without a data set")
    machine = options.machine()
    if isinstance(machine, GpuMachine):
        if args.profile:
            raise UsageError("--profile times kernels on a CPU only")
        on_gpu.require(machine)
    options = dataclasses.replace(options, threads=machine.cores)
    for line in (machine.describe(), *skipped):
        print(line, file=sys.stderr)
    settings = Settings(samples=args.samples, time_limit_s=args.time_limit, cold=args.cold)
    if args.quick:
        settings = Settings(samples=min(args.samples, _QUICK_SAMPLES), time_limit_s=_QUICK_LIMIT_S, cold=args.cold)
    data = Data(None if args.dataset == "none" else args.dataset, args.dataset is None, args.data_dir, args.limit)
    described = environment.describe(machine, machine.cores)
    described["command"] = commands.recorded("bench", sys.argv[1:] if argv is None else argv)
    described["settings"] = {"samples": settings.samples, "time_limit_s": settings.time_limit_s, "quick": args.quick}
    described["skipped_peers"] = skipped
    if (described["load_before"] or 0.0) > _BUSY:
        print(f"this machine is busy (load {described['load_before']}): times will be too long", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        wanted = networks(specs, args.sparsity, args.method, options, Path(folder))
        rows = _measure_all(
            {one: contenders([one.source], args.variants, peers, one.options)[one.source] for one in wanted},
            settings, data, options.kind == "llvm" and (args.profile or args.report is not None),
        )  # fmt: skip
    described["load_after"] = environment.load()
    document = results.document(described, rows)
    _save(document, args)
    _show(document, args.markdown, table)
    if args.report is not None:
        name = str(args.json or "this run")
        print(f"report: {report.write([(name, document)], args.report)}", file=sys.stderr)
    return 1 if any(row["error"] and not row["variant"].startswith("peer:") for row in rows) else 0


def _measure_all(cases: dict[Pruned, Any], settings: Settings, data: Data, profile: bool) -> list[dict[str, Any]]:
    """The rows of all models. A model that cannot be loaded ends the run only where it is the only one."""
    from .measure import failed_rows, measure
    from .process import WorkerError
    from .progress import Progress

    rows: list[dict[str, Any]] = []
    for network, model_cases in cases.items():
        own = data if data.name or network.dataset is None else dataclasses.replace(data, name=network.dataset)
        with Progress(network.title, [case.name for case in model_cases], settings.samples) as progress:
            report: Report = progress.report
            try:
                found = measure(model_cases, settings, own, report, profile=profile)
            except WorkerError as error:
                if len(cases) == 1:
                    raise
                found = failed_rows(model_cases, error)
        rows += [{**row, "model": network.spec} for row in found] if network.is_pruned else found
    return rows


def _save(document: dict[str, Any], args: argparse.Namespace) -> None:
    from . import results

    if args.json is not None:
        results.write(document, args.json)
    if args.quick or all(row["latency_ms"] is None for row in document["results"]):
        return
    path = results.write(document, results.saved_path(results.results_root(), document["environment"]))
    print(f"saved as {path}", file=sys.stderr)


def _show(document: dict[str, Any], markdown: bool, table: Any) -> None:
    from rich.console import Console

    from . import profile

    groups = table.by_model(document["results"]).values()
    # A pipe has no width of its own, and a table wrapped at 80 columns cannot be read.
    console = Console(emoji=False, width=None if sys.stdout.isatty() else 160)
    for rows in groups:
        if markdown:
            print(table.markdown(rows))
        else:
            console.print(table.terminal(rows))
            for note in table.notes(rows):
                console.print(note, markup=False, highlight=False, soft_wrap=True)
    for row in document["results"]:
        if "profile" in row:
            heading = f"{row['model']}, {row['variant']}, kernel by kernel"
            kernels = profile.cells(row["profile"])
            if markdown:
                print(table.markdown_grid(heading, profile.HEADER, kernels, left=2))
            else:
                console.print(table.grid(heading, profile.HEADER, kernels, left=2))
            print(profile.conclusion(row))
    if importlib.util.find_spec("scipy") is None:
        # A GPU machine may have none: every sample is in the JSON, to be compared elsewhere.
        print("contenders are not compared: scipy is not installed here")
        return
    for rows in groups:
        print(table.conclusion(rows))


if __name__ == "__main__":
    raise SystemExit(run(main))
