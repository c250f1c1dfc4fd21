"""`python -m bench.memory MODEL...`: what a deployed network holds in memory, beside ONNX Runtime.

Each contender is what a user would ship: an artifact of tvmopt.export, or an ONNX file. A fresh process imports the
runtime, loads the file, and calls it some times; its resident memory is read off the system after each of these steps.
The network's own cost is what is resident after the calls less what was after the imports: weights, workspace, code.
(The bench's `peak_memory_bytes` is of a process that built the network, and has the compiler in it.)
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.options import add_build_options, build_options, make_parser, run

from .cases import PEER

if TYPE_CHECKING:
    import argparse

    from .cases import Case

CONTENDERS = ("manual", "auto", "onnxruntime")
STEPS = ("imported", "loaded", "called")
_TIMEOUT_S = 1800
_MIB = 2**20


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Bytes resident after each of `STEPS`, and the bytes of the file; `error` where one of the processes failed."""
    path = folder / ("network.so" if case.peer is None else "network.onnx")
    module = f"{__package__}.memory_worker"
    request = {"case": case.to_json(), "path": str(path)}
    row: dict[str, Any] = {"model": case.spec, "contender": case.contender.removeprefix(PEER), "error": None}
    # One process makes the file, with all that takes, and another one loads it.
    for step in ("make", "hold"):
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, step, json.dumps(request)], capture_output=True, text=True,
                timeout=_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {**row, "error": f"not done after {_TIMEOUT_S} s"}
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            return {**row, "error": said.removeprefix("tvmopt: ")}
        row.update(json.loads(done.stdout.splitlines()[-1]))
    return row


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One line a model, the header first: MiB that each contender's network adds to its runtime's."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    found = [["", *(f"{name}, MiB" for name in names), *(f"{name}, file" for name in names)]]
    for spec in dict.fromkeys(row["model"] for row in rows):
        mine = {row["contender"]: row for row in rows if row["model"] == spec}
        own = [_mib(mine[name], lambda row: row["called"] - row["imported"]) for name in names]
        found.append([f"`{spec}`", *own, *(_mib(mine[name], lambda row: row["file_bytes"]) for name in names)])
    return found


def runtimes(rows: Sequence[dict[str, Any]]) -> str:
    """What each runtime itself holds once imported, in words."""
    held: dict[str, float] = {}
    for row in rows:
        if row["error"] is None:
            held.setdefault(row["contender"], row["imported"] / _MIB)
    return ", ".join(f"{name} {mib:.0f} MiB" for name, mib in held.items())


def _mib(row: dict[str, Any], what: Any) -> str:
    return "failed" if row["error"] is not None else f"{what(row) / _MIB:.1f}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "memory", "bench.memory",
        "Resident memory of deployed networks, each in a fresh process that only loads and calls it.",
        ["", "torchvision:resnet18 torchvision:mobilenet_v2 --json memory.json"],
    )  # fmt: skip
    made.add_argument("models", nargs="*", metavar="MODEL", default=["digits_cnn"], help="as for the bench")
    made.add_argument("--contenders", default=",".join(CONTENDERS), metavar="C,...", help="what is measured")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    made.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    add_build_options(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 where a contender failed."""
    args = parser().parse_args(argv)
    from tvmopt.errors import UsageError

    from . import commands, environment, results
    from .cases import VARIANTS, Case
    from .peers import installed
    from .recipes.common import show

    names = args.contenders.split(",")
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise UsageError(f"--contenders {unknown[0]}: unknown; choose from {', '.join(CONTENDERS)}")
    peers, skipped = installed([name for name in names if name not in VARIANTS])
    names = [name for name in names if name in VARIANTS or name in peers]
    for line in skipped:
        print(line, file=sys.stderr)
    options = build_options(args)
    if args.json is not None:
        results.check_writable(args.json, "--json")
    machine = options.cpu("bench.memory")
    options = dataclasses.replace(options, threads=machine.cores)
    described = environment.describe(machine, machine.cores)
    described["command"] = commands.recorded("bench.memory", sys.argv[1:] if argv is None else argv)
    specs = [args.models] if isinstance(args.models, str) else args.models
    rows = []
    for spec in specs:
        for name in names:
            print(f"{spec}: {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="tvmopt-memory-") as folder:
                rows.append(measure(Case(spec, name if name in VARIANTS else PEER + name, options), Path(folder)))
            if args.json is not None:
                results.write(results.document({**described, "memory": rows}, []), args.json)
    print("resident memory of the network, above what its runtime holds once imported; and its file")
    show(lines(rows), args.markdown)
    print(f"\nthe runtimes, once imported: {runtimes(rows)}")
    for row in rows:
        if row["error"] is not None:
            print(f"{row['model']}, {row['contender']}: {row['error']}", file=sys.stderr)
    return 1 if any(row["error"] is not None for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
