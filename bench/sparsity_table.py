"""What sparse kernels gain over dense ones: per kernel, the sparsity from which they do, and over all kernels."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

HEADER = ("zeros", "vs direct", "vs best dense")
# The dense strategies that are blocked and direct, for convolutions and for products.
_DIRECT = ("conv2d=direct", "dense=packed")
_SPARSE = ("=sparse", "=unstructured")


def is_sparse(row: dict[str, Any]) -> bool:
    """Whether a result is of a sparse kernel."""
    return bool(row["strategy"].endswith(_SPARSE))


def _ms(row: dict[str, Any]) -> float:
    return float(row["latency_ms"]["median"])


def dense_ms(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Milliseconds of one kernel by the direct strategy, and by the fastest dense one."""
    dense = [row for row in rows if row["variant"] == "manual" and not is_sparse(row)]
    return next(_ms(row) for row in dense if row["strategy"] in _DIRECT), min(_ms(row) for row in dense)


def cells(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> tuple[str, str, str]:
    """Texts under `HEADER` for one of the results `rows` of a kernel."""
    direct, best = dense_ms(rows)
    zeros = f"{row['sparsity']:.0%}" if is_sparse(row) else ""
    return zeros, f"{direct / _ms(row):.2f}x", f"{best / _ms(row):.2f}x"


def fastest(rows: Sequence[dict[str, Any]]) -> dict[float, dict[str, Any]]:
    """Sparsity -> manual's faster sparse kernel of one layer."""
    found = [row for row in rows if is_sparse(row) and row["variant"] == "manual"]
    return {row["sparsity"]: row for row in sorted(found, key=lambda row: -_ms(row))}


def crossover(rows: Sequence[dict[str, Any]], dense: float) -> float | None:
    """The sparsity from which the sparse kernel takes less than `dense` ms; None where that was not seen.

    Between the two measured sparsities round it, the time falls in a line. With all measured ones faster, the line
    through the lowest two is followed down, to 0 at least; the lowest itself where there is no such line.
    """
    points = sorted((sparsity, _ms(row)) for sparsity, row in fastest(rows).items())
    faster = [i for i in range(len(points)) if all(ms < dense for _, ms in points[i:])]
    if not faster:
        return None
    upper = max(faster[0], 1)
    if len(points) == 1 or points[upper - 1][1] <= points[upper][1]:
        return float(points[faster[0]][0])
    (s0, t0), (s1, t1) = points[upper - 1], points[upper]
    return float(max(0.0, s0 + (t0 - dense) * (s1 - s0) / (t0 - t1)))


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The crossovers of one kernel, in a line."""
    if not any(is_sparse(row) for row in rows):
        return []
    direct, best = dense_ms(rows)
    texts = []
    for name, dense in (("direct", direct), ("the best dense strategy", best)):
        found = crossover(rows, dense)
        texts.append(f"{name} from {found:.0%} of zeros" if found is not None else f"{name} at none measured")
    return [f"sparse is faster than {' and than '.join(texts)}"]


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Over all kernels, a line a sparsity: speedups of those arithmetic binds, the share of the roof of the others."""
    by_kernel: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_kernel.setdefault(row["model"], []).append(row)
    lines = []
    for sparsity in sorted({row["sparsity"] for row in rows if is_sparse(row)}):
        direct, best, shares = [], [], []
        for kernel in by_kernel.values():
            found = fastest(kernel)
            if sparsity not in found:
                continue
            row = found[sparsity]
            if row["bound"] == "arithmetic":
                against = dense_ms(kernel)
                direct.append(against[0] / _ms(row))
                best.append(against[1] / _ms(row))
            else:
                shares.append(row["peak_fraction"])
        parts = [f"{sparsity:.0%} of zeros:"]
        if direct:
            parts.append(
                f"{len(direct)} kernels bound by arithmetic, median {statistics.median(direct):.2f}x direct "
                f"({min(direct):.2f} to {max(direct):.2f}), {statistics.median(best):.2f}x the best dense strategy"
            )
        if shares:
            parts.append(
                f"{'; ' if direct else ''}{len(shares)} bound by memory, median {statistics.median(shares):.0%} of "
                f"their roof ({min(shares):.0%} to {max(shares):.0%})"
            )
        lines.append(" ".join(parts).replace(" ;", ";"))
    return lines
