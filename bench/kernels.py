"""`python -m bench.kernels`: single kernels as original, manual, auto and through PyTorch, beside the machine's roof.

The roof is what the machine reaches in the same run: its multiply-add peak where operations bind, the bandwidth of the
cache or memory that holds the kernel's bytes where these do ("Roofline", Williams, Waterman and Patterson, 2009).

Contenders take turns in random order. A turn is quiet when both reference loops of tvmopt/runtime/peak.py, right
before and right after the kernel, ran within 4% of the peak, and no process of this machine took a core from it
meanwhile: then nobody else used the cores. The kernel's own time plays no part in that. Figures are medians over the
quiet turns, with all turns kept beside them; where too few were quiet they are those of all turns, and marked.
Weights are packed ahead of time, as in a compiled network; everything else, padding and epilogue included, is timed.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError, VerificationError
from tvmopt.options import make_parser, positive_int, run, sparsities, strategy
from tvmopt.options import names as names_of

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from tvmopt.machine import Machine

    from .process import Worker

# --help must not import what builds; a test compares it with kernel_cases.OPERATORS.
OPS = ("conv2d", "gemm", "batch_matmul", "max_pool2d", "softmax")
SPARSE = ("conv2d", "gemm")
_OURS = ("original", "manual", "auto")
_TORCH = "torch"
_FORMS = ("tir", "llvm", "asm")
_PREPARE_TIMEOUT_S = 900.0
_TURN_TIMEOUT_S = 120.0
# A contender this slow gets as few turns as there can be.
_SLOW_S = 0.5
_FEWEST_TURNS = 3


@dataclasses.dataclass
class Turns:
    """What was measured of one contender, turn by turn.

    Seconds a call; the two references before and after, in GFLOP/s; how often the system took a core from it.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    before: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    after: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    interruptions: list[int] = dataclasses.field(default_factory=list)
    rounds: list[int] = dataclasses.field(default_factory=list)
    spent_s: float = 0.0

    def quiet(self, peak: float) -> list[bool]:
        """Whether all four references reached `peak`, within 4%, and nothing took a core in between."""
        from tvmopt.runtime.peak import QUIET

        return [
            interrupted == 0 and min(*before, *after) >= QUIET * peak
            for before, after, interrupted in zip(self.before, self.after, self.interruptions, strict=True)
        ]

    def counted(self, peak: float) -> tuple[list[float], list[int]]:
        """The times, in seconds, and rounds of the quiet turns; of all where too few were."""
        from .results import FEWEST_QUIET

        quiet = self.quiet(peak)
        kept = [i for i, is_quiet in enumerate(quiet) if is_quiet or sum(quiet) < FEWEST_QUIET]
        return [self.seconds[i] for i in kept], [self.rounds[i] for i in kept]

    def peaks(self) -> list[float]:
        """GFLOP/s over registers, of each turn: the better of before and after."""
        return [max(before[0], after[0]) for before, after in zip(self.before, self.after, strict=True)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """`quiet` turns of every contender, or `limit_s` seconds of its turns."""

    variants: tuple[str, ...] = (*_OURS, _TORCH)
    quiet: int = 20
    limit_s: float = 20.0
    log_dir: str = "tuning_logs"
    schedules_dir: str | None = None
    strategies: dict[str, str] = dataclasses.field(default_factory=dict)
    ladder: bool = False
    show: str | None = None
    sparsities: tuple[float, ...] = ()
    method: str = "block-16x1"


def measure(op: str, shape: str, machine: Machine, settings: Settings) -> tuple[list[dict[str, Any]], list[str]]:
    """Builds, verifies and times the contenders of one kernel.

    Returns:
        A result of the bench's schema for each, and what there is to say beside them. `samples_ms` has one time a
        turn, `quiet` says which turns were, `shares` how much of the roof each reached; `latency_ms`, `gflops`,
        `bytes_per_s` and `peak_fraction` are of the quiet turns, or of all where the result is `unstable`.

    Raises:
        UsageError: a shape of another form. WorkerError: a contender that cannot be built, or is wrong.
    """
    from .process import Worker, worker_command

    command = worker_command("kernel_worker")
    request = {
        "do": "prepare", "op": op, "shape": shape, "threads": machine.cores, "log_dir": settings.log_dir,
        "schedules_dir": settings.schedules_dir, "ladder": settings.ladder, "strategies": settings.strategies,
        "sparsities": list(settings.sparsities), "method": settings.method,
    }  # fmt: skip
    ours = [name for name in settings.variants if name != _TORCH]
    tvm = Worker(machine.cores, command)
    peers = {}
    try:
        facts = tvm.ask({**request, "contenders": ours}, _PREPARE_TIMEOUT_S)
        if _TORCH in settings.variants and not settings.ladder:
            peers[_TORCH] = Worker(machine.cores, command)
            torch_facts = peers[_TORCH].ask({**request, "contenders": [_TORCH]}, _PREPARE_TIMEOUT_S)
            facts["errors"].update(torch_facts["errors"])
        turns = take_turns(tvm, peers, [*facts["contenders"], *peers], settings)
        for worker in (tvm, *peers.values()):
            for name, error in worker.ask({"do": "finish"}, _PREPARE_TIMEOUT_S)["errors"].items():
                facts["errors"][name] = max(facts["errors"][name], error)
        notes = [f"{name}: {why}" for name, why in facts["missing"].items()]
        if settings.show:
            shown = list(facts["contenders"]) if settings.ladder else [name for name in turns if name not in peers][-1:]
            for name in shown:
                text = tvm.ask({"do": "show", "name": name, "form": settings.show}, _PREPARE_TIMEOUT_S)["text"]
                notes.append(f"--- {op} {shape}, {name}, {settings.show}\n{text}")
    finally:
        for worker in (tvm, *peers.values()):
            worker.stop()
    peak = max(max(*pair) for one in turns.values() for pair in (*one.before, *one.after))
    return [_row(op, shape, name, one, facts, peak, machine, settings) for name, one in turns.items()], notes


def take_turns(tvm: Worker, peers: dict[str, Worker], names: Sequence[str], settings: Settings) -> dict[str, Turns]:
    """Turns of the contenders `names`, those of `peers` in their own processes, all others in `tvm`'s."""
    turns = {name: Turns() for name in names}
    shuffle = random.Random(0).shuffle
    waiting, number = list(names), 0
    while waiting:
        order = list(waiting)
        shuffle(order)
        for name in order:
            began = time.monotonic()
            if name in peers:
                before = tvm.ask({"do": "references"}, _TURN_TIMEOUT_S)["references"]
                tvm.settle()
                answer = peers[name].ask({"do": "turn", "name": name}, _TURN_TIMEOUT_S)
                peers[name].settle()
                answer["before"] = before
                answer["after"] = tvm.ask({"do": "references"}, _TURN_TIMEOUT_S)["references"]
            else:
                answer = tvm.ask({"do": "turn", "name": name}, _TURN_TIMEOUT_S)
            one = turns[name]
            one.seconds.append(answer["seconds"])
            one.before.append(tuple(answer["before"]))
            one.after.append(tuple(answer["after"]))
            one.interruptions.append(answer["interruptions"])
            one.rounds.append(number)
            one.spent_s += time.monotonic() - began
        peak = max(max(*pair) for one in turns.values() for pair in (*one.before, *one.after))
        waiting = [name for name in waiting if not _enough(turns[name], peak, settings)]
        number += 1
    return turns


def _enough(turns: Turns, peak: float, settings: Settings) -> bool:
    if len(turns.seconds) < _FEWEST_TURNS:
        return False
    slow = min(turns.seconds) > _SLOW_S
    return slow or sum(turns.quiet(peak)) >= settings.quiet or turns.spent_s >= settings.limit_s


def _row(
    op: str, shape: str, name: str, turns: Turns, facts: dict[str, Any], peak: float, machine: Machine,
    settings: Settings,
) -> dict[str, Any]:  # fmt: skip
    """The result of one contender; raises VerificationError for a time that cannot be."""
    import numpy as np

    from . import statistics
    from .results import FEWEST_QUIET, empty_row

    contender = facts["contenders"].get(name, {})
    sizes = contender.get("kernel", facts["kernel"])
    flops, size = sizes["flops"], sizes["bytes"]
    bandwidth = facts["bandwidths"].get(str(size), facts["bandwidth"])
    quiet = turns.quiet(peak)
    unstable = sum(quiet) < FEWEST_QUIET
    counted = [i for i, is_quiet in enumerate(quiet) if is_quiet or unstable]
    roofs = [max(flops / (p * 1e9), size / bandwidth) for p in turns.peaks()]
    shares = [roof / seconds for roof, seconds in zip(roofs, turns.seconds, strict=True)]
    samples = [seconds * 1e3 for seconds in turns.seconds]
    used = [samples[i] for i in counted]
    median_s = float(np.median(used)) * 1e-3
    share = float(np.median([shares[i] for i in counted]))
    bound = "arithmetic" if flops / (peak * 1e9) >= size / bandwidth else "memory"
    # The bandwidth is measured for a power of two: bytes that lie better in a cache may pass it by a little.
    # Winograd's operations are counted as a direct convolution's, of which it needs down to a quarter.
    labels = contender.get("labels", {})
    way = str(labels.get("strategy", settings.strategies.get(op)))
    if share > (4.0 if "winograd" in way else 1.02 if bound == "arithmetic" else 1.5):
        raise VerificationError(f"{op} {shape}, {name}: {share:.0%} of the roof cannot be: measured wrongly, repeat it")
    return {
        **empty_row(),
        "model": f"{op}:{shape}",
        "variant": f"peer:{name}" if name == _TORCH else f"rung:{name}" if settings.ladder else name,
        "target": "llvm",
        "dtype": "float32",
        "batch": 1,
        "latency_ms": statistics.summary(used),
        "samples_ms": samples,
        "compile_s": contender.get("compile_s"),
        "max_abs_err": facts["errors"][name],
        "flops": flops,
        "threads": machine.cores,
        "strategy": ",".join(f"{op}={way}" for op, way in sorted(settings.strategies.items())) or "default",
        "ci95": list(statistics.median_ci95(used, range(len(used)))),
        "unstable": unstable,
        "rounds": turns.rounds,
        "op": op,
        "shape": shape,
        "gflops": flops / median_s * 1e-9,
        "bytes_per_s": size / median_s,
        "peak_fraction": share,
        "bound": bound,
        "peak_fraction_all_turns": float(np.median(shares)),
        "peak_gflops": peak,
        "bandwidth_bytes_per_s": bandwidth,
        "clock_ghz": facts["clock_ghz"],
        "lanes": facts["lanes"],
        "shares": shares,
        "quiet": quiet,
        "choices": contender.get("choices", {}),
        "text": contender.get("text", ""),
        **labels,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "kernels", "bench.kernels",
        "Times single kernels as original, manual, auto and through PyTorch, beside the machine's roof.",
        ["", "--op conv2d --shape 1x256x14x14,256,3,1,1", "--op gemm --shape 512x512x512 --json gemm.json",
         "--op conv2d --ladder", "--op conv2d --shape 1x64x56x56,64,3,1,1 --variants manual --show asm",
         "--op gemm --shape 512x512x512 --tune 60",
         "--op conv2d --shape 1x256x14x14,256,1 --sparsity 0.5,0.8,0.9"],
    )  # fmt: skip
    made.add_argument("--op", type=names_of, metavar="OP,...", help=f"of {', '.join(OPS)}; without it, all of them")
    made.add_argument("--shape", action="append", metavar="S",
                      help="conv2d: NxCxHxW,OUT,KERNEL,STRIDE,PADDING,GROUPS; gemm: MxKxN; batch_matmul: BxMxKxN; "
                      "max_pool2d: NxCxHxW,KERNEL,STRIDE,PADDING; softmax: MxN; repeatable")  # fmt: skip
    made.add_argument("--variants", type=names_of, default=",".join((*_OURS, _TORCH)), metavar="V,...",
                      help="which are timed; auto needs a tuning log with the kernel in it")  # fmt: skip
    made.add_argument("--ladder", action="store_true", help="every rung of the schedule's ladder instead")
    made.add_argument("--show", choices=_FORMS,
                      help="print the TensorIR, LLVM IR or assembly of the last variant, or of every rung")  # fmt: skip
    made.add_argument("--tune", type=positive_int, metavar="N", help="first search a schedule for auto, N candidates")
    made.add_argument("--threads", type=positive_int, metavar="N", help="as many as this process has CPUs")
    made.add_argument("--rounds", type=positive_int, default=20, metavar="N", help="quiet turns of each")
    made.add_argument("--limit", type=positive_int, default=20, metavar="S", help="seconds of turns of each at most")
    made.add_argument("--log-dir", type=Path, default=Path("tuning_logs"), metavar="DIR", help="where tuning logs are")
    made.add_argument("--strategy", type=strategy, metavar="OP=WAY", help="conv2d=direct, gemm or winograd")
    made.add_argument("--sparsity", type=sparsities, default=(), metavar="S,...",
                      help="sparse kernels of conv2d and gemm at these shares of zeros, beside each dense strategy")
    made.add_argument("--method", choices=("block-16x1", "block-16x4", "unstructured"),
                      default="block-16x1",
                      help="what is zeroed: blocks of 16 output channels by 1 or 4 input channels, or single weights")
    made.add_argument("--schedules", metavar="DIR", help="schedule rules of your own")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return made


def wanted_kernels(ops: Sequence[str] | None, shapes: Sequence[str] | None) -> list[tuple[str, str]]:
    """(operator, shape) of what was asked for; raises UsageError where that names nothing."""
    from .kernel_cases import OPERATORS, layer

    for op in ops or ():
        if op not in OPERATORS:
            raise UsageError(f"--op {op}: unknown; choose from {', '.join(OPERATORS)}")
    if not shapes:
        return [(op, shape) for op in ops or OPERATORS for shape in OPERATORS[op].defaults]
    if not ops or len(ops) > 1:
        raise UsageError("--shape needs --op with one operator, whose shape it is")
    for shape in shapes:
        layer(ops[0], shape)
    return [(ops[0], shape) for shape in shapes]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes."""
    args = parser().parse_args(argv)
    unknown = [name for name in args.variants if name not in (*_OURS, _TORCH)]
    if unknown or not args.variants:
        raise UsageError(f"--variants {','.join(unknown) or 'none'}: choose from {', '.join((*_OURS, _TORCH))}")
    if args.ladder and not args.op:
        args.op = ("conv2d", "gemm", "batch_matmul")
    wanted = wanted_kernels(args.op, args.shape)
    if args.sparsity and (args.ladder or args.tune or args.strategy):
        raise UsageError("--sparsity measures every dense strategy itself: leave --ladder, --tune and --strategy out")
    if args.sparsity:
        wanted = [(op, shape) for op, shape in wanted if op in SPARSE or args.op]
        for op in {op for op, _ in wanted} - set(SPARSE):
            raise UsageError(f"--sparsity: {op} has no sparse kernel; choose from {', '.join(SPARSE)}")
    from rich.console import Console

    from tvmopt.machine import configure_threads, detect

    from . import commands, environment, kernel_table, results, sparsity_table

    if args.json is not None:
        results.check_writable(args.json, "--json")
    machine = detect(args.threads)
    configure_threads(machine.cores)
    settings = Settings(
        args.variants, args.rounds, args.limit, str(args.log_dir), args.schedules, args.strategy or {}, args.ladder,
        args.show, args.sparsity, args.method,
    )  # fmt: skip
    described = environment.describe(machine, machine.cores)
    described["command"] = commands.recorded("bench.kernels", sys.argv[1:] if argv is None else argv)
    console = Console(emoji=False, width=None if sys.stdout.isatty() else 160)
    print(machine.describe(), file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for op, shape in wanted:
        if args.tune:
            _tune(op, shape, args, machine)
        measured, notes = measure(op, shape, machine, settings)
        rows += measured
        _print(console, kernel_table.terminal(measured), kernel_table.notes(measured) + notes)
        if args.json is not None:
            # After each: a long list that is interrupted keeps what it has.
            described["load_after"] = environment.load()
            results.write(results.document(described, rows), args.json)
    if args.sparsity:
        print("\n".join(sparsity_table.summary(rows)))
    return 0


def _tune(op: str, shape: str, args: argparse.Namespace, machine: Machine) -> None:
    from tvmopt.options import BuildOptions
    from tvmopt.tune import tune

    from .kernel_cases import layer

    schedules = Path(args.schedules) if args.schedules else None
    options = BuildOptions(
        threads=machine.cores, log_dir=args.log_dir, schedules_dir=schedules, strategies=args.strategy or {}
    )
    tune(layer(op, shape), trials=args.tune, options=options)


def _print(console: Console, table: Any, notes: Sequence[str]) -> None:
    console.print(table)
    for note in notes:
        print(note)


if __name__ == "__main__":
    raise SystemExit(run(main))
