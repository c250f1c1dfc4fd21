"""Where a variant's time goes: every kernel alone, its share of the roof, and what fraction of the network it is.

The roof is the machine's own, measured in the same process (tvmopt/runtime/peak.py, bandwidth.py): a kernel cannot be
faster than its operations at the peak, nor than its bytes at the bandwidth of the cache, or memory, that holds as many.
"Roofline: An Insightful Visual Performance Model" (Williams, Waterman and Patterson, 2009).

The sum of the kernels is set beside the whole network's time. It leaves out what lies between kernels, and each kernel
finds its data in the caches, where the network may have to fetch them: so it is a little less.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import Machine
    from tvmopt.model import Model
    from tvmopt.options import BuildOptions
    from tvmopt.runtime.peak import Peak

# A sample of a kernel, and how many.
SAMPLE_S = 0.002
SAMPLES = 15
# How long a kernel is kept waiting for neighbours to leave the cores, and how often it is timed again with them there.
QUIET_LIMIT_S = 0.5
ATTEMPTS = 3
# A kernel slower than this is called three times, not more.
_SLOW_S = 0.1
# A share of the roof above this is a failed measurement of the roof.
_MOST = 1.02


@dataclass(frozen=True)
class Line:
    """One kernel: `seconds` a call (median; `best_s` the least), `calls` in a run of the network.

    `bandwidth`: bytes a second that sets like its bytes are moved at; `roof_s` is the least it could take. `layer`: the
    sizes of the convolution or dense layer it computes, the same at every sparsity; None for other kernels.
    """

    kernel: str
    op: str
    shape: str
    source: str
    calls: int
    seconds: float
    best_s: float
    flops: int
    bytes: int
    bandwidth: float
    roof_s: float
    layer: str | None = None

    @property
    def total_s(self) -> float:
        """Seconds in a run of the network."""
        return self.seconds * self.calls

    def to_json(self) -> dict[str, Any]:
        """A plain dict, rates included."""
        return {
            **asdict(self),
            "gflops": self.flops / self.seconds * 1e-9,
            "bytes_per_s": self.bytes / self.seconds,
            "peak_fraction": self.roof_s / self.seconds,
        }


@dataclass(frozen=True)
class Roof:
    """The machine's: `gflops` of arithmetic, and `bandwidths`, bytes a second by the bytes that are worked on."""

    gflops: float
    bandwidths: tuple[tuple[int, float], ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"gflops": self.gflops, "bandwidths": [list(pair) for pair in self.bandwidths]}


@dataclass(frozen=True)
class Profile:
    """The kernels of a variant, slowest in the network first, and the roof they were set against."""

    lines: list[Line]
    roof: Roof


def profile(model: Model, variant: str, machine: Machine, options: BuildOptions) -> Profile:
    """Times every kernel of a variant.

    Raises:
        TvmoptError: what building the variant raises.
    """
    from tvmopt.graph.pipeline import lower_model
    from tvmopt.operators.sparse import without_kept
    from tvmopt.runtime.bandwidth import Bandwidth
    from tvmopt.runtime.peak import Peak
    from tvmopt.runtime.threads import use_threads
    from tvmopt.variants import log_path_of, schedule_kernels, strategies_of

    use_threads(machine.cores)
    log_path = log_path_of(model, machine, options.log_dir, options.strategies)
    lowered = lower_model(model, machine, strategies_of(variant, log_path, options.strategies), variant=variant)
    scheduling = schedule_kernels(
        lowered, variant, machine, log_path=log_path, schedules_dir=options.schedules_dir, model=model
    )
    loops = Peak(machine)
    peak, bandwidth = loops.roof().gflops, Bandwidth(machine)
    lines = []
    for kernel in lowered.kernels:
        plan = scheduling.plan.get(kernel.key)
        # Before and after: the better of both.
        bandwidth(kernel.bytes, kernel.written)
        samples = _time(kernel, scheduling.functions.get(kernel.name, kernel.func), machine, loops)
        rate = bandwidth(kernel.bytes, kernel.written)
        roof = max(kernel.flops / (peak * 1e9), kernel.bytes / rate)
        source = plan.source if plan else "original"
        lines.append(
            Line(
                kernel.name, kernel.op, kernel.shape, source, kernel.calls, statistics.median(samples), min(samples),
                kernel.flops, kernel.bytes, rate, roof,
                without_kept(kernel.geometry) if kernel.geometry is not None else None,
            )
        )  # fmt: skip
    return Profile(sorted(lines, key=lambda line: -line.total_s), Roof(peak, bandwidth.known))


