"""The page's tables: all results with values to sort by, and where they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import table
from .roofline import size_text
from .runs import Row, Run, is_peer, sparsity_text
from .style import short


@dataclass(frozen=True)
class Cell:
    """A text, and what it is sorted by: a number, or the text where that is None and there is a text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of the result table. `kind` is `ours` or `peers`."""

    model: str
    kind: str
    cells: list[Cell]
    error: str = ""


@dataclass(frozen=True)
class Fact:
    """What a run says about itself at the top of the page."""

    name: str
    text: str


def header(runs: Sequence[Run]) -> list[str]:
    """The result table's columns; those up to the contender hold texts."""
    found = ["run", "model", "setting", *table.HEADER]
    return [name for name in found if (name != "run" or len(runs) > 1) and (name != "setting" or _differ(runs))]


def shared(runs: Sequence[Run]) -> list[str]:
    """What all rows have in common of batch, data type, threads, strategy and sparsity."""
    settings = [_setting(row) for run in runs for row in run.rows]
    return [part for part in (settings[0] if settings else []) if all(part in setting for setting in settings)]


def lines(runs: Sequence[Run]) -> list[Line]:
    """The results in the order of their files."""
    shown, common = header(runs), set(shared(runs))
    found = []
    for run in runs:
        by_id: dict[int, Line] = {}
        for rows in table.by_model(run.rows).values():
            peer = table.fastest_peer(rows)
            for row, printed in zip(rows, table.cells(rows), strict=True):
                setting = ", ".join(part for part in _setting(row) if part not in common)
                values = _values(row, peer)
                measured = [Cell(text, value) for text, value in zip(printed[1:], values, strict=True)]
                texts = {"run": run.name, "model": row["model"], "setting": setting, "contender": short(row["variant"])}
                cells = [Cell(texts[name]) for name in shown if name in texts]
                by_id[id(row)] = Line(
                    row["model"], "peers" if is_peer(row) else "ours", cells + measured, row["error"] or ""
                )
        found += [by_id[id(row)] for row in run.rows]
    return found


def facts(run: Run) -> list[Fact]:
    """Date, host, revision and load: what says whether to trust the numbers."""
    environment = run.environment
    git = environment.get("git") or {}
    revision = str(git.get("revision") or "")[:9] or "an installed package"
    if git.get("revision"):
        revision += ", with changes that are not committed" if git.get("dirty") else ", clean"
    found = [
        Fact("Date", run.date),
        Fact("Host", f"{environment.get('host', 'unknown')} ({environment.get('cpu', 'CPU unknown')})"),
        Fact("Revision", revision),
        Fact("Load", f"{_plain(environment.get('load_before'))} before, {_plain(environment.get('load_after'))} after"),
    ]
    settings = environment.get("settings") or {}
    if settings.get("quick"):
        found.append(Fact("Quick", "a few samples only, to see that all works: no numbers to compare"))
    return found


def environment(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """A name and a text for each run, in the order of the first run that has the name."""
    flat = [_flat(run.environment) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    return [(name, [fields.get(name, "") for fields in flat]) for name in names]


def _values(row: Row, peer: Row | None) -> list[float | None]:
    """What the columns after the contender are sorted by."""
    latency, accuracy = row["latency_ms"], row["accuracy"] or {}
    if latency is None:
        return [None] * (len(table.HEADER) - 1)
    median = latency["median"]
    return [
        median, (row["ci95"][1] - row["ci95"][0]) / 2 / median if row["ci95"] else None, latency["p10"],
        median / peer["latency_ms"]["median"] if peer else None,
        accuracy.get("top1"), accuracy.get("agreement"), row["max_abs_err"], row["size_bytes"],
    ]  # fmt: skip


def _differ(runs: Sequence[Run]) -> bool:
    common = set(shared(runs))
    return any(set(_setting(row)) - common for run in runs for row in run.rows)


def _setting(row: Row) -> list[str]:
    parts = [f"batch {row['batch']}", row["dtype"], f"{row['threads']} threads"]
    parts += [row["strategy"]] if row["strategy"] != "default" and not is_peer(row) else []
    return parts + [text for text in (sparsity_text(row), "cold" if row["cold"] else "") if text]


def _flat(value: dict[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, item in value.items():
        title = f"{before} {name}".strip().replace("_", " ")
        if isinstance(item, dict):
            found.update(_flat(item, title))
        elif "bytes" in title and isinstance(item, (int, float)):
            found[title.replace(" bytes", "")] = size_text(item)
        else:
            found[title] = _plain(item)
    return found


def _plain(item: Any) -> str:
    if item is None:
        return "unknown"
    if isinstance(item, bool):
        return "yes" if item else "no"
    return ", ".join(map(str, item)) or "none" if isinstance(item, list) else str(item)
