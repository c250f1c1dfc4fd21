"""Single kernels against the machine's measured peak, as `python -m bench.kernels --op gemm --shape 512x512x512`.

The kernel and the peak are measured in turns in one process. A turn is quiet when both reference loops of
tvmopt/runtime/peak.py, right before and right after the kernel, ran within 4% of the peak, and no process of this
machine took a core from it meanwhile: then nobody else used the cores. The kernel's own time plays no part in that.
The figure is the median over the quiet turns, with the median over all turns beside it; where too few turns were quiet
it is that of all turns, and marked.
Weights are packed ahead of time, as in a compiled network; everything else, padding and epilogue included, is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError, VerificationError
from tvmopt.options import make_parser, positive_int, run

from . import commands, environment, results, statistics

if TYPE_CHECKING:
    from tvmopt.machine import Machine
    from tvmopt.model import Model
    from tvmopt.runtime.peak import Peak

# Operator -> the shape taken without --shape.
DEFAULTS = {"conv2d": "1x64x56x56,64,3,1,1", "gemm": "1024x1024x1024"}
# More than the peak by this much is a measuring error, not a fast kernel.
_MOST = 1.02
# Fewer quiet turns than this say nothing.
_FEWEST_QUIET = 5


def layer(op: str, shape: str) -> Model:
    """The kernel as a model of one layer. conv2d: NxCxHxW,OUT,KERNEL[,STRIDE[,PADDING[,GROUPS]]]; gemm: MxKxN.

    Raises:
        UsageError: a shape of another form.
    """
    import torch

    from tvmopt.model import from_module

    torch.manual_seed(0)
    try:
        if op == "conv2d":
            image, *rest = shape.split(",")
            n, c, h, w = (int(x) for x in image.split("x"))
            if not 2 <= len(rest) <= 5:
                raise ValueError(shape)
            out, kernel, stride, padding, groups = [int(x) for x in rest] + [0, 0, 1, 0, 1][len(rest) :]
            module: Any = torch.nn.Sequential(
                torch.nn.Conv2d(c, out, kernel, stride, padding, groups=groups), torch.nn.ReLU()
            )
            example = torch.randn(n, c, h, w)
        else:
            rows, depth, columns = (int(x) for x in shape.split("x"))
            module, example = torch.nn.Linear(depth, columns, bias=False), torch.randn(rows, depth)
    except (ValueError, TypeError, RuntimeError):
        forms = {"conv2d": "NxCxHxW,OUT,KERNEL,STRIDE,PADDING,GROUPS", "gemm": "MxKxN"}
        raise UsageError(f"--shape {shape}: not of the form {forms[op]}, for instance {DEFAULTS[op]}") from None
    return from_module(module, example, name=f"{op}-{shape}")


@dataclasses.dataclass(frozen=True)
class _Turns:
    """What was measured in each turn.

    Seconds a call, the two references before and after it, in GFLOP/s, and how often the system took a core from it.
    """

    seconds: list[float]
    peaks: list[tuple[float, float]]
    tiles: list[tuple[float, float]]
    interruptions: list[int]

    def quiet(self) -> list[bool]:
        """Whether both references were near the peak, before and after, and nothing took a core in between."""
        from tvmopt.runtime.peak import QUIET

        peak = max(max(pair) for pair in self.peaks)
        return [
            interrupted == 0 and min(*peaks, *tiles) >= QUIET * peak
            for peaks, tiles, interrupted in zip(self.peaks, self.tiles, self.interruptions, strict=True)
        ]


def _take_turns(kernel: Callable[[], object], peak: Peak, rounds: int, limit_s: float) -> _Turns:
    """Turns of kernel and references, until `rounds` of them were quiet, or `limit_s` seconds have passed."""
    import resource
    import time

    from tvmopt.runtime.timer import calibrate, stopwatch, warm_up

    watch = stopwatch(kernel)
    calls = calibrate(watch, warm_up(watch, limit_s=1.0, sample_s=0.005), sample_s=0.005)
    turns = _Turns([], [], [], [])
    ends = time.monotonic() + limit_s
    before = peak.gflops(), peak.tile_gflops()
    while len(turns.seconds) < rounds or (sum(turns.quiet()) < rounds and time.monotonic() < ends):
        watch(1)  # brings the kernel's data back into the caches, which the references have used
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        took = watch(calls) / calls
        turns.interruptions.append(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches)
        after = peak.gflops(), peak.tile_gflops()
        turns.seconds.append(took)
        turns.peaks.append((before[0], after[0]))
        turns.tiles.append((before[1], after[1]))
        before = after
    return turns


def measure(op: str, shape: str, machine: Machine, rounds: int = 20, limit_s: float = 60.0) -> dict[str, Any]:
    """Build one kernel by hand-written schedule, compare it with PyTorch in float64, and time it against the peak.

    Returns a result of the bench's schema. `samples_ms` are a turn each, `quiet` says which of them were, `shares` how
    much of the peak around them they are; `latency_ms`, `gflops`, `bytes_per_s` and `peak_fraction` are of the quiet
    turns, or of all where it is `unstable`.

    Raises:
        UsageError: a shape of another form. VerificationError: wrong results, or a time that cannot be.
    """
    import numpy as np
    import torch
    import tvm

    from tvmopt.graph.pipeline import lower_model
    from tvmopt.runtime.peak import Peak
    from tvmopt.runtime.threads import use_threads
    from tvmopt.runtime.verify import check
    from tvmopt.variants import build_variant, schedule_kernels

    use_threads(machine.cores)
    model = layer(op, shape)
    lowered = lower_model(model, machine)
    scheduling = schedule_kernels(lowered, "manual", machine)
    kernel = max(lowered.kernels, key=lambda k: k.flops)
    compiled = build_variant(model, "manual", machine)
    with torch.no_grad():
        wanted = model.module.double()(model.example_inputs[0].double())
    model.module.float()

    def verify() -> float:
        verdict = check(compiled(*model.example_inputs), wanted, "float32", None, top1=False)
        verdict.require(f"{op} {shape}")
        return verdict.max_abs_err

    verify()
    built = tvm.compile(tvm.IRModule({"main": scheduling.functions[kernel.name]}), target=machine.target())["main"]
    generator = np.random.default_rng(0)
    arguments = [
        tvm.runtime.tensor(generator.standard_normal([int(d) for d in p.shape]).astype(str(p.dtype)))
        for p in kernel.func.params
    ]
    peak = Peak(machine)
    clock = peak.clock_ghz()
    turns = _take_turns(lambda: built(*arguments), peak, rounds, limit_s)
    error = verify()
    top = max(max(pair) for pair in turns.peaks)
    units = top / (clock * 2 * machine.lanes * machine.cores)
    shares = [kernel.flops / took * 1e-9 / max(pair) for took, pair in zip(turns.seconds, turns.peaks, strict=True)]
    quiet = turns.quiet()
    unstable = sum(quiet) < min(_FEWEST_QUIET, rounds)
    counted = [i for i, is_quiet in enumerate(quiet) if is_quiet or unstable]
    share = float(np.median([shares[i] for i in counted]))
    gflops = kernel.flops / float(np.median([turns.seconds[i] for i in counted])) * 1e-9
    if share > _MOST:
        raise VerificationError(f"{op} {shape}: {share:.0%} of the peak cannot be: the measurement failed, repeat it")
    plan = scheduling.plan.get(kernel.key)
    found = "UNSTABLE: too few quiet turns, so all" if unstable else f"{sum(quiet)} quiet turns"
    print(
        f"{op} {shape}: {gflops:.0f} GFLOP/s, {share:.0%} of the peak in the same turn ({found} of {len(shares)}; over "
        f"all {np.median(shares):.0%}; peak {top:.0f} GFLOP/s = {machine.cores} x {clock:.2f} GHz x "
        f"{machine.lanes} lanes x 2 x {units:.2f} units), error {error:.1e}; weights packed ahead of time, "
        "padding and epilogue included"
    )
    samples = [took * 1e3 for took in turns.seconds]
    used = [samples[i] for i in counted]
    return {
        "model": f"{op}:{shape}",
        "variant": "manual",
        "target": "llvm",
        "dtype": "float32",
        "batch": model.batch,
        "sparsity": 0.0,
        "method": None,
        "latency_ms": statistics.summary(used),
        "samples_ms": samples,
        "compile_s": compiled.compile_s,
        "max_abs_err": error,
        "accuracy": None,
        "params": None,
        "nonzero_params": None,
        "size_bytes": None,
        "size_compressed_bytes": None,
        "flops": kernel.flops,
        "threads": machine.cores,
        "strategy": "default",
        "ci95": list(statistics.median_ci95(used, range(len(used)))),
        "unstable": unstable,
        "cold": False,
        "rounds": list(range(len(samples))),
        "peak_memory_bytes": None,
        "tuning_s": None,
        "error": None,
        "op": op,
        "shape": shape,
        "gflops": gflops,
        "bytes_per_s": kernel.bytes / (statistics.summary(used)["median"] * 1e-3),
        "peak_fraction": share,
        "peak_fraction_all_turns": float(np.median(shares)),
        "peak_gflops": top,
        "clock_ghz": clock,
        "shares": shares,
        "quiet": quiet,
        "choices": plan.choices if plan is not None else {},
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "bench.kernels", "bench.kernels", "Times single kernels by hand-written schedule against the measured peak.",
        ["", "--op conv2d --shape 1x256x14x14,256,3,1,1", "--op gemm --shape 512x512x512 --json gemm.json"],
    )  # fmt: skip
    made.add_argument("--op", choices=sorted(DEFAULTS), help="the operator; without it, each with its default shape")
    made.add_argument("--shape", action="append", metavar="S",
                      help="conv2d: NxCxHxW,OUT,KERNEL,STRIDE,PADDING,GROUPS; gemm: MxKxN; repeatable")  # fmt: skip
    made.add_argument("--threads", type=positive_int, metavar="N", help="as many as this process has CPUs")
    made.add_argument("--rounds", type=positive_int, default=20, metavar="N", help="quiet turns of kernel and peak")
    made.add_argument("--limit", type=positive_int, default=60, metavar="S", help="seconds a kernel to wait for them")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return made


def _main(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.shape and not args.op:
        raise UsageError("--shape needs --op")
    defaults = [(op, shape) for op, shape in DEFAULTS.items() if args.op in (None, op)]
    wanted = [(args.op, shape) for shape in args.shape] if args.shape else defaults
    from tvmopt.machine import configure_threads, detect

    machine = detect(args.threads)
    configure_threads(machine.cores)
    described = environment.describe(machine, machine.cores)
    described["command"] = commands.recorded("bench.kernels", sys.argv[1:] if argv is None else argv)
    rows = [measure(op, shape, machine, args.rounds, args.limit) for op, shape in wanted]
    described["load_after"] = environment.load()
    if args.json:
        results.write(results.document(described, rows), args.json)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m bench.kernels`."""
    return run(_main, argv)


if __name__ == "__main__":
    raise SystemExit(main())
