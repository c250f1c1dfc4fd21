"""What zeros save layer by layer: the time of every layer of a pruned network beside the same layer's without zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import style
from .runs import Chart, Group, Row


@dataclass(frozen=True)
class Point:
    """A layer at a share of zeros: seconds a call, and whether its kernel skips them."""

    sparsity: float
    seconds: float
    skips: bool


def layers(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Layer, by its sizes -> its points in the order of sparsity, of the profiles of one variant's and method's rows.

    Without those that no row computes sparse, and empty where nothing is without zeros: there is nothing to compare.
    """
    found: dict[str, list[Point]] = {}
    for row in sorted(rows, key=lambda row: float(row["sparsity"])):
        by_layer: dict[str, list[dict[str, Any]]] = {}
        for line in row["profile"]:
            if line.get("layer") is not None:
                by_layer.setdefault(line["layer"], []).append(line)
        for name, lines in by_layer.items():
            # The same convolution with another epilogue is another kernel.
            seconds = sum(line["seconds"] * line["calls"] for line in lines) / sum(line["calls"] for line in lines)
            skips = any("sparse" in line["op"] for line in lines)
            found.setdefault(name, []).append(Point(row["sparsity"], seconds, skips))
    return {name: points for name, points in found.items()
            if points[0].sparsity == 0 and any(point.skips for point in points)}  # fmt: skip


def crossover(points: Sequence[Point]) -> float | None:
    """The least share of zeros measured from which on the layer skips them and takes less time; None at none."""
    dense, *pruned = points
    faster = None
    for point in reversed(pruned):
        if not (point.skips and point.seconds < dense.seconds):
            break
        faster = point.sparsity
    return faster


def profiled(group: Group) -> dict[str, dict[str, list[Point]]]:
    """What a line of the charts is of, `auto` or `auto, block-16x1` where there are several methods -> its layers."""
    rows = [row for row in group.rows if row.get("profile")]
    methods = list(dict.fromkeys(row["method"] for row in rows if row["sparsity"]))
    found = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        for method in methods:
            mine = [row for row in rows if row["variant"] == variant and row["method"] in (method, None)]
            of_layers = layers(mine)
            if of_layers:
                found[variant + (f", {method}" if len(methods) > 1 else "")] = of_layers
    return found


def chart(title: str, of_layers: dict[str, list[Point]], variant: str) -> Chart:
    """A line a layer over sparsity: its time as a share of what it takes without zeros."""
    colour = style.colour(variant)
    data = []
    for name, points in of_layers.items():
        dense = points[0].seconds
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": [point.sparsity * 100 for point in points],
                "y": [point.seconds / dense * 100 for point in points], "line": {"color": colour, "width": 1.5},
                "marker": {"size": 8, "symbol": ["circle" if p.skips else "circle-open" for p in points]},
                "hovertext": [_hover(name, point, dense) for point in points], "hoverinfo": "text", "showlegend": False,
            }
        )  # fmt: skip
    figure = style.figure(
        data, 360, xaxis=style.axis("zeros", ticksuffix="%", rangemode="tozero"),
        yaxis=style.axis("time, of the layer's without zeros", ticksuffix="%", rangemode="tozero"),
    )  # fmt: skip
    return Chart(title, figure, ["A line is a layer, named when pointed at; filled marks skip zeros, open ones don't."])


def _hover(name: str, point: Point, dense: float) -> str:
    what = "skips zeros" if point.skips else "dense"
    return (
        f"{style.escaped(name)}<br>{point.sparsity:.0%} zeros, {what}: {point.seconds * 1e6:.3g} us, "
        f"{dense / point.seconds:.2f}x as fast as without"
    )
