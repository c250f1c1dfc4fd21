"""Colours and what all charts share.

The palette is Okabe and Ito's, which people with any of the common colour blindnesses tell apart; a contender has the
same colour in every chart. Charts are written in the light colours; the page exchanges them for those in `DARK`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from ..cases import PEER

TEXT, MUTED, GRID, PAPER = "#1b1f24", "#5c6670", "#d8dde3", "#ffffff"
# Contender -> its colour on white. Orange and yellow are where a white page needs an outline, which bars have.
_COLOURS = {
    "original": "#7a7f85", "manual": "#0072b2", "auto": "#d55e00",
    "peer:torch": "#cc79a7", "peer:inductor": "#e69f00", "peer:onnxruntime": "#009e73", "peer:openvino": "#56b4e9",
    "peer:torch-channels-last": "#882255",
}  # fmt: skip
_OTHERS = ("#999933", "#44aa99", "#aa4499", "#661100")
DARK = {
    TEXT: "#e8eaed", MUTED: "#a2abb5", GRID: "#3a4149", PAPER: "#16191d",
    "#7a7f85": "#9aa0a6", "#0072b2": "#3f97d8", "#d55e00": "#f2803a", "#cc79a7": "#e29cc2", "#e69f00": "#f0b73c",
    "#009e73": "#2bc096", "#56b4e9": "#95d4f7", "#882255": "#c65e92", "#999933": "#c4c45a", "#44aa99": "#6fd0c0",
    "#aa4499": "#d17fc3", "#661100": "#c9694f",
}  # fmt: skip
# Values further apart than this are drawn on a logarithmic axis.
_LINEAR_UP_TO = 30
# So much of its text's colour is mixed into a contender's second shade.
_SHADE = 0.3


def colour(variant: str) -> str:
    """The colour of a contender, by its name in a result."""
    known = _COLOURS.get(variant)
    return known or _OTHERS[sum(variant.encode()) % len(_OTHERS)]


def shade(light: str) -> str:
    """A second, paler shade of a colour of the palette, for neighbours that belong to the same contender."""
    return _mix(light, PAPER)


def exchange() -> dict[str, str]:
    """Light colour -> dark colour, second shades included."""
    pairs = dict(DARK)
    for light in [*_COLOURS.values(), *_OTHERS]:
        pairs[shade(light)] = _mix(DARK[light], DARK[PAPER])
    return pairs


def escaped(text: str) -> str:
    """Text for a chart, where some HTML has a meaning."""
    return html.escape(text, quote=False)


def short(variant: str) -> str:
    """A contender's name without the mark of a peer."""
    return variant.removeprefix(PEER)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis in the page's colours."""
    return {
        "title": {"text": title, "standoff": 8}, "gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID,
        "automargin": True, "ticks": "outside", "ticklen": 4, "tickcolor": GRID, "exponentformat": "none", **more,
    }  # fmt: skip


def value_axis(title: str, values: Sequence[float], *, room: float = 0.0, bars: bool = False) -> dict[str, Any]:
    """An axis that holds positive `values`: linear (from 0 for `bars`), or logarithmic where they lie far apart.

    `room` is the share of the axis that stays free at its upper end.
    """
    low, high = min(values), max(values)
    if low > 0 and high / low > _LINEAR_UP_TO:
        bottom, top = math.log10(low) - 0.3, math.log10(high)
        span = (top - bottom) / (1 - room)
        return log_axis(f"{title}, logarithmic", 10**bottom, 10 ** (bottom + span + 0.05))
    margin = (high - low or high or 1.0) * 0.08
    bottom = 0.0 if bars else max(0.0, low - margin)
    return axis(title, range=[bottom, bottom + (high + margin - bottom) / (1 - room)], nticks=7)


def log_axis(title: str, low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis from `low` to `high`."""
    bounds = [math.log10(low), math.log10(high)]
    if bounds[1] - bounds[0] > 2:
        # Ticks between powers of ten would crowd each other on a phone.
        return axis(title, type="log", range=bounds, dtick=1)
    # plotly writes those between as single digits: 2 for 200.
    powers = range(math.floor(bounds[0]), math.ceil(bounds[1]) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return axis(title, type="log", range=bounds, tickvals=ticks, ticktext=[f"{tick:.12g}" for tick in ticks])


def figure(data: Sequence[dict[str, Any]], height: int, **layout: Any) -> dict[str, Any]:
    """A chart as plain JSON, its properties checked by plotly."""
    import plotly.graph_objects as go

    common = {
        "height": height, "margin": {"l": 8, "r": 26, "t": 12, "b": 8, "pad": 2}, "template": {},
        "paper_bgcolor": PAPER, "plot_bgcolor": PAPER,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": TEXT},
        "hoverlabel": {"align": "left", "bgcolor": PAPER, "bordercolor": MUTED, "font": {"color": TEXT}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": PAPER},
        "hovermode": "closest",
    }  # fmt: skip
    made: dict[str, Any] = go.Figure(data=list(data), layout={**common, **layout}).to_plotly_json()
    made["data"] = list(made["data"])
    return made


def _mix(colour: str, with_colour: str) -> str:
    parts = [(int(colour[i : i + 2], 16), int(with_colour[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * _SHADE):02x}" for a, b in parts)
