"""`python -m bench.kernels`: single kernels as original, manual, auto and through PyTorch, beside the machine's roof.

The roof is what the machine reaches in the same run: its multiply-add peak where operations bind, the bandwidth of the
cache or memory that holds the kernel's bytes where these do ("Roofline", Williams, Waterman and Patterson, 2009).

Contenders take turns in random order. A turn is quiet when the reference loops of tvmopt/runtime/peak.py, right before
and right after the kernel, came as near to the peak as quiet.py asks, and no process of this machine took a core from
it meanwhile: then nobody else used the cores. The kernel's own time plays no part in that. Figures are medians over the
quiet turns, with all turns kept beside them; where too few were quiet they are those of all turns, and marked.
The contenders' memory is in large pages, if there are any (process.py says why). Weights are packed ahead of time, as
in a compiled network; everything else, padding and epilogue included, is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError, VerificationError, one_line
from tvmopt.options import make_parser, positive_int, run, sparsities, strategy
from tvmopt.options import names as names_of

from .kernel_measure import OURS, TORCH, Settings, Workers, measure

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from tvmopt.machine import Machine

# --help must not import what builds; a test compares it with kernel_cases.OPERATORS.
OPS = ("conv2d", "gemm", "batch_matmul", "max_pool2d", "attention", "softmax", "layer_norm")
SPARSE = ("conv2d", "gemm")
_FORMS = ("tir", "llvm", "asm", "cuda", "ptx")
_DTYPES = ("float32", "float16", "bfloat16")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "kernels", "bench.kernels",
        "Times single kernels as original, manual, auto and through PyTorch, beside the machine's roof.",
        ["", "--op conv2d --shape 1x256x14x14,256,3,1,1", "--op gemm --shape 512x512x512 --json gemm.json",
         "--op conv2d --ladder", "--op conv2d --shape 1x64x56x56,64,3,1,1 --variants manual --show asm",
         "--op gemm --shape 512x512x512 --tune 60", "--list resnet50,square --variants manual",
         "--list all --variants manual --op conv2d --limit 2",
         "--op conv2d --shape 1x256x14x14,256,1 --sparsity 0.5,0.8,0.9",
         "--target cuda --op gemm --shape 4096x4096x4096 --dtype float32,float16",
         "--target cuda --op gemm --shape 1024x1024x1024 --sparsity 0.5,0.8,0.9",
         "--target cuda --arch sm_90 --op gemm --shape 512x512x512 --ladder --show cuda"],
    )  # fmt: skip
    made.add_argument("--op", type=names_of, metavar="OP,...", help=f"of {', '.join(OPS)}; without it, all of them")
    made.add_argument("--shape", action="append", metavar="S",
                      help="conv2d: NxCxHxW,OUT,KERNEL,STRIDE,PADDING,GROUPS; gemm: MxKxN; batch_matmul: BxMxKxN; "
                      "max_pool2d: NxCxHxW,KERNEL,STRIDE,PADDING; attention: HEADSxMxDEPTH; softmax and layer_norm: "
                      "MxN; repeatable")  # fmt: skip
    made.add_argument("--list", type=names_of, metavar="NAME,...",
                      help="the kernels of a network (a MODEL, or torchvision's by its bare name), square (products of "
                      "256 to 4096), or all; --op narrows it")  # fmt: skip
    made.add_argument("--target", choices=("cpu", "cuda"), default="cpu", help="this machine's cores, or its GPU")
    made.add_argument("--dtype", type=names_of, default="float32", metavar="D,...",
                      help="on a GPU, which of float32, float16, bfloat16 it is computed in")  # fmt: skip
    made.add_argument("--variants", type=names_of, default=",".join((*OURS, TORCH)), metavar="V,...",
                      help="which are timed; auto needs a tuning log with the kernel in it")  # fmt: skip
    made.add_argument("--ladder", action="store_true", help="every rung of the schedule's ladder instead")
    made.add_argument("--show", choices=_FORMS,
                      help="print the TensorIR, LLVM IR or assembly (on a GPU: TensorIR, CUDA or PTX) of the last "
                      "variant, or with --ladder of every rung")  # fmt: skip
    made.add_argument("--arch", metavar="A", help="--target cuda --show: of which GPU, if not of the one that is here")
    made.add_argument("--tune", type=positive_int, metavar="N", help="first search a schedule for auto, N candidates")
    made.add_argument("--threads", type=positive_int, metavar="N", help="as many as this process has CPUs")
    made.add_argument("--rounds", type=positive_int, default=30, metavar="N", help="quiet turns of each")
    made.add_argument("--limit", type=positive_int, default=5, metavar="S",
                      help="seconds of turns of each at most, but for three turns; original is left out where these "
                      "would take longer")  # fmt: skip
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

    _check_ops(ops)
    if not shapes:
        return [(op, shape) for op in ops or OPERATORS for shape in OPERATORS[op].defaults]
    if not ops or len(ops) > 1:
        raise UsageError("--shape needs --op with one operator, whose shape it is")
    for shape in shapes:
        layer(ops[0], shape)
    return [(ops[0], shape) for shape in shapes]


def listed_kernels(lists: Sequence[str], ops: Sequence[str] | None) -> tuple[list[tuple[str, str]], list[str]]:
    """(operator, shape) of the kernels of `lists`, of `ops` only, and what cannot be among them, in words."""
    from .kernel_lists import kernels_of

    _check_ops(ops)
    found, left_out = kernels_of(lists)
    kept = [(op, shape) for op, shape in found if not ops or op in ops]
    if not kept:
        raise UsageError(f"--op {','.join(ops or ())}: no such kernel in --list {','.join(lists)}")
    return kept, left_out


def _check_ops(ops: Sequence[str] | None) -> None:
    from .kernel_cases import OPERATORS

    for op in ops or ():
        if op not in OPERATORS:
            raise UsageError(f"--op {op}: unknown; choose from {', '.join(OPERATORS)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes."""
    args = parser().parse_args(argv)
    unknown = [name for name in args.variants if name not in (*OURS, TORCH)]
    if unknown or not args.variants:
        raise UsageError(f"--variants {','.join(unknown) or 'none'}: choose from {', '.join((*OURS, TORCH))}")
    if args.ladder and not args.op:
        args.op = ("conv2d", "gemm", "batch_matmul")
    if args.list is not None and args.shape:
        raise UsageError("--list and --shape: give one of them")
    left_out: list[str] = []
    if args.list is not None:
        wanted, left_out = listed_kernels(args.list, args.op)
    else:
        wanted = wanted_kernels(args.op, args.shape)
    if args.sparsity and (args.ladder or args.tune or args.strategy):
        raise UsageError("--sparsity measures every dense strategy itself: leave --ladder, --tune and --strategy out")
    if args.sparsity:
        wanted = [(op, shape) for op, shape in wanted if op in SPARSE or args.op]
        for op in {op for op, _ in wanted} - set(SPARSE):
            raise UsageError(f"--sparsity: {op} has no sparse kernel; choose from {', '.join(SPARSE)}")
    if args.target == "cuda":
        return _on_gpu(args, wanted, sys.argv[1:] if argv is None else argv)
    if args.dtype != ("float32",):
        raise UsageError("--dtype: on a CPU kernels are timed in float32")
    if args.arch is not None:
        raise UsageError("--arch: names a GPU, for --target cuda")
    from rich.console import Console

    from tvmopt.machine import configure_threads, detect

    from . import commands, environment, kernel_table, results, sparsity_table
    from .process import WorkerError

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
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    failed = 0
    with Workers(machine.cores) as workers:
        for op, shape in wanted:
            if args.tune:
                _tune(op, shape, args, machine)
            try:
                measured, notes = measure(op, shape, machine, settings, workers)
            except (WorkerError, VerificationError) as error:
                if len(wanted) == 1:
                    raise
                failed += 1
                workers.stop()
                print(f"{op} {shape}: {one_line(error)}", flush=True)
                continue
            rows += measured
            _show(console, measured, notes, args.list is not None)
            if args.json is not None:
                # After each: a long list that is interrupted keeps what it has.
                described["load_after"] = environment.load()
                results.write(results.document(described, rows), args.json)
    for line in kernel_table.summary(rows) if len(wanted) > 1 and not args.ladder else ():
        print(line)
    if args.sparsity:
        print("\n".join(sparsity_table.summary(rows)))
    return 1 if failed else 0


