"""Time per kernel: a stacked bar a variant, and the same as a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .. import profile
from . import style
from .runs import Chart, Group, Row, Section

ABOUT = (
    "Each bar is one variant's kernels, timed alone, as shares of their sum, the slowest first; the sum itself stands "
    "beside the name. Pale and full shades only tell neighbours apart."
)
# Kernels with less than this share are one piece together.
_SMALL = 0.015


def section(groups: Sequence[Group], bench: str) -> Section:
    """A chart for each group with profiles."""
    charts = [_chart(group) for group in groups if _profiled(group)]
    missing = []
    if not charts:
        missing = [f"No kernel was timed alone: `{bench} MODEL --profile` (or --report) does that for our variants."]
    return Section("kernels", "Time per kernel", ABOUT, charts, missing)


def tables(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Of each profile its heading, the header and the cells, as the bench prints them, and its one-line conclusion."""
    return [
        {
            "heading": f"{group.title}: {label}, kernel by kernel", "header": profile.HEADER,
            "rows": profile.cells(row["profile"]),
            "conclusion": profile.conclusion(row) if row["latency_ms"] else "",
        }
        for group in groups for row, label in _profiled(group)
    ]  # fmt: skip


def _profiled(group: Group) -> list[tuple[Row, str]]:
    return [(row, label) for row, label in zip(group.rows, group.labels, strict=True) if row.get("profile")]


def _chart(group: Group) -> Chart:
    profiled = _profiled(group)
    data = [_bar(row, label) for row, label in profiled]
    figure = style.figure(
        data, 76 + 46 * len(profiled), barmode="overlay", showlegend=False, uniformtext={"minsize": 10, "mode": "hide"},
        xaxis=style.axis("share of the kernels' sum", range=[0, 100], ticksuffix="%"),
        yaxis=style.axis("", autorange="reversed", type="category", ticks=""),
    )  # fmt: skip
    return Chart(group.title, figure)


def _bar(row: Row, label: str) -> dict[str, Any]:
    """One trace, each kernel a bar that begins where the one before it ends."""
    pieces = _pieces(row["profile"])
    total = sum(seconds for _, seconds, _ in pieces)
    starts, at = [], 0.0
    for _, seconds, _ in pieces:
        starts.append(at)
        at += seconds / total * 100
    full = style.colour(row["variant"])
    name = f"{style.escaped(label)}<br>{_time(total)}"
    return {
        "type": "bar", "orientation": "h", "y": [name] * len(pieces), "base": starts, "width": 0.7,
        "x": [seconds / total * 100 for _, seconds, _ in pieces],
        "marker": {"color": [full if index % 2 == 0 else style.shade(full) for index in range(len(pieces))],
                   "line": {"color": style.PAPER, "width": 1}},
        "text": [_brief(kernel) for kernel, _, _ in pieces],
        "textposition": "inside", "insidetextanchor": "middle", "textangle": 0,
        "hovertext": [
            f"<b>{style.escaped(kernel)}</b><br>{style.escaped(what)}<br>{_time(seconds)}, {seconds / total:.1%}"
            for kernel, seconds, what in pieces
        ], "hoverinfo": "text",
    }  # fmt: skip


def _pieces(lines: Sequence[dict[str, Any]]) -> list[tuple[str, float, str]]:
    """Name, seconds in a run of the network, and a description, the slowest first; the small ones as one."""
    whole = [(line, line["seconds"] * line["calls"]) for line in lines]
    whole.sort(key=lambda item: -item[1])
    total = sum(seconds for _, seconds in whole)
    large = [item for item in whole if item[1] >= _SMALL * total]
    small = whole[len(large) :]
    pieces = [
        (line["kernel"], seconds, f"{line['op']}, {line['shape']}, {line['calls']} x {_time(line['seconds'])}")
        for line, seconds in large
    ]
    if small:
        text = ", ".join(line["kernel"] for line, _ in small[:6]) + (", ..." if len(small) > 6 else "")
        pieces.append((f"{len(small)} more", sum(seconds for _, seconds in small), text))
    return pieces


def _brief(kernel: str) -> str:
    """What fits into a narrow bar: the operator and its number, without the epilogue, on two lines."""
    anchor = re.split(r"_(?=add|relu|clip|multiply|subtract|divide|maximum|minimum)", kernel.removeprefix("fused_"))[0]
    return style.escaped(anchor).replace("_", "<br>", 1)


def _time(seconds: float) -> str:
    value, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 else (seconds * 1e6, "us")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
