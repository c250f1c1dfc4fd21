"""What is shown: result documents, and their rows in groups that belong on one chart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..cases import PEER
from .style import short

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One document. `name` tells it from others on the page; it is empty where there is only one."""

    name: str
    date: str
    document: dict[str, Any]

    @property
    def environment(self) -> dict[str, Any]:
        """Where it was measured."""
        return dict(self.document["environment"])

    @property
    def rows(self) -> list[Row]:
        """Its results."""
        return list(self.document["results"])


@dataclass(frozen=True)
class Group:
    """Rows of one run that are compared on one chart: a model in one setting, or all single kernels."""

    run: Run
    title: str
    rows: list[Row]
    labels: list[str]


@dataclass(frozen=True)
class Chart:
    """A figure for plotly, what it shows in words, and notes below it."""

    title: str
    figure: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """Charts of one kind. `about` says how to read them, `missing` what there is none of, and what would give it."""

    key: str
    title: str
    about: str
    charts: list[Chart]
    missing: list[str] = field(default_factory=list)


def runs_of(documents: Sequence[tuple[str, dict[str, Any]]]) -> list[Run]:
    """A run for each (file name, document)."""
    found = []
    for number, (file, document) in enumerate(documents, 1):
        name = f"run {number}" if len(documents) > 1 else ""
        found.append(Run(name, date_of(file, document["environment"]), document))
    return found


def date_of(file: str, environment: dict[str, Any]) -> str:
    """When a run was made, for people: from the document, or from a saved run's file name."""
    stamp = re.match(r"(\d{8}T\d{6})Z", Path(file).name)
    try:
        when = datetime.fromisoformat(str(environment["date"])).astimezone(timezone.utc)
    except (KeyError, ValueError):
        if stamp is None:
            return "date unknown"
        when = datetime.strptime(stamp[1], "%Y%m%dT%H%M%S")
    return f"{when:%Y-%m-%d %H:%M} UTC"


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The rows of all runs in groups, in their order."""
    groups = []
    for run in runs:
        by_setting: dict[tuple[Any, ...], list[Row]] = {}
        for row in run.rows:
            by_setting.setdefault(_setting(row), []).append(row)
        for rows in by_setting.values():
            groups.append(Group(run, _title(run, rows), rows, labels_of(rows)))
    return groups


def is_peer(row: Row) -> bool:
    """Whether a row is of what a user would run instead."""
    return str(row["variant"]).startswith(PEER)


def is_kernel(row: Row) -> bool:
    """Whether a row is of a single kernel, from bench.kernels."""
    return all(name in row for name in ("op", "shape", "gflops", "bytes_per_s"))


def sparsity_text(row: Row) -> str:
    """`90% magnitude`; nothing for a row that is not pruned."""
    return f"{row['sparsity']:.0%} {row['method'] or 'pruned'}" if row["sparsity"] else ""


def labels_of(rows: Sequence[Row]) -> list[str]:
    """A name for each row of a group: the contender, and in what else it differs from others here."""
    strategies = {row["strategy"] for row in rows if not is_peer(row)}
    labels = []
    for row in rows:
        parts = [str(row["model"]) if is_kernel(row) else short(row["variant"])]
        if len(strategies) > 1 and not is_peer(row):
            parts.append(row["strategy"])
        parts += [text for text in [sparsity_text(row)] if text]
        labels.append(", ".join(parts))
    # Twice the same contender, from several files' worth of rows: numbered, because a chart would merge them.
    return [
        label if label not in labels[:index] else f"{label} ({labels[:index].count(label) + 1})"
        for index, label in enumerate(labels)
    ]


def _setting(row: Row) -> tuple[Any, ...]:
    if is_kernel(row):
        return ("kernels", row["threads"])
    return tuple(row[name] for name in ("model", "batch", "dtype", "threads", "cold"))


def _title(run: Run, rows: Sequence[Row]) -> str:
    first = rows[0]
    threads = f"{first['threads']} thread" + ("s" if first["threads"] != 1 else "")
    parts = [first["model"], f"batch {first['batch']}", first["dtype"], threads]
    if is_kernel(first):
        parts = ["single kernels", first["dtype"], threads]
    if first["cold"]:
        parts.append("cold")
    return ", ".join([*([run.name] if run.name else []), *parts])
