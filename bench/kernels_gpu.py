"""`python -m bench.kernels --target cuda`: single kernels on the GPU that is here, against cuBLAS and cuDNN.

They are timed as one-layer networks by the bench's own turns, on the GPU's clock, verified before and after, an image's
way into NHWC and back included; with --sparsity layers of block-sparse weights too (kernels_gpu_sparse.py). TF32 is off
for everybody. The roof is measured on the GPU in the same run: what cuBLAS reaches with a product of two 8192 x 8192
matrices of the same dtype, and what a copy of more than L2 holds moves, reading and writing counted.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import TargetError, UsageError

from . import kernels_gpu_ladder

if TYPE_CHECKING:
    import argparse

    from tvmopt.options import BuildOptions

    from .kernels_gpu_sparse import Layer

PEERS = ("torch", "torch-channels-last")
_SIDE = 8192
_COPIED = 1 << 30
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Roof:
    """What the GPU was seen to reach: operations and bytes a second."""

    flops: float
    bytes: float

    def bound(self, flops: int, size: int) -> tuple[str, float]:
        """What binds a kernel, and the seconds that takes at least."""
        arithmetic, memory = flops / self.flops, size / self.bytes
        return ("arithmetic", arithmetic) if arithmetic >= memory else ("memory", memory)


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for what is measured on CPUs or in fp32 only, TargetError where there is no GPU."""
    if args.tune:
        raise UsageError("--tune is for CPUs: leave it or --target cuda out")
    if args.sparsity and args.dtype != ("float32",):
        raise UsageError("--sparsity: sparse kernels for GPUs compute in float32; leave --dtype out")
    kernels_gpu_ladder.check(args)
    from tvmopt.machine import detect_gpu

    if not args.show and detect_gpu() is None:
        raise TargetError(
            "--target cuda: no CUDA GPU here to time kernels on; python -m bench.cuda_proof compiles and executes "
            "their schedules without one"
        )


def measured_roof(dtype: str) -> Roof:
    """Of the GPU that is here, by torch."""
    import torch

    from tvmopt.runtime.timer import event_stopwatch

    torch.backends.cuda.matmul.allow_tf32 = False
    matrix = torch.randn(_SIDE, _SIDE, device="cuda", dtype=getattr(torch, dtype))
    product = torch.empty_like(matrix)
    seconds = _best(event_stopwatch(lambda: torch.mm(matrix, matrix, out=product)), 5)
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(source)
    return Roof(2 * _SIDE**3 / seconds, 2 * _COPIED / _best(event_stopwatch(lambda: copy.copy_(source)), 10))


def _best(watch: Callable[[int], float], calls: int) -> float:
    watch(2)
    return min(watch(calls) / calls for _ in range(5))


def spec(op: str, shape: str) -> str:
    """The model spec of a kernel, for the bench."""
    from . import kernel_cases

    return f"{kernel_cases.__file__}:{op}-{shape}"


def bytes_of(op: str, shape: str, dtype: str) -> int:
    """What the kernel reads and writes once: inputs, weights, output."""
    import torch

    from .kernel_cases import layer

    model = layer(op, shape)
    with torch.no_grad():
        tensors = [*model.example_inputs, *model.module.parameters(), model.module(*model.example_inputs)]
    return sum(tensor.numel() for tensor in tensors) * getattr(torch, dtype).itemsize


def completed(row: Row, op: str, shape: str, roof: Roof, layer: Layer) -> Row:
    """A result of the bench with what a kernel's has beside it; one that failed has none of that."""
    row = {
        **row, "model": f"{op}:{shape}", "op": op, "shape": shape, "sparsity": layer.sparsity, "method": layer.method,
        "flops": row["flops"] if layer.flops is None else layer.flops,
    }  # fmt: skip
    if row["latency_ms"] is None:
        return row
    seconds, size = row["latency_ms"]["median"] * 1e-3, layer.size
    bound, least = roof.bound(row["flops"], size)
    return {
        **row, "gflops": row["flops"] / seconds * 1e-9, "bytes_per_s": size / seconds, "bound": bound,
        "peak_fraction": least / seconds, "peak_gflops": roof.flops * 1e-9, "bandwidth_bytes_per_s": roof.bytes,
    }  # fmt: skip


