"""Results for people: a table on the terminal, the same in Markdown, and the one line that says how we stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import statistics
from .cases import PEER
from .results import counted

if TYPE_CHECKING:
    from rich.table import Table

HEADER = (
    "contender",
    "median ms",
    "± 95%",
    "p10 to p90 ms",
    "vs fastest peer",
    "top-1",
    "agree",
    "max error",
    "size MB",
)
Row = dict[str, Any]


def by_model(results: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Results that can be compared with each other: same model, batch, dtype, sparsity, cold or warm."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in results:
        key = tuple(row[name] for name in ("model", "batch", "dtype", "sparsity", "method", "threads", "cold"))
        groups.setdefault(key, []).append(row)
    return groups


def title(rows: Sequence[Row]) -> str:
    """What a table is of."""
    first = rows[0]
    parts = [first["model"], f"batch {first['batch']}", first["dtype"], f"{first['threads']} threads"]
    if first["sparsity"]:
        parts.append(f"{first['sparsity']:.0%} of zeros by {first['method']}")
    if first["cold"]:
        parts.append("cold caches")
    if first["strategy"] != "default":
        parts.append(f"ours with {first['strategy']}")
    if first["flops"]:
        parts.append(f"{first['flops'] / 1e9:.3g} GFLOP")
    return ", ".join(parts)


def fastest_peer(rows: Sequence[Row]) -> Row | None:
    """The peer with the smallest median, None where no peer was timed."""
    peers = [row for row in rows if row["variant"].startswith(PEER) and row["latency_ms"]]
    return min(peers, key=lambda row: row["latency_ms"]["median"], default=None)


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One tuple of texts a row, under `HEADER`. A `!` behind the median marks an unstable one."""
    peer = fastest_peer(rows)
    table = []
    for row in rows:
        if row["error"] is not None:
            table.append((row["variant"], "failed", *[""] * (len(HEADER) - 2)))
            continue
        latency, accuracy = row["latency_ms"], row["accuracy"]
        half = f"{(row['ci95'][1] - row['ci95'][0]) / 2 / latency['median']:.1%}" if row["ci95"] else ""
        table.append(
            (
                row["variant"],
                milliseconds(latency["median"]) + (" !" if row["unstable"] else ""),
                half,
                f"{milliseconds(latency['p10'])} to {milliseconds(latency['p90'])}",
                f"{latency['median'] / peer['latency_ms']['median']:.2f}" if peer else "",
                f"{accuracy['top1']:.2%}" if accuracy else "",
                f"{accuracy['agreement']:.2%}" if accuracy else "",
                f"{row['max_abs_err']:.1e}" if row["max_abs_err"] is not None else "",
                f"{row['size_bytes'] / 1e6:.2f}" if row["size_bytes"] else "",
            )
        )
    return table


def _with_sizes(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """`HEADER` and `cells`; for a pruned network its parameters' bytes without their zeros, too."""
    if not rows[0]["sparsity"]:
        return HEADER, cells(rows)
    bare = [row["size_compressed_bytes"] for row in rows]
    texts = [f"{size / 1e6:.2f}" if size and not row["error"] else "" for size, row in zip(bare, rows, strict=True)]
    return (*HEADER, "sparse MB"), [(*line, text) for line, text in zip(cells(rows), texts, strict=True)]


def notes(rows: Sequence[Row]) -> list[str]:
    """What has to be said under a table: errors in full, what the mark means, what the sizes are of."""
    said = [f"{row['variant']} failed: {row['error']}" for row in rows if row["error"] is not None]
    few = [row for row in rows if row["unstable"]]
    if few:
        said.append("! unstable: too few quiet samples in the time limit, or too wide an interval; no conclusion on 1%")
    if rows[0]["sparsity"]:
        said.append("size MB: of ours the exported file; sparse MB: all parameters, their zeros left out, as computed")
    return said


def grid(
    heading: str,
    header: Sequence[str],
    texts: Sequence[Sequence[str]],
    styles: Sequence[str] | None = None,
    left: int = 1,
) -> Table:
    """A rich table; the first `left` columns are set left, the others right."""
    from rich.table import Table

    table = Table(title=heading, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    for index, row in enumerate(texts):
        table.add_row(*row, style=styles[index] if styles else "")
    return table


def markdown_grid(heading: str, header: Sequence[str], texts: Sequence[Sequence[str]], left: int = 1) -> str:
    """The same in Markdown."""
    lines = [f"**{heading}**", "", "| " + " | ".join(header) + " |"]
    lines.append("|" + "---|" * left + "---:|" * (len(header) - left))
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in texts)])


def terminal(rows: Sequence[Row]) -> Table:
    """A rich table of rows that `by_model` put together."""
    best = min((row["latency_ms"]["median"] for row in rows if row["latency_ms"]), default=None)
    fastest = [bool(row["latency_ms"]) and row["latency_ms"]["median"] == best for row in rows]
    styles = ["red" if row["error"] else "bold green" if won else "" for row, won in zip(rows, fastest, strict=True)]
    return grid(title(rows), *_with_sizes(rows), styles)


def markdown(rows: Sequence[Row]) -> str:
    """The same table in Markdown."""
    return "\n".join([markdown_grid(title(rows), *_with_sizes(rows)), "", *notes(rows)]).rstrip() + "\n"


def conclusion(rows: Sequence[Row]) -> str:
    """One line: the fastest peer, our ratio to it with its interval, the accuracy.

    Ours is what a user would take: auto, else manual, else original.
    """
    peer = fastest_peer(rows)
    timed = {row["variant"]: row for row in rows if row["latency_ms"]}
    ours = next((timed[name] for name in ("auto", "manual", "original") if name in timed), None)
    parts = [rows[0]["model"] + (" with cold caches" if rows[0]["cold"] else "")]
    if peer is not None:
        parts.append(f"fastest peer {peer['variant'][len(PEER) :]} {milliseconds(peer['latency_ms']['median'])} ms")
    if ours is not None and peer is None:
        parts.append(f"{ours['variant']} {milliseconds(ours['latency_ms']['median'])} ms, no peer measured")
    if ours is not None and peer is not None:
        (theirs, their_rounds), (times, rounds) = counted(peer, ours)
        found = statistics.ratio(theirs, their_rounds, times, rounds)
        text = f"{ours['variant']} {milliseconds(ours['latency_ms']['median'])} ms is {found.value:.2f}x as fast"
        parts.append(f"{text} (95%: {found.low:.2f} to {found.high:.2f})")
    accurate = ours or peer
    if accurate is not None and accurate["accuracy"]:
        accuracy = accurate["accuracy"]
        parts.append(f"top-1 {accuracy['top1']:.2%}, {accuracy['agreement']:.2%} as PyTorch, of {accuracy['n']} images")
    elif accurate is not None and accurate["max_abs_err"] is not None:
        parts.append(f"largest error {accurate['max_abs_err']:.1e}")
    return "; ".join(parts) if len(parts) > 1 else f"{parts[0]}: nothing was measured"


def milliseconds(value: float) -> str:
    """Three or four digits, whatever the size."""
    return (
        f"{value:.4f}"
        if value < 1
        else f"{value:.3f}"
        if value < 10
        else f"{value:.2f}"
        if value < 100
        else f"{value:.1f}"
    )
