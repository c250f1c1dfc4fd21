"""The roofline: every kernel's speed by how much it computes with each byte, under the machine's measured ceilings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import style
from .runs import Chart, Group, Row, Section, is_kernel

ABOUT = (
    "Each marker is a kernel: operations a byte (all inputs and outputs counted once) and the speed it ran at. The "
    "flat line is the measured peak of multiply-adds, the sloping ones are measured bandwidths, by how many bytes are "
    "worked on: a kernel cannot be above the line of its own size. What is far below has something to win."
)
# Labels of ceilings closer to each other than this share of the chart's height would overlap.
_APART = 0.065
_DOUBTFUL = 1.02


def section(groups: Sequence[Group], bench: str) -> Section:
    """A chart for each group with profiles, or with single kernels."""
    charts = [chart for chart in map(_chart, groups) if chart is not None]
    missing = []
    if not charts:
        missing = [f"No kernel was timed alone: `{bench} MODEL --profile` (or --report) does that for our variants."]
    return Section("roofline", "Roofline of the kernels", ABOUT, charts, missing)


def roof_of(rows: Sequence[Row]) -> tuple[float | None, dict[int, float]]:
    """The best ceilings measured in any of `rows`: GFLOP/s, and bytes a second by working set in bytes.

    Each row's process measures them for itself, and whoever else uses the machine only ever lowers them.
    """
    peaks = [row["peak_gflops"] for row in rows if row.get("peak_gflops")]
    bandwidths: dict[int, float] = {}
    for row in rows:
        roof = row.get("roof") or {"gflops": None, "bandwidths": []}
        peaks += [roof["gflops"]] if roof["gflops"] else []
        for size, rate in roof["bandwidths"]:
            bandwidths[size] = max(rate, bandwidths.get(size, 0.0))
    return max(peaks, default=None), dict(sorted(bandwidths.items()))


def size_text(size: float) -> str:
    """Bytes for people: `16 KiB`."""
    power = min(int(math.log(size, 1024)), 3) if size >= 1 else 0
    return f"{size / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _points(row: Row, label: str) -> list[tuple[float, float, str]]:
    """Operations a byte, GFLOP/s and hover text of a row's kernels; those without arithmetic have no place here."""
    if is_kernel(row):
        if not row["latency_ms"]:
            return []
        text = f"<b>{style.escaped(row['op'])}</b><br>{style.escaped(row['shape'])}<br>"
        text += f"{row['latency_ms']['median'] * 1e3:.4g} us<br>{row['gflops']:.1f} GFLOP/s"
        return [(row["gflops"] * 1e9 / row["bytes_per_s"], row["gflops"], text)]
    lines = row.get("profile") or []
    total = sum(line["seconds"] * line["calls"] for line in lines) or 1.0
    points = []
    for line in lines:
        if not line["flops"]:
            continue
        share = line["seconds"] * line["calls"] / total
        doubtful = ", which cannot be: measured while others used the cores" * (line["peak_fraction"] > _DOUBTFUL)
        text = "<br>".join(
            [
                f"<b>{style.escaped(line['kernel'])}</b>", style.escaped(f"{label}, schedule: {line['source']}"),
                "<br>".join(style.escaped(line["shape"]).split(" -&gt; ")),
                f"{line['seconds'] * 1e6:.4g} us x {line['calls']}, {share:.1%} of the sum",
                f"{line['gflops']:.1f} GFLOP/s, {line['bytes_per_s'] * 1e-9:.1f} GB/s",
                f"{line['peak_fraction']:.0%} of its roof{doubtful}",
            ]
        )  # fmt: skip
        points.append((line["flops"] / line["bytes"], line["gflops"], text))
    return points


