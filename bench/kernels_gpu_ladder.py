"""`python -m bench.kernels --target cuda --show FORM` and `--ladder`: a GPU's schedules, rung by rung.

Showing needs no GPU (`--arch` names one): TensorIR, CUDA, or PTX by nvcc. Timing does: every rung is first compared
with TVM's default schedule of the same kernel, between guard zones, then timed on the GPU's clock.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import TargetError, UsageError

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import GpuMachine
    from tvmopt.registry import Scheduled

FORMS = ("tir", "cuda", "ptx")
# Calls of each of the turns whose median counts.
CALLS = 20
# Relative to the largest value: two schedules add in other orders, and round results of half precision.
ALLOWED = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}


@dataclasses.dataclass(frozen=True)
class Shown:
    """A kernel under one rung's schedule, or (`rung` is "manual") the rule's own."""

    rung: str
    text: str
    made: Scheduled


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for a form that a GPU's kernel has not, and for an architecture where something is timed."""
    if args.show is not None and args.show not in FORMS:
        raise UsageError(f"--show {args.show}: a kernel of a GPU has {', '.join(FORMS)}")
    if args.arch is not None and args.show is None:
        raise UsageError("--arch: kernels are timed on the GPU that is here; with --show one may be named")


def kernel_of(op: str, shape: str, dtype: str, machine: GpuMachine, strategies: dict[str, str] | None) -> Kernel:
    """The kernel of a layer in which most is computed, lowered for `machine`."""
    from tvmopt.graph.pipeline import lower_model

    from .kernel_cases import layer

    lowered = lower_model(dataclasses.replace(layer(op, shape), dtype=dtype), machine, strategies or {})
    return max(lowered.kernels, key=lambda kernel: (kernel.flops, kernel.bytes))


def schedules(kernel: Kernel, machine: GpuMachine, directory: Path | None, ladder: bool) -> list[Shown]:
    """The kernel by hand: as every rung schedules it, or as the last one does."""
    from tvmopt.registry import apply_rule, rules

    from .ladder import ladder_of, schedule_rung

    candidates = rules("cuda", directory)
    if not ladder:
        made = apply_rule(kernel, machine, candidates)
        if made is None:
            raise UsageError(f"{kernel.op}: no rule by hand takes it, TVM's default schedules it")
        return [Shown("manual", made.rule.name, made)]
    rungs = ladder_of(kernel, machine, candidates)
    return [
        Shown(rung.name, rung.text, schedule_rung(kernel, machine, candidates, rungs, number))
        for number, rung in enumerate(rungs)
    ]


def text_of(made: Scheduled, machine: GpuMachine, form: str) -> str:
    """A schedule's TensorIR, CUDA or PTX."""
    from tvmopt.registry import write_kernels

    from .cuda_proof import check as proof
    from .cuda_proof import device

    if form == "tir":
        return str(write_kernels(made.schedule.mod)["main"].script(show_meta=False))
    source = proof.source(made, machine)
    if form == "cuda":
        return source.text
    if device.NVCC is None:
        raise TargetError("--show ptx: nvcc is missing: install CUDA's toolkit, or --show cuda")
    return device.ptx(source.text, source.arch)


def show(args: argparse.Namespace, wanted: Sequence[tuple[str, str]]) -> int:
    """Prints what was asked for of every kernel, dtype and rung."""
    from tvmopt.options import BuildOptions

    machine: Any = BuildOptions(target="cuda", arch=args.arch).machine()
    print(machine.describe(), file=sys.stderr)
    directory = Path(args.schedules) if args.schedules else None
    for op, shape in wanted:
        for dtype in args.dtype:
            kernel = kernel_of(op, shape, dtype, machine, args.strategy)
            for one in schedules(kernel, machine, directory, args.ladder):
                print(f"--- {op} {shape} {dtype}, {one.made.rule.name}, {one.rung}: {one.text}; {one.made.choices}")
                print(text_of(one.made, machine, args.show))
    return 0


def inputs_of(kernel: Kernel) -> list[np.ndarray]:
    """Seeded inputs of a kernel: all its parameters but the last, which is its result."""
    import ml_dtypes  # noqa: F401  (bfloat16 as numpy's)
    import numpy as np

    from tvmopt.graph.kernels import random_integers

    generator = np.random.default_rng(0)
    found = []
    for param in kernel.func.params[:-1]:
        shape, dtype = [int(d) for d in param.shape], str(param.dtype)
        integers = dtype.startswith("int")
        values = random_integers(kernel.func, shape, generator) if integers else generator.standard_normal(shape)
        found.append(values.astype(dtype))
    return found