def _on_gpu(args: argparse.Namespace, wanted: Sequence[tuple[str, str]], argv: Sequence[str]) -> int:
    from . import kernels_gpu, kernels_gpu_ladder, results

    unknown = [name for name in args.dtype if name not in _DTYPES]
    if unknown or not args.dtype:
        raise UsageError(f"--dtype {unknown[0] if unknown else 'none'}: choose from {', '.join(_DTYPES)}")
    if args.json is not None:
        results.check_writable(args.json, "--json")
    kernels_gpu.check(args)
    if args.show:
        return kernels_gpu_ladder.show(args, wanted)
    if args.ladder:
        return kernels_gpu_ladder.main(args, wanted, argv)
    return kernels_gpu.main(args, wanted, argv)


def _tune(op: str, shape: str, args: argparse.Namespace, machine: Machine) -> None:
    from tvmopt.options import BuildOptions
    from tvmopt.tune import tune

    from .kernel_cases import layer

    schedules = Path(args.schedules) if args.schedules else None
    options = BuildOptions(
        threads=machine.cores, log_dir=args.log_dir, schedules_dir=schedules, strategies=args.strategy or {}
    )
    tune(layer(op, shape), trials=args.tune, options=options)


def _show(console: Console, rows: Sequence[dict[str, Any]], notes: Sequence[str], briefly: bool) -> None:
    """A table of one kernel, or, `briefly`, a line for each contender."""
    from . import kernel_table

    if briefly:
        for row in rows:
            print(kernel_table.line(row), flush=True)
    else:
        console.print(kernel_table.terminal(rows))
        notes = [*kernel_table.notes(rows), *notes]
    for note in notes:
        print(note)


if __name__ == "__main__":
    raise SystemExit(run(main))