def main(args: argparse.Namespace, wanted: Sequence[tuple[str, str]], argv: Sequence[str]) -> int:
    """Measures `wanted` in each of the dtypes, prints a line a contender, and writes; 1 where one of ours failed."""
    from tvmopt.options import BuildOptions

    from . import commands, environment, kernel_table, kernels_gpu_sparse, results, sparsity_table
    from .measure import Data, measure_together
    from .process import WorkerError
    from .turns import Settings

    machine = BuildOptions(target="cuda").machine()
    if args.sparsity:
        named, wanted = wanted, kernels_gpu_sparse.supported(wanted, machine)
        for op, shape in named:
            if (op, shape) not in wanted:
                print(f"left out: {op} {shape} has no sparse kernel on a GPU", file=sys.stderr)
    described = environment.describe(machine, machine.cores)
    described["command"] = commands.recorded("bench.kernels", argv)
    print(machine.describe(), file=sys.stderr)
    settings = Settings(samples=args.rounds, time_limit_s=args.limit)
    rows: list[Row] = []
    timed: list[Row] = []
    failed = False
    for dtype in args.dtype:
        roof = measured_roof(dtype)
        speeds = f"cuBLAS reaches {roof.flops * 1e-12:.1f} TFLOP/s, a copy {roof.bytes * 1e-9:.0f} GB/s"
        print(f"{dtype}: {speeds}; TF32 off")
        options = BuildOptions(
            target="cuda", dtype=dtype, threads=machine.cores, strategies=args.strategy or {}, log_dir=args.log_dir,
            schedules_dir=Path(args.schedules) if args.schedules else None,
        )  # fmt: skip
        for op, shape in wanted:
            with tempfile.TemporaryDirectory() as folder:
                layers = layers_of(op, shape, args, options, Path(folder))
                try:
                    found = measure_together([one.cases for one in layers], settings, Data(None, False), _quiet)
                except WorkerError as error:
                    print(f"{op} {shape}: {error}", flush=True)
                    failed = True
                    continue
            owners = [layer for layer in layers for _ in layer.cases]
            mine = [completed(row, op, shape, roof, layer) for row, layer in zip(found, owners, strict=True)]
            rows += mine
            for row in mine:
                failed |= row["error"] is not None and not row["variant"].startswith("peer:")
                said = kernel_table.line(row) if row["latency_ms"] else f"{op} {shape} {row['variant']}: {row['error']}"
                zeros = f", sparse, {row['sparsity']:.0%} of zeros" if sparsity_table.is_sparse(row) else ""
                print(f"{dtype} {said}{zeros}", flush=True)
            # The first is the dense layer, which the others are set beside.
            if args.sparsity and mine[0]["latency_ms"]:
                timed += (of_layer := [row for row in mine if row["latency_ms"]])
                print("\n".join(sparsity_table.notes(of_layer)), flush=True)
            if args.json is not None:
                # After each: what is interrupted keeps what it has.
                results.write(results.document(described, rows), args.json)
    if args.sparsity:
        print("\n".join(sparsity_table.summary(timed)))
    return 1 if failed else 0


def layers_of(op: str, shape: str, args: argparse.Namespace, options: BuildOptions, folder: Path) -> list[Layer]:
    """The layer with its contenders, dense, and with --sparsity pruned too; files go into `folder`."""
    from . import kernels_gpu_sparse
    from .cases import contenders

    model, size = spec(op, shape), bytes_of(op, shape, options.dtype)
    names = [name for name in PEERS if "torch" in args.variants][: len(PEERS) if op == "conv2d" else 1]
    ours = [name for name in args.variants if name != "torch"]
    if not args.sparsity:
        return [kernels_gpu_sparse.Layer(contenders([model], ours, names, options)[model], None, size)]
    return kernels_gpu_sparse.layers(op, model, size, args.sparsity, args.method, ours, names, options, folder)


def _quiet(name: str, text: str) -> None:
    """Nobody is told what a contender is at: lines come when a kernel is done."""
