"""Accuracy against sparsity and against latency, with the Pareto front marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import table
from . import style
from .runs import Chart, Group, Row, Section, is_peer

_SPARSITY = "Top-1 accuracy of pruned models; each line is a contender."
_LATENCY = (
    "Up is more accurate, left is faster. A ring marks the Pareto front: no other contender is as accurate and faster. "
    "Circles are ours, diamonds are peers."
)


def over_sparsity(groups: Sequence[Group], bench: str, *, prunes: bool) -> Section:
    """Lines over sparsity, for groups with more than one; `prunes` says whether the bench has --sparsity."""
    charts = [_sparsity_chart(group) for group in groups if len({row["sparsity"] for row in _scored(group)}) > 1]
    missing = []
    if not charts:
        measured = {f"{row['sparsity']:.0%}" for group in groups for row in group.rows}
        what = f"Only sparsity {measured.pop()} was measured" if len(measured) == 1 else "No sparsities to compare"
        way = f"`{bench} MODEL --sparsity 0,0.5,0.9` measures more" if prunes else "this version's bench does not prune"
        missing = [f"{what}, so there is no curve to draw: {way}."]
    return Section("sparsity", "Accuracy against sparsity", _SPARSITY, charts, missing)


def over_latency(groups: Sequence[Group], bench: str) -> Section:
    """A point for every contender whose accuracy was measured."""
    charts = [_latency_chart(group) for group in groups if _scored(group)]
    without = [group.title for group in groups if not _scored(group)]
    missing = []
    if without:
        missing = [
            f"No accuracy was measured of {'; '.join(without)}: "
            f"`{bench} MODEL --dataset D --data-dir DIR` measures it on a data set of yours."
        ]
    return Section("accuracy", "Accuracy against latency", _LATENCY, charts, missing)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (latency, accuracy) points that no other beats, the fastest first.

    One point beats another if it is no slower and no less accurate, and better in one of the two.
    """

    def beaten(latency: float, accuracy: float) -> bool:
        return any(
            other[0] <= latency and other[1] >= accuracy and other != (latency, accuracy) for other in points
        )  # fmt: skip

    return sorted((i for i, point in enumerate(points) if not beaten(*point)), key=lambda i: points[i])


def _scored(group: Group) -> list[Row]:
    return [row for row in group.rows if row["accuracy"] and row["latency_ms"]]


def _top1(rows: Sequence[Row]) -> list[float]:
    return [row["accuracy"]["top1"] * 100 for row in rows]


def _accuracy_axis(values: Sequence[float]) -> dict[str, Any]:
    """At least two points of a percent, so that nothing looks like a difference that is none."""
    low, high = min(values), max(values)
    middle, half = (low + high) / 2, max((high - low) * 0.6, 1.0)
    return style.axis("top-1", range=[max(middle - half, -1), min(middle + half, 101)], ticksuffix="%", nticks=6)


def _sparsity_chart(group: Group) -> Chart:
    rows = _scored(group)
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["variant"], row["strategy"] if not is_peer(row) else ""), []).append(row)
    strategies = {strategy for _, strategy in lines if strategy}
    data = []
    for (variant, strategy), points in lines.items():
        points = sorted(points, key=lambda row: row["sparsity"])
        name = style.short(variant) + (f", {strategy}" if len(strategies) > 1 and strategy else "")
        texts = [f"{name}<br>{row['sparsity']:.1%} sparse: top-1 {row['accuracy']['top1']:.2%}" for row in points]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": style.escaped(name),
                "x": [row["sparsity"] * 100 for row in points], "y": _top1(points),
                "line": {"color": style.colour(variant), "width": 2},
                "marker": {"size": 8, "symbol": "diamond" if is_peer(points[0]) else "circle"},
                "hovertext": texts, "hoverinfo": "text", "showlegend": True,
            }
        )  # fmt: skip
    figure = style.figure(
        data, 360, xaxis=style.axis("sparsity", ticksuffix="%", rangemode="tozero"), yaxis=_accuracy_axis(_top1(rows))
    )
    return Chart(group.title, figure)


def _latency_chart(group: Group) -> Chart:
    scored = [(row, label) for row, label in zip(group.rows, group.labels, strict=True) if row in _scored(group)]
    rows = [row for row, _ in scored]
    latencies, accuracies = [row["latency_ms"]["median"] for row in rows], _top1(rows)
    front = pareto(list(zip(latencies, accuracies, strict=True)))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines+markers", "name": "Pareto front", "hoverinfo": "skip",
            "x": [latencies[i] for i in front], "y": [accuracies[i] for i in front],
            "line": {"color": style.MUTED, "width": 1.5, "dash": "dash", "shape": "hv"},
            "marker": {"size": 19, "symbol": "circle-open", "color": style.TEXT, "line": {"width": 2}},
            "showlegend": True,
        }
    ]  # fmt: skip
    for (row, label), x, y in zip(scored, latencies, accuracies, strict=True):
        low, high = row["ci95"] or (x, x)
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": style.escaped(label), "x": [x], "y": [y],
                "marker": {"size": 10, "symbol": "diamond" if is_peer(row) else "circle",
                           "color": style.colour(row["variant"]), "line": {"color": style.TEXT, "width": 1}},
                "error_x": {"type": "data", "symmetric": False, "array": [high - x], "arrayminus": [x - low],
                            "color": style.MUTED, "thickness": 1, "width": 3},
                "hovertext": f"<b>{style.escaped(label)}</b><br>{table.milliseconds(x)} ms<br>top-1 {y:.2f}% of "
                f"{row['accuracy']['n']} images", "hoverinfo": "text", "showlegend": True,
            }
        )  # fmt: skip
    figure = style.figure(
        data, 380, xaxis=style.value_axis("median latency, ms", latencies, room=0.05), yaxis=_accuracy_axis(accuracies)
    )
    same = "All of these are equally accurate, so the fastest alone is the front." if len(set(accuracies)) == 1 else ""
    return Chart(group.title, figure, [same] if same and len(rows) > 1 else [])