def _chart(group: Group) -> Chart | None:
    drawn = [(row, label, _points(row, label)) for row, label in zip(group.rows, group.labels, strict=True)]
    everything = [point for _, _, points in drawn for point in points]
    if not everything:
        return None
    peak, bandwidths = roof_of(group.run.rows)
    x_low, x_high = min(p[0] for p in everything), max(p[0] for p in everything) * 2
    speeds = [p[1] for p in everything]
    if peak:
        speeds.append(peak)
        x_high = max([x_high, *(2 * peak * 1e9 / rate for rate in bandwidths.values())])
    # The labels of the sloping lines stand left of all markers, on a phone too.
    x_low /= 2 * (x_high / x_low) ** 0.2
    y_low = min([min(speeds) / 2, *(rate * x_low * 0.7e-9 for rate in bandwidths.values())])
    y_high = max(speeds) * 2
    ceilings, labels = _ceilings(peak, bandwidths, (x_low, x_high), (y_low, y_high))
    data = ceilings + [_markers(row, label, points) for row, label, points in drawn if points]
    figure = style.figure(
        data, 460, annotations=labels, showlegend=True,
        xaxis=style.log_axis("operations a byte", x_low, x_high), yaxis=style.log_axis("GFLOP/s", y_low, y_high),
    )  # fmt: skip
    return Chart(group.title, figure, _notes(group, peak, bandwidths))


def _notes(group: Group, peak: float | None, bandwidths: dict[int, float]) -> list[str]:
    notes = []
    if bandwidths:
        rates = ", ".join(f"{size_text(size)} {rate * 1e-9:.0f}" for size, rate in bandwidths.items())
        notes.append(f"Bandwidths in GB/s by the bytes worked on: {rates}.")
    lines = [line for row in group.rows for line in row.get("profile") or []]
    idle = sum(1 for line in lines if not line["flops"])
    if idle:
        notes.append(f"{idle} kernel{'s' * (idle > 1)} without arithmetic (copies, reshapes) cannot be drawn here.")
    if any(line["peak_fraction"] > _DOUBTFUL for line in lines):
        notes.append("Some kernels seem faster than their roof: it was measured while others used the cores.")
    if not peak or not bandwidths:
        notes.append(f"{'Bandwidths are' if peak else 'The ceilings are'} not in this result.")
    return notes


def _markers(row: Row, label: str, points: Sequence[tuple[float, float, str]]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": style.escaped(label),
        "x": [p[0] for p in points], "y": [p[1] for p in points],
        "hovertext": [p[2] for p in points], "hoverinfo": "text",
        "marker": {"size": 10, "color": style.colour(row["variant"]), "opacity": 0.85,
                   "line": {"color": style.TEXT, "width": 1}},
    }  # fmt: skip


def _ceilings(
    peak: float | None, bandwidths: dict[int, float], xs: tuple[float, float], ys: tuple[float, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines, and their labels as annotations (whose positions on logarithmic axes are logarithms)."""
    lines: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    ridges = [peak * 1e9 / rate for rate in bandwidths.values()] if peak else []
    if peak:
        start = max(min(ridges, default=xs[0]), xs[0])
        lines.append(_line([start, xs[1]], [peak, peak], f"peak {peak:.0f} GFLOP/s", 2.0))
        labels.append(_label(xs[1], peak, f"{peak:.0f} GFLOP/s", "right", "bottom"))
    height = math.log10(ys[1] / ys[0])
    last: float | None = None
    for size, rate in sorted(bandwidths.items(), key=lambda item: -item[1]):
        text = f"{size_text(size)}: {rate * 1e-9:.0f} GB/s"
        end = peak * 1e9 / rate if peak else xs[1]
        lines.append(_line([xs[0], end], [rate * xs[0] * 1e-9, rate * end * 1e-9], text, 1.0))
        y = rate * xs[0] * 1e-9
        if last is None or math.log10(last / y) > _APART * height:
            labels.append(_label(xs[0], y, size_text(size), "left", "middle"))
            last = y
    return lines, labels


def _line(x: list[float], y: list[float], text: str, width: float) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": x, "y": y, "showlegend": False, "hovertext": text, "hoverinfo": "text",
        "line": {"color": style.MUTED, "width": width},
    }  # fmt: skip


def _label(x: float, y: float, text: str, side: str, up: str) -> dict[str, Any]:
    return {
        "x": math.log10(x), "y": math.log10(y), "text": text, "showarrow": False, "xanchor": side, "yanchor": up,
        "font": {"size": 11, "color": style.MUTED}, "bgcolor": style.PAPER, "borderpad": 1,
    }  # fmt: skip
