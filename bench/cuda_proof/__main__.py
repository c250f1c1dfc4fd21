"""`python -m bench.cuda_proof`: the CUDA rules at boundary shapes, compiled and executed, on a machine without a GPU.

Every case is compiled by nvcc for every architecture and its machine code is looked at (registers, spills, shared
memory, instructions); those not on tensor cores are built for OpenCL too and run on the CPU through PoCL, between
guard zones, against PyTorch in float64. That finds wrong indices and bounds. Races and asynchronous copies show on a
GPU only: there `--steps gpu` runs the same cases, tensor cores and all, and compute-sanitizer can watch it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError
from tvmopt.options import make_parser, names, positive_int, run

if TYPE_CHECKING:
    import argparse

# --help must not import what builds; a test compares them with prove.STEPS and cases.every.CASES.
STEPS = ("compile", "execute", "gpu")
RULES = (
    "wgmma", "tensor_core", "split_k", "product", "winograd", "sparse", "depthwise", "pool", "rows", "columns",
    "elementwise",
)  # fmt: skip
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")
# Cases of each rule: four minutes on two cores.
LIMIT = 6


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "cuda_proof", "bench.cuda_proof",
        "Compiles and executes the CUDA rules at boundary shapes, on a machine without a GPU.",
        ["", "--limit 20 --json proof.json", "--all --json proof.json", "--rule product,split_k --steps execute",
         "--arch sm_90 --steps compile --markdown", "--steps gpu"],
    )  # fmt: skip
    made.add_argument("--rule", type=names, default=",".join(RULES), metavar="R,...", help="cases of which rules")
    made.add_argument("--arch", type=names, default=",".join(ARCHITECTURES), metavar="A,...",
                      help="compile for which")  # fmt: skip
    made.add_argument("--steps", type=names, default="compile,execute", metavar="S,...",
                      help="compile (nvcc), execute (on the CPU, by PoCL), gpu (on the one that is here)")  # fmt: skip
    how_many = made.add_mutually_exclusive_group()
    how_many.add_argument("--limit", type=positive_int, default=LIMIT, metavar="N",
                          help="cases of each rule, half of them shapes of networks")  # fmt: skip
    how_many.add_argument("--all", action="store_true", help="every pair of boundary values: 6 minutes an --arch")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file, as they come")
    made.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    return made


def _check(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        raise UsageError(f"{option} {unknown[0] if unknown else 'none'}: choose from {', '.join(known)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Proves and prints; 1 where a case failed, 130 where it was interrupted (with what was done until then)."""
    args = parser().parse_args(argv)
    for option, given, known in (
        ("--rule", args.rule, RULES), ("--arch", args.arch, ARCHITECTURES), ("--steps", args.steps, STEPS),
    ):  # fmt: skip
        _check(option, given, known)
    from .. import results
    from . import prove, table
    from .cases.every import chosen

    if args.json is not None:
        results.check_writable(args.json, "--json")
    prove.require(args.steps)
    cases = [case for rule in args.rule for case in chosen(rule, None if args.all else args.limit)]
    described = _environment(args.steps, sys.argv[1:] if argv is None else argv)
    rows: list[dict[str, Any]] = []

    def write() -> None:
        if args.json is not None:
            results.write(results.document({**described, "cuda_proof": rows}, []), args.json)

    try:
        interrupted = not _go(cases, args, rows, write)
    finally:
        write()
    from ..recipes.common import show

    show(table.lines(rows), args.markdown)
    failed = [row for row in rows if row["problem"] is not None]
    for row in failed:
        print(f"{row['rule']}, {row['shape']}, {row['what']} ({row['arch']}): {row['problem']}", file=sys.stderr)
    if interrupted:
        raise KeyboardInterrupt
    return 1 if failed else 0


def _go(cases: Sequence[Any], args: argparse.Namespace, rows: list[dict[str, Any]], write: Any) -> bool:
    """Proves with a bar on standard error; False where Ctrl-C ended it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from . import prove

    console = Console(stderr=True, emoji=False)
    bars = Progress(
        TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", markup=False), console=console, transient=True,
    )  # fmt: skip
    totals = prove.expected(cases, args.steps, args.arch)
    tasks = {what: bars.add_task(what, total=total, text="") for what, total in totals.items()}
    counts: Counter[str] = Counter()

    def done(row: dict[str, Any]) -> None:
        rows.append(row)
        counts[row["what"]] += 1
        bars.update(tasks[row["what"]], advance=1, text=f"{row['rule']}: {row['shape']}")
        if not len(rows) % 50:
            write()
            if not console.is_terminal:
                said = ", ".join(f"{what} {counts[what]} of {total}" for what, total in totals.items())
                print(said, file=sys.stderr, flush=True)

    try:
        if console.is_terminal:
            with bars:
                prove.prove(cases, args.steps, args.arch, done)
        else:
            prove.prove(cases, args.steps, args.arch, done)
    except KeyboardInterrupt:
        return False
    return True


def _environment(steps: Sequence[str], argv: Sequence[str]) -> dict[str, Any]:
    """Where it was done, with the versions of the compiler and of PoCL."""
    from tvmopt.machine import detect, detect_gpu

    from .. import commands, environment
    from . import device, opencl

    gpu = detect_gpu() if "gpu" in steps else None
    machine = gpu or detect()
    described = environment.describe(machine, machine.cores)
    described["command"] = commands.recorded("bench.cuda_proof", argv)
    if "compile" in steps:
        described["versions"]["nvcc"] = device.nvcc_version()
    if "execute" in steps:
        described["versions"]["pocl"] = opencl.version()
    return described


if __name__ == "__main__":
    raise SystemExit(run(main))