def error_between(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    import numpy as np

    found, wanted = found.astype("float64"), wanted.astype("float64")
    return float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def by_default(kernel: Kernel, machine: GpuMachine) -> Any:
    """The kernel as TVM's own rules schedule it: what ours is compared with."""
    import tvm
    from tvm.s_tir import Schedule

    from tvmopt.graph.gpu_default import schedule_default

    default = schedule_default(kernel.func, machine.target())
    return Schedule(tvm.IRModule({"main": default.with_attr("global_symbol", "main")}))


def seconds_of(schedule: Any, inputs: Sequence[np.ndarray], machine: GpuMachine, turns: int) -> list[float]:
    """Seconds of a call on the GPU, turn by turn."""
    from tvmopt.runtime.timer import event_stopwatch
    from tvmopt.tuning.worker import compile_kernel

    from .cuda_proof.gpu import Guarded

    buffers = [Guarded(array, "cuda").inner for array in inputs]
    built = compile_kernel(machine.target(), schedule.mod).jit()
    watch = event_stopwatch(lambda: built["main"](*buffers))
    watch(2)
    return [watch(CALLS) / CALLS for _ in range(turns)]


def climbed(kernel: Kernel, one: Shown, inputs: Sequence[np.ndarray], wanted: np.ndarray, machine: GpuMachine,
            turns: int) -> dict[str, Any]:  # fmt: skip
    """A rung checked and timed: its row of the result."""
    import numpy as np

    from .cuda_proof import gpu

    found = gpu.run(one.made.schedule, list(inputs), machine.target())
    error, allowed = error_between(found, wanted), ALLOWED[str(kernel.func.params[0].dtype)]
    row = {"rule": one.made.rule.name, "rung": one.rung, "text": one.text, "choices": one.made.choices, "error": error}
    # A comparison that is false for what is no number, too.
    if not error <= allowed:
        return {**row, "problem": f"error {error:.1e}, allowed {allowed:.1e}"}
    samples = seconds_of(one.made.schedule, [*inputs, np.empty_like(wanted)], machine, turns)
    median = statistics.median(samples)
    return {
        **row, "samples_ms": [1e3 * s for s in samples], "median_ms": 1e3 * median,
        "gflops": kernel.flops / median * 1e-9, "problem": None,
    }  # fmt: skip


def main(args: argparse.Namespace, wanted: Sequence[tuple[str, str]], argv: Sequence[str]) -> int:
    """Times every rung, prints a line for each, and writes; 1 where one computes something else."""
    from tvmopt.options import BuildOptions

    from . import commands, environment, results
    from .cuda_proof import gpu

    machine: Any = BuildOptions(target="cuda").machine()
    described = {**environment.describe(machine, machine.cores), "command": commands.recorded("bench.kernels", argv)}
    print(machine.describe(), file=sys.stderr)
    rows: list[dict[str, Any]] = []
    directory = Path(args.schedules) if args.schedules else None
    for op, shape in wanted:
        for dtype in args.dtype:
            kernel = kernel_of(op, shape, dtype, machine, args.strategy)
            inputs = inputs_of(kernel)
            right = gpu.run(by_default(kernel, machine), list(inputs), machine.target())
            before = None
            for one in schedules(kernel, machine, directory, True):
                row = {"op": op, "shape": shape, "dtype": dtype}
                row |= climbed(kernel, one, inputs, right, machine, args.rounds)
                rows.append(row)
                print(line(row, before), flush=True)
                before = row.get("median_ms", before)
                if args.json is not None:
                    results.write(results.document({**described, "cuda_ladder": rows}, []), args.json)
    return 1 if any(row["problem"] for row in rows) else 0


def line(row: dict[str, Any], before: float | None) -> str:
    """A rung's line: its time, its rate, how many times as fast as the one before it is."""
    name = f"{row['op']} {row['shape']} {row['dtype']}  {row['rung']:<10}"
    if row["problem"] is not None:
        return f"{name} {row['problem']}"
    gain = f"{before / row['median_ms']:6.2f}x" if before else " " * 7
    return f"{name} {row['median_ms']:9.4f} ms  {row['gflops']:9.0f} GFLOP/s  {gain}  {row['text']}"
