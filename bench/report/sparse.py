"""What zeros save: latency of pruned models and of their layers over sparsity, and from how many zeros on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import sparsity_table, table
from . import layers, style
from .runs import Chart, Group, Row, Section, is_kernel, is_peer

_ABOUT = (
    "Latency of pruned models; each line is a contender and method. For their layers, and for single ones, the share "
    "of zeros from which the sparse kernel takes less time than the dense ones of the same run: further left is better."
)
_MARKS = {"direct": ("circle", "manual"), "the best dense strategy": ("diamond-open", "auto")}
_WHOLE = "without zeros"
_LINE_PX, _FRAME_PX = 22, 110


def section(groups: Sequence[Group], bench: str) -> Section:
    """Charts of the groups that have several sparsities, or sparse kernels."""
    charts = []
    for group in groups:
        if is_kernel(group.rows[0]):
            charts += _crossovers(group)
        elif len({row["sparsity"] for row in group.rows if row["latency_ms"]}) > 1:
            charts.append(_latency(group))
            charts += _layers(group)
    missing = []
    if not charts:
        missing = [
            f"Nothing pruned was measured: `{bench} MODEL --sparsity 0,0.5,0.9` measures a model, and the recipe "
            "sparse-kernels single layers."
        ]
    return Section("zeros", "Time against sparsity", _ABOUT, charts, missing)


def _latency(group: Group) -> Chart:
    """A line for every contender and method; the model as it was begins the lines of all methods."""
    rows = [row for row in group.rows if row["latency_ms"]]
    methods = list(dict.fromkeys(row["method"] for row in rows if row["sparsity"]))
    data: list[dict[str, Any]] = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        for number, method in enumerate(methods):
            mine = [row for row in rows if row["variant"] == variant and row["method"] in (method, None)]
            mine.sort(key=lambda row: float(row["sparsity"]))
            name = style.short(variant) + (f", {method}" if len(methods) > 1 else "")
            medians = [row["latency_ms"]["median"] for row in mine]
            data.append(
                {
                    "type": "scatter", "mode": "lines+markers", "name": style.escaped(name),
                    "x": [row["sparsity"] * 100 for row in mine], "y": medians,
                    "line": {"color": style.colour(variant), "width": 2, "dash": ("solid", "dash", "dot")[number % 3]},
                    "marker": {"size": 8, "symbol": "diamond" if is_peer(mine[0]) else "circle"},
                    "hovertext": [f"{style.escaped(name)}<br>{row['sparsity']:.1%} zeros: {table.milliseconds(ms)} ms"
                                  for row, ms in zip(mine, medians, strict=True)],
                    "hoverinfo": "text", "showlegend": True,
                }
            )  # fmt: skip
    values = [value for line in data for value in line["y"]]
    figure = style.figure(
        data, 360, xaxis=style.axis("sparsity", ticksuffix="%", rangemode="tozero"),
        yaxis=style.value_axis("median latency, ms", values),
    )  # fmt: skip
    return Chart(group.title, figure)


def crossovers(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Layer -> what the sparse kernel is set against -> the share of zeros from which it is faster; None at none."""
    layers: dict[str, list[Row]] = {}
    for row in rows:
        layers.setdefault(row["model"], []).append(row)
    found = {}
    for name, mine in layers.items():
        timed = [row for row in mine if row["latency_ms"]]
        if any(map(sparsity_table.is_sparse, timed)):
            pairs = zip(_MARKS, sparsity_table.dense_ms(timed), strict=True)
            found[name] = {against: sparsity_table.crossover(timed, ms) for against, ms in pairs}
    return found


def _crossovers(group: Group) -> list[Chart]:
    found = crossovers(group.rows)
    if not found:
        return []
    summary = sparsity_table.summary([row for row in group.rows if row["latency_ms"]])
    return [_dots(group.title, found, _MARKS, summary)]


def _layers(group: Group) -> list[Chart]:
    """Of each profiled contender a line for every layer over sparsity, and from how many zeros on it is faster."""
    charts = []
    for name, of_layers in layers.profiled(group).items():
        variant = name.partition(",")[0]
        found = {layer: {_WHOLE: layers.crossover(points)} for layer, points in of_layers.items()}
        title = f"{group.title}: {name}, layer by layer"
        charts += [layers.chart(title, of_layers, variant), _dots(title, found, {_WHOLE: ("circle", variant)}, [])]
    return charts


def _dots(
    title: str, found: Mapping[str, Mapping[str, float | None]], marks: Mapping[str, tuple[str, str]],
    said: Sequence[str],
) -> Chart:  # fmt: skip
    """A line a layer, and on it a mark for each of `marks` (against what -> symbol, colour's variant) in `found`."""
    names = list(found)
    data: list[dict[str, Any]] = []
    for against, (symbol, variant) in marks.items():
        known = [(name, share) for name in names if (share := found[name][against]) is not None]
        data.append(
            {
                "type": "scatter", "mode": "markers", "cliponaxis": False, "name": f"faster than {against}",
                "x": [share * 100 for _, share in known], "y": [style.escaped(name) for name, _ in known],
                "marker": {"size": 9, "symbol": symbol, "color": style.colour(variant), "line": {"width": 2}},
                "hovertext": [f"{style.escaped(name)}<br>faster than {against} from {share:.0%} of zeros"
                              for name, share in known],
                "hoverinfo": "text", "showlegend": True,
            }
        )  # fmt: skip
    order = [style.escaped(name) for name in reversed(names)]
    figure = style.figure(
        data, _FRAME_PX + _LINE_PX * len(names), xaxis=style.axis("zeros", ticksuffix="%", range=[0, 100]),
        yaxis=style.axis("", categoryorder="array", categoryarray=order, type="category"),
    )  # fmt: skip
    never = [f"{name}: {against}" for name in names for against in marks if found[name][against] is None]
    notes = [*said, *([f"Not faster at any sparsity measured: {'; '.join(never)}."] if never else [])]
    return Chart(f"{title}: from how many zeros on", figure, notes)
