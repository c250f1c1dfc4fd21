"""The table of rules, architectures and shapes, for the terminal and the README: one line a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """The header, a line for each rule that took a case, and the sums."""
    archs = sorted({row["arch"] for row in rows if row["what"] == "compiled"})
    places = sorted({row["arch"] for row in rows if row["what"] == "executed"})
    header = [
        "rule", *(f"compiled, {arch}" for arch in archs), "registers at most", "shared memory at most", "spilled",
        "with tensor cores", "with asynchronous copies", *(f"executed, {place}" for place in places),
        "largest error, of the allowed", "failed",
    ]  # fmt: skip
    found = [header]
    names = dict.fromkeys(row["rule"] for row in rows)
    for name, mine in [*((name, [row for row in rows if row["rule"] == name]) for name in names), ("all", rows)]:
        compiled = [row for row in mine if row["what"] == "compiled"]
        looked_at = [row for row in compiled if "registers" in row]
        errors = [row["error"] / row["allowed"] for row in mine if row.get("error") is not None]
        found.append([
            name,
            *(_shapes([row for row in compiled if row["arch"] == arch]) for arch in archs),
            _most(looked_at, "registers", ""),
            _most(looked_at, "shared", " bytes"),
            f"{sum(row['spilled'] > 0 for row in looked_at)}" if looked_at else "",
            f"{sum(row['tensor_core'] > 0 for row in looked_at)}" if looked_at else "",
            f"{sum(row['async_copies'] > 0 for row in looked_at)}" if looked_at else "",
            *(_shapes([row for row in mine if row["what"] == "executed" and row["arch"] == at]) for at in places),
            f"{max(errors):.0%}" if errors else "",
            f"{sum(row['problem'] is not None for row in mine)}",
        ])  # fmt: skip
    return found


def _shapes(rows: Sequence[Row]) -> str:
    """How many shapes went well."""
    return f"{len({row['shape'] for row in rows if row['problem'] is None})}"


def _most(rows: Sequence[Row], name: str, unit: str) -> str:
    return f"{max(row[name] for row in rows):,}{unit}" if rows else ""
