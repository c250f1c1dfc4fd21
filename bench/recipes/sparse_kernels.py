"""Block-sparse kernels over ResNet-50's convolutions and three products, beside every dense strategy of the same layer.

One line a layer: the dense direct kernel's share of its roof, the best dense strategy, and the speedup over both at
each share of zeros; then medians over all layers, and from how many zeros on each is faster. A pattern is drawn at
random, as many blocks in every row; the weights are in the cache that holds them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import environment, kernel_measure, results, sparsity_table
from ..table import grid
from . import Settings

if TYPE_CHECKING:
    from tvmopt.machine import Machine

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
# Every different convolution of torchvision's ResNet-50 but the first, at 224 x 224, and a layer of 1024 x 1024.
RESNET50 = (
    "1x64x56x56,64,1", "1x64x56x56,64,3,1,1", "1x64x56x56,256,1", "1x256x56x56,64,1",
    "1x256x56x56,128,1", "1x128x56x56,128,3,2,1", "1x128x28x28,512,1", "1x256x56x56,512,1,2", "1x512x28x28,128,1",
    "1x128x28x28,128,3,1,1",
    "1x512x28x28,256,1", "1x256x28x28,256,3,2,1", "1x256x14x14,1024,1", "1x512x28x28,1024,1,2", "1x1024x14x14,256,1",
    "1x256x14x14,256,3,1,1",
    "1x1024x14x14,512,1", "1x512x14x14,512,3,2,1", "1x512x7x7,2048,1", "1x1024x14x14,2048,1,2", "1x2048x7x7,512,1",
    "1x512x7x7,512,3,1,1",
)  # fmt: skip
PRODUCTS = ("1x1024x1024", "32x1024x1024", "256x1024x1024")
_QUICK = (("conv2d", "1x64x56x56,64,3,1,1"), ("gemm", "32x1024x1024"))


def run(settings: Settings) -> int:
    """Measures layer by layer, prints a line for each and the medians.

    Raises:
        OutputError: the JSON file cannot be written. VerificationError: a kernel computes something else.
    """
    layers = [("conv2d", shape) for shape in RESNET50] + [("gemm", shape) for shape in PRODUCTS]
    return compare(_QUICK if settings.quick else layers, (0.5, 0.9) if settings.quick else SPARSITIES, settings)


def compare(
    layers: Sequence[tuple[str, str]], sparsities: tuple[float, ...], settings: Settings, method: str = "block-16x1"
) -> int:
    """Measures `layers`, (operator, shape), pruned by `method`, one after the other; raises as `run`."""
    machine = settings.options.cpu("this recipe")
    print(machine.describe(), file=sys.stderr)
    described = environment.describe(machine, machine.cores)
    described["command"] = settings.command
    rows: list[dict[str, Any]] = []
    lines: list[tuple[str, ...]] = []
    for op, shape in layers:
        rows += (measured := measure(op, shape, sparsities, machine, settings, method))
        lines.append(line(measured, sparsities))
        print(" ".join(lines[-1]), file=sys.stderr)
        if settings.json is not None:
            described["load_after"] = environment.load()
            results.write(results.document(described, rows), settings.json)
    show(lines, sparsities, rows, settings.markdown)
    return 0


def measure(
    op: str, shape: str, sparsities: tuple[float, ...], machine: Machine, settings: Settings, method: str
) -> list[dict[str, Any]]:
    """The results of one layer."""
    turns = kernel_measure.Settings(
        ("manual",), quiet=3 if settings.quick else min(settings.samples, 8),
        limit_s=0.5 if settings.quick else min(settings.time_limit_s, 3.0), sparsities=sparsities,
        method=method,
    )  # fmt: skip
    with kernel_measure.Workers(machine.cores) as workers:
        return kernel_measure.measure(op, shape, machine, turns, workers)[0]


def header(sparsities: Sequence[float]) -> tuple[str, ...]:
    """What the columns of `line` are."""
    shares = [f"{sparsity:.0%} zeros" for sparsity in sparsities]
    return ("layer", "direct us", "of the roof", "best dense us", *shares, "faster from")


def line(rows: Sequence[dict[str, Any]], sparsities: Sequence[float]) -> tuple[str, ...]:
    """Texts under `header` for one layer."""
    direct, best = sparsity_table.dense_ms(rows)
    dense = [row for row in rows if not sparsity_table.is_sparse(row)]
    fastest = min(dense, key=lambda row: row["latency_ms"]["median"])["strategy"].partition("=")[2]
    by_sparsity = sparsity_table.fastest(rows)
    cells = []
    for sparsity in sparsities:
        row = by_sparsity[sparsity]
        ms = row["latency_ms"]["median"]
        bound = f" m{row['peak_fraction']:.0%}" if row["bound"] == "memory" else ""
        blocks = " b" if row.get("method") == "unstructured" and row["strategy"].endswith("=sparse") else ""
        cells.append(f"{direct / ms:.2f}x {best / ms:.2f}x{bound}{blocks}")
    crossing = [sparsity_table.crossover(rows, ms) for ms in (direct, best)]
    return (
        f"{rows[0]['op']} {rows[0]['shape']}", f"{direct * 1e3:.0f}", f"{dense[0]['peak_fraction']:.0%}",
        f"{fastest} {best * 1e3:.0f}", *cells, " ".join("-" if c is None else f"{c:.0%}" for c in crossing),
    )  # fmt: skip


def show(
    lines: list[tuple[str, ...]], sparsities: tuple[float, ...], rows: list[dict[str, Any]], markdown: bool
) -> None:
    """The table, and what it comes to."""
    from rich.console import Console

    from ..table import markdown_grid

    heading = "speedup over direct and the best dense strategy (m: bound by memory, share of that roof; b: by blocks)"
    if markdown:
        print(markdown_grid(heading, header(sparsities), lines, left=1))
    else:
        console = Console(emoji=False, width=None if sys.stdout.isatty() else 200)
        console.print(grid(heading, header(sparsities), lines, left=1))
    print("\n".join(sparsity_table.summary(rows)))
