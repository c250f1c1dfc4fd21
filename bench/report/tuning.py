"""How the searches went: the best so far over candidates and over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import style
from .runs import Chart, Group, Row, Section

ABOUT = (
    "The fastest candidate so far, relative to the schedule written by hand, which is 1. Thin lines are kernels, the "
    "thick one is the sum of all kernels' times, each counted once. Candidates are measured alone and once; the final "
    "decides with more measurements, so what is kept can be less."
)
Step = tuple[float, float]


def section(groups: Sequence[Group], tune: str, bench: str) -> Section:
    """Charts for each row that carries a curve: auto's, where there is a tuning log."""
    charts: list[Chart] = []
    missing: list[str] = []
    for group in groups:
        for row, label in zip(group.rows, group.labels, strict=True):
            curve = row.get("tuning_curve")
            if not curve or not curve["kernels"]:
                continue
            title = f"{group.title}: {label}"
            charts.append(_chart(f"{title}, over candidates", row, "candidates measured", over_trials(curve)))
            timed = over_time(curve)
            if timed is None:
                missing.append(
                    f"{title}: this log does not say when its candidates were measured, so there is no curve over "
                    f"time; `{tune} MODEL --fresh` makes one that does."
                )
            else:
                charts.append(_chart(f"{title}, over time", row, "seconds of search", timed))
    if not charts:
        missing = [f"No result here comes from a search: `{tune} MODEL` makes a log, `{bench} MODEL` then shows it."]
    return Section("tuning", "Tuning", ABOUT, charts, missing)


def over_trials(curve: dict[str, Any]) -> dict[str, list[Step]]:
    """Kernel -> steps of (candidates so far, best ratio), from (0, 1) to the end of the search."""
    end = float(curve["trials"])
    return {
        kernel["kernel"]: _closed([(float(trial), ratio) for trial, _, ratio in kernel["points"]], end)
        for kernel in curve["kernels"]
    }


def over_time(curve: dict[str, Any]) -> dict[str, list[Step]] | None:
    """Kernel -> steps of (seconds, best ratio); None where the log has no times.

    What was found before times were logged is there at the start.
    """
    if curve["elapsed_s"] is None:
        return None
    end = float(curve["elapsed_s"])
    return {
        kernel["kernel"]: _closed([(elapsed or 0.0, ratio) for _, elapsed, ratio in kernel["points"]], end)
        for kernel in curve["kernels"]
    }


def total(steps: dict[str, list[Step]], manual_s: dict[str, float]) -> list[Step]:
    """The sum of the kernels' best times over the sum of manual's, at every step of any of them."""
    best = dict.fromkeys(steps, 1.0)
    whole = sum(manual_s[kernel] for kernel in steps)
    changes = sorted((x, kernel, ratio) for kernel, points in steps.items() for x, ratio in points)
    found: list[Step] = []
    for x, kernel, ratio in changes:
        # A batch's candidates have the same time, and so come in any order.
        best[kernel] = min(best[kernel], ratio)
        value = sum(best[name] * manual_s[name] for name in steps) / whole
        if found and found[-1][0] == x:
            found.pop()
        found.append((x, value))
    return found


def _closed(points: list[Step], end: float) -> list[Step]:
    last = points[-1][1] if points else 1.0
    return [(0.0, 1.0), *points, (max(end, points[-1][0] if points else 0.0), last)]


def _chart(title: str, row: Row, over: str, steps: dict[str, list[Step]]) -> Chart:
    manual_s = {kernel["kernel"]: kernel["manual_s"] for kernel in row["tuning_curve"]["kernels"]}
    data = [_line(kernel, points, kernel == next(iter(steps))) for kernel, points in steps.items()]
    whole = total(steps, manual_s)
    name = f"all kernels: {whole[-1][1]:.3f}"
    data.append(
        {
            "type": "scatter", "mode": "lines", "name": name, "x": [x for x, _ in whole], "y": [y for _, y in whole],
            "line": {"color": style.colour(row["variant"]), "width": 3, "shape": "hv"}, "hoverinfo": "text",
            "hovertext": [f"all kernels: {y:.3f} of manual" for _, y in whole], "showlegend": True,
        }
    )  # fmt: skip
    lowest = min(y for points in steps.values() for _, y in points)
    margin = max(0.1 * (1 - lowest), 0.005)
    figure = style.figure(
        data, 360, xaxis=style.axis(over, rangemode="tozero", nticks=8),
        yaxis=style.axis("time relative to manual", range=[max(0.0, lowest - margin), 1 + margin], nticks=8),
    )  # fmt: skip
    return Chart(title, figure)


def _line(kernel: str, points: Sequence[Step], first: bool) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": "one kernel each", "legendgroup": "kernels", "showlegend": first,
        "x": [x for x, _ in points], "y": [y for _, y in points],
        "line": {"color": style.MUTED, "width": 1, "shape": "hv"},
        "opacity": 0.7, "hoverinfo": "text",
        "hovertext": [f"{style.escaped(kernel)}: {y:.3f} of manual" for _, y in points],
    }  # fmt: skip