def _time(kernel: Kernel, function: Any, machine: Machine, loops: Peak) -> list[float]:
    """Seconds of a call, timed in TVM's own loop, while nobody else uses the cores if that can be had."""
    import numpy as np
    import tvm

    from tvmopt.graph.host_pipeline import compile_kernels
    from tvmopt.graph.kernels import random_integers

    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = compile_kernels(module, machine.target()).jit()
    generator = np.random.default_rng(0)
    arguments = []
    for parameter in kernel.func.params:
        empty = tvm.runtime.empty([int(extent) for extent in parameter.shape], str(parameter.dtype), tvm.cpu())
        if empty.numpy().dtype.kind == "i":
            values = random_integers(kernel.func, empty.shape, generator)
        else:
            values = generator.uniform(0.5, 1.5, empty.shape)
        arguments.append(empty.copyfrom(values.astype(empty.numpy().dtype)))

    def sample(calls: int) -> float:
        return float(built.time_evaluator("main", tvm.cpu(), number=calls, repeat=1)(*arguments).mean)

    once = sample(1)
    if once > _SLOW_S:
        return [once, sample(1), sample(1)]
    calls = max(1, round(SAMPLE_S / max(sample(3), 1e-8)))
    samples: list[float] = []
    for _ in range(ATTEMPTS):
        quiet = loops.wait_until_quiet(QUIET_LIMIT_S)
        samples = [sample(calls) for _ in range(SAMPLES)]
        if quiet and loops.quiet():
            break
    return samples


HEADER = ("kernel", "op", "calls", "us a call", "of the sum", "GFLOP/s", "GB/s", "of the roof", "schedule")


def cells(lines: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One tuple of texts a kernel, under `HEADER`."""
    total = sum(line["seconds"] * line["calls"] for line in lines) or 1.0
    return [
        (
            line["kernel"], line["op"], str(line["calls"]), f"{line['seconds'] * 1e6:.1f}",
            f"{line['seconds'] * line['calls'] / total:.1%}", f"{line['gflops']:.1f}",
            f"{line['bytes_per_s'] * 1e-9:.1f}", _share(line), line["source"],
        )
        for line in lines
    ]  # fmt: skip


def _share(line: dict[str, Any]) -> str:
    """The share of the roof; a `!` where it cannot be: others used the cores while the roof was measured."""
    return f"{line['peak_fraction']:.0%}" + (" !" if line["peak_fraction"] > _MOST else "")


def conclusion(row: dict[str, Any]) -> str:
    """The sum beside the whole network's time, and where the next microsecond is."""
    lines = row["profile"]
    total = sum(line["seconds"] * line["calls"] for line in lines) * 1e3
    whole = row["latency_ms"]["median"]
    lost = max(lines, key=lambda line: (line["seconds"] - line["roof_s"]) * line["calls"])
    gain = (lost["seconds"] - lost["roof_s"]) * lost["calls"] * 1e3
    doubtful = any(line["peak_fraction"] > _MOST for line in lines)
    return (
        f"{row['variant']}: kernels {total:.4g} ms in sum, the network {whole:.4g} ms; most is to be won in "
        f"{lost['kernel']}: {gain:.3g} ms above its roof"
        + ("; ! above the roof: it was measured while others used the cores, repeat it" if doubtful else "")
    )
