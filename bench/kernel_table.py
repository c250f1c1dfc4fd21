"""The table of `bench.kernels`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import sparsity_table
from .table import grid, milliseconds

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("", "median ms", "± 95%", "GFLOP/s", "GB/s", "of the roof", "all turns", "quiet turns", "max error")
_LADDER = ("vs before", "what this step does")


def cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One tuple of texts a result, under `HEADER`, with the step's gain and text for rungs of a ladder."""
    table: list[tuple[str, ...]] = []
    before: float | None = None
    sparse = any(sparsity_table.is_sparse(row) for row in rows)
    for row in rows:
        median = row["latency_ms"]["median"]
        half = (row["ci95"][1] - row["ci95"][0]) / 2 / median
        way = f" {row['strategy'].partition('=')[2]}" if sparse else ""
        line: tuple[str, ...] = (
            row["variant"].partition(":")[2] or row["variant"] + way,
            milliseconds(median) + (" !" if row["unstable"] else ""),
            f"{half:.1%}",
            f"{row['gflops']:.1f}" if row["flops"] else "",
            f"{row['bytes_per_s'] * 1e-9:.1f}",
            f"{row['peak_fraction']:.0%}",
            f"{row['peak_fraction_all_turns']:.0%}",
            f"{sum(row['quiet'])} of {len(row['quiet'])}",
            f"{row['max_abs_err']:.1e}",
        )
        if row["variant"].startswith("rung:"):
            line += (f"{before / median:.2f}x" if before else "", row["text"])
            before = median
        if sparse:
            line += sparsity_table.cells(rows, row)
        table.append(line)
    return table


def terminal(rows: Sequence[dict[str, Any]]) -> Table:
    """A rich table of the contenders of one kernel."""
    first = rows[0]
    ladder = first["variant"].startswith("rung:")
    sparse = any(sparsity_table.is_sparse(row) for row in rows)
    header = HEADER + (_LADDER if ladder else ()) + (sparsity_table.HEADER if sparse else ())
    table = grid(heading(first), header, cells(rows))
    if ladder:
        table.columns[-1].justify = "left"
        table.columns[-1].no_wrap = False
    return table


def heading(row: dict[str, Any]) -> str:
    """The kernel, and both roofs with where they come from."""
    units = row["peak_gflops"] / (row["clock_ghz"] * 2 * row["lanes"] * row["threads"])
    return (
        f"{row['op']} {row['shape']}: bound by {row['bound']}; peak {row['peak_gflops']:.0f} GFLOP/s = "
        f"{row['threads']} x {row['clock_ghz']:.2f} GHz x {row['lanes']} lanes x 2 x {units:.2f} units, "
        f"bandwidth for its bytes {row['bandwidth_bytes_per_s'] * 1e-9:.0f} GB/s"
    )


# A kernel that reaches less of its roof than this is one to look at.
_LOW = 0.6


def line(row: dict[str, Any]) -> str:
    """A contender of a long list in one line."""
    rate = f"{row['gflops']:.1f} GFLOP/s" if row["flops"] else f"{row['bytes_per_s'] * 1e-9:.1f} GB/s"
    time = milliseconds(row["latency_ms"]["median"]) + " ms" + (" !" if row["unstable"] else "")
    share = f"{row['peak_fraction']:.0%} of the roof ({row['bound']})"
    return f"{row['op'] + ' ' + row['shape']:<36} {_name(row):<9} {time:>13}  {rate:>15}  {share}"


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For each variant, the median share of the roof over all kernels and by operator, and which reach little of it."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        ops = dict.fromkeys(row["op"] for row in mine)
        parts = [f"{op} {_median_share([row for row in mine if row['op'] == op])}" for op in ops]
        low = sorted((row for row in mine if row["peak_fraction"] < _LOW), key=lambda row: float(row["peak_fraction"]))
        text = f"{_name(mine[0])}: median share of the roof {_median_share(mine)}"
        text += (f" ({'; '.join(parts)})" if len(parts) > 1 else "") + f"; {len(low)} under {_LOW:.0%}"
        text += ": " + ", ".join(f"{row['op']} {row['shape']} {row['peak_fraction']:.0%}" for row in low) if low else ""
        unstable = sum(row["unstable"] for row in mine)
        lines.append(text + (f"; {unstable} of {len(mine)} marked unstable" if unstable else ""))
    return lines


def _name(row: dict[str, Any]) -> str:
    return str(row["variant"].partition(":")[2] or row["variant"])


def _median_share(rows: Sequence[dict[str, Any]]) -> str:
    count = f"{len(rows)} kernel{'s' if len(rows) != 1 else ''}"
    return f"{statistics.median(row['peak_fraction'] for row in rows):.0%} over {count}"


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What has to be said under a table."""
    found = sparsity_table.notes(rows)
    if any(row["unstable"] for row in rows):
        found.append("! unstable: too few turns in which nobody else used the cores, so all turns count")
    return found
