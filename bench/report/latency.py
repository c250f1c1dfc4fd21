"""Latency bars: the median of every contender with its 95% interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import table
from . import style
from .runs import Chart, Group, Section

ABOUT = (
    "Medians in milliseconds, shorter is better; the whiskers are 95% intervals. Hatched bars and a ! mark unstable "
    "results: too few samples within the time limit, or too wide an interval."
)


def section(groups: Sequence[Group], bench: str) -> Section:
    """A chart for each group; `bench` is how the command is called."""
    charts = [_chart(group) for group in groups if any(row["latency_ms"] for row in group.rows)]
    missing = []
    for group in groups:
        if not any(row["latency_ms"] for row in group.rows):
            missing += [f"{group.title}: nothing was timed.", *_failures(group)]
    if not groups:
        missing = [f"There are no results: `{bench}` makes some."]
    return Section("latency", "Latency", ABOUT, charts, missing)


def _chart(group: Group) -> Chart:
    timed = [(row, label) for row, label in zip(group.rows, group.labels, strict=True) if row["latency_ms"]]
    rows = [row for row, _ in timed]
    names = [style.escaped(label) for _, label in timed]
    medians = [row["latency_ms"]["median"] for row in rows]
    lows, highs = zip(*(row["ci95"] or (m, m) for row, m in zip(rows, medians, strict=True)), strict=True)
    bars = {
        "type": "bar", "orientation": "h", "y": names, "x": medians, "width": 0.72,
        "marker": {
            "color": [style.colour(row["variant"]) for row in rows],
            "line": {"color": style.MUTED, "width": 1},
            "pattern": {"shape": ["/" if row["unstable"] else "" for row in rows], "fillmode": "overlay",
                        "fgcolor": style.PAPER, "fgopacity": 0.6, "size": 8, "solidity": 0.3},
        },
        "error_x": {
            "type": "data", "symmetric": False, "color": style.TEXT, "thickness": 1.5, "width": 4,
            "array": [high - m for high, m in zip(highs, medians, strict=True)],
            "arrayminus": [m - low for low, m in zip(lows, medians, strict=True)],
        },
        "hovertext": [_hover(row, label) for row, label in timed], "hoverinfo": "text", "showlegend": False,
    }  # fmt: skip
    # Behind the whisker: a bar's own label would be crossed by it.
    ends = [max(high, m) for high, m in zip(highs, medians, strict=True)]
    texts = {
        "type": "scatter", "mode": "text", "x": ends, "y": names, "textposition": "middle right",
        "text": ["  " + table.milliseconds(row["latency_ms"]["median"]) + (" !" if row["unstable"] else "")
                 for row in rows],
        "hoverinfo": "skip", "showlegend": False, "cliponaxis": False,
    }  # fmt: skip
    figure = style.figure(
        [bars, texts], 64 + 30 * len(rows),
        xaxis=style.value_axis("ms", [*medians, *ends], room=0.2, bars=True),
        yaxis=style.axis("", autorange="reversed", type="category", ticks=""),
    )  # fmt: skip
    return Chart(group.title, figure, _failures(group))


def _failures(group: Group) -> list[str]:
    named = zip(group.rows, group.labels, strict=True)
    return [f"{label} failed: {row['error']}" for row, label in named if row["error"] is not None]


def _hover(row: dict[str, Any], label: str) -> str:
    latency, interval = row["latency_ms"], row["ci95"]
    ms = table.milliseconds
    lines = [f"<b>{style.escaped(label)}</b>", f"median {ms(latency['median'])} ms"]
    if interval:
        lines.append(f"95%: {ms(interval[0])} to {ms(interval[1])} ms")
    lines += [f"p10 to p90: {ms(latency['p10'])} to {ms(latency['p90'])} ms", f"{len(row['samples_ms'])} samples"]
    return "<br>".join([*lines, *(["unstable"] if row["unstable"] else [])])
