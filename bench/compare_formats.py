"""Comparisons as Markdown (which reads well on a terminal too), CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from . import statistics
from .compare import Comparison, Line
from .table import milliseconds

SCHEMA_VERSION = 1
# What makes a contender, as in results.key; in Markdown, the last ones are shown only where they tell lines apart.
_ALWAYS = ("model", "variant")
_IF_NEEDED = ("target", "dtype", "batch", "sparsity", "method", "threads", "strategy", "cold")
_NUMBERS = ("old_ms", "new_ms", "ratio", "low", "high", "p")
_MEANS = {"all": None, "ours": False, "peers": True}


def markdown(comparisons: Sequence[Comparison]) -> str:
    """One section a comparison: what differs around it, the table, the means, what fails."""
    return "\n".join(_section(one) for one in comparisons)


def _section(one: Comparison) -> str:
    lines = [*one.lines, *one.others]
    telling = [name for name in _IF_NEEDED if len({line.row[name] for line in lines}) > 1]
    header = [*("contender" if name == "variant" else name for name in _ALWAYS), *telling]
    header += ["old ms", "new ms", "new/old", "95%", "p", "verdict"]
    said = [f"old: {one.old}", f"new: {one.new}", *(f"differs: {difference}" for difference in one.differences)]
    # A line of its own each, in Markdown too.
    said = [f"- {text}" for text in said]
    body = [[*(str(line.row[name]) for name in (*_ALWAYS, *telling)), *_texts(line)] for line in lines]
    said += ["", *_grid(header, body), ""]
    means = [f"{name} {mean:.3f} (of {count})" for name, (mean, count) in _means(one).items() if mean is not None]
    if means:
        said.append(f"geometric mean of new/old: {', '.join(means)}")
    said += [""] * bool(one.fails)
    said += [f"- fails: {line.row['model']} {line.row['variant']}: {line.verdict}" for line in one.fails]
    return "\n".join(said) + "\n"


def _texts(line: Line) -> list[str]:
    found = line.ratio
    times = ["" if ms is None else milliseconds(ms) for ms in (line.old_ms, line.new_ms)]
    ratio = [f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}", f"{found.p:.3f}"] if found else [""] * 3
    return [*times, *ratio, line.verdict]


def _grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    texts = ["| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |" for row in [header, *body]]
    return [texts[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *texts[1:]]


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """One line a contender and comparison, those that have no counterpart too; an empty field is what there is not."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["old", "new", *_ALWAYS, *_IF_NEEDED, *_NUMBERS, "verdict", "fails"], lineterminator="\n"
    )
    writer.writeheader()
    for one in comparisons:
        for line in (*one.lines, *one.others):
            writer.writerow({"old": one.old, "new": one.new, **_record(one, line)})
    return text.getvalue()


def as_json(comparisons: Sequence[Comparison]) -> str:
    """An object with `schema_version`, `baseline` and `comparisons`; null is what there is not."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "baseline": comparisons[0].old,
        "comparisons": [
            {
                "file": one.new,
                "differences": [{"name": d.name, "old": d.old, "new": d.new} for d in one.differences],
                "lines": [_record(one, line) for line in one.lines],
                "not_compared": [_record(one, line) for line in one.others],
                "geometric_mean": {name: mean for name, (mean, _) in _means(one).items()},
            }
            for one in comparisons
        ],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _record(one: Comparison, line: Line) -> dict[str, Any]:
    found = line.ratio
    ratio = (found.value, found.low, found.high, found.p) if found else (None,) * 4
    numbers = [v if v is None or math.isfinite(v) else None for v in (line.old_ms, line.new_ms, *ratio)]
    record = {name: line.row[name] for name in (*_ALWAYS, *_IF_NEEDED)}
    return {**record, **dict(zip(_NUMBERS, numbers, strict=True)), "verdict": line.verdict, "fails": line in one.fails}


def _means(one: Comparison) -> dict[str, tuple[float | None, int]]:
    """Which -> the geometric mean of new/old, None of none, and of how many."""
    found = {name: one.ratios(peers) for name, peers in _MEANS.items()}
    return {name: (statistics.geometric_mean(of) if of else None, len(of)) for name, of in found.items()}


# Format -> what makes its text.
WRITERS: dict[str, Callable[[Sequence[Comparison]], str]] = {"markdown": markdown, "csv": as_csv, "json": as_json}
