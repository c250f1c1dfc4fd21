"""Accuracy against sparsity and against latency, with the Pareto front marked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from .. import table
from . import style
from .runs import Chart, Group, Row, Section, is_peer

_SPARSITY = "Top-1 accuracy of pruned models; each line is a contender."
_LATENCY = (
    "Up is more accurate, left is faster. A ring marks the Pareto front: no other contender is as accurate and faster. "
    "Circles are ours, diamonds are peers, other marks are pruned models, one for each method."
)


# A line's dashes say by which method was pruned; its colour is its contender's.
_DASHES = ("solid", "dash", "dot", "dashdot")
# What a pruned model is drawn as, by its method.
_PRUNED = ("square", "triangle-up", "cross", "star")


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
    if without or not groups:
        of_these = f" of {'; '.join(without)}" if without else ""
        way = f"`{bench} MODEL --dataset D --data-dir DIR` measures it on a data set of yours"
        missing = [f"No accuracy was measured{of_these}: {way}."]
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
    methods = list(dict.fromkeys(row["method"] for row in rows if row["sparsity"])) or [None]
    contenders = dict.fromkeys((row["variant"], "" if is_peer(row) else row["strategy"]) for row in rows)
    strategies = {strategy for _, strategy in contenders if strategy}
    data = []
    for (variant, strategy), method in itertools.product(contenders, methods):
        # The model as it was belongs to the lines of all methods.
        points = [
            row for row in rows
            if row["variant"] == variant and strategy in ("", row["strategy"])
            and (row["method"] == method or not row["sparsity"])
        ]  # fmt: skip
        pruned = any(row["sparsity"] for row in points)
        if not pruned and method != methods[0]:
            continue
        points.sort(key=lambda row: float(row["sparsity"]))
        parts = [strategy if len(strategies) > 1 else "", str(method) if pruned and len(methods) > 1 else ""]
        name = ", ".join([style.short(variant), *(part for part in parts if part)])
        texts = [f"{name}<br>{row['sparsity']:.1%} sparse: top-1 {row['accuracy']['top1']:.2%}" for row in points]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": style.escaped(name),
                "x": [row["sparsity"] * 100 for row in points], "y": _top1(points),
                "line": {"color": style.colour(variant), "width": 2, "dash": _DASHES[methods.index(method) % 4]},
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
    rows, labels = [row for row, _ in scored], [label for _, label in scored]
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
    methods = list(dict.fromkeys(row["method"] for row in rows if row["sparsity"]))
    several = len({row["strategy"] for row in rows if not is_peer(row)}) > 1
    by_name: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        strategy = f", {row['strategy']}" if several and not is_peer(row) else ""
        by_name.setdefault(style.short(row["variant"]) + strategy, []).append(index)
    for name, points in by_name.items():
        intervals = [rows[i]["ci95"] or (latencies[i], latencies[i]) for i in points]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": style.escaped(name),
                "x": [latencies[i] for i in points], "y": [accuracies[i] for i in points],
                "marker": {
                    "size": 10, "symbol": [_symbol(rows[i], methods) for i in points],
                    "color": style.colour(rows[points[0]]["variant"]), "line": {"color": style.TEXT, "width": 1},
                },
                "error_x": {
                    "type": "data", "symmetric": False, "color": style.MUTED, "thickness": 1, "width": 3,
                    "array": [high - latencies[i] for i, (_, high) in zip(points, intervals, strict=True)],
                    "arrayminus": [latencies[i] - low for i, (low, _) in zip(points, intervals, strict=True)],
                },
                "hovertext": [f"<b>{style.escaped(labels[i])}</b><br>{table.milliseconds(latencies[i])} ms<br>top-1 "
                              f"{accuracies[i]:.2f}% of {rows[i]['accuracy']['n']} images" for i in points],
                "hoverinfo": "text", "showlegend": True,
            }
        )  # fmt: skip
    figure = style.figure(
        data, 380, xaxis=style.value_axis("median latency, ms", latencies, room=0.05), yaxis=_accuracy_axis(accuracies)
    )
    named = [f"{labels[i]} ({table.milliseconds(latencies[i])} ms, {accuracies[i]:.2f}%)" for i in front]
    notes = ["Pareto front: " + "; ".join(named) + "."]
    if len(set(accuracies)) == 1 and len(rows) > 1:
        notes.append("All of these are equally accurate, so the fastest alone is the front.")
    return Chart(group.title, figure, notes)


def _symbol(row: Row, methods: Sequence[str | None]) -> str:
    if not row["sparsity"]:
        return "diamond" if is_peer(row) else "circle"
    return _PRUNED[methods.index(row["method"]) % len(_PRUNED)]
