"""`python -m bench.compare OLD NEW`: what became faster, what slower, and what only looks so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import DataError, UsageError
from tvmopt.options import make_parser, percentage, run

if TYPE_CHECKING:
    import argparse

    from .statistics import Ratio

# Two builds of the same code differ by as much, from one process to the next, by where their memory happens to be.
SAME_WITHIN = 0.01
_SIGNIFICANT = 0.05
# With fewer rounds no test can call a difference significant.
_FEWEST_ROUNDS = 4
# What, if it differs, may itself be why the times do.
_MATTERS = ("host", "cpu", "cores_usable", "threads", "governor", "turbo", "kernel", "python", "versions", "git")


@dataclass(frozen=True)
class Line:
    """One contender in both files: new / old, and what that means. `ratio` is None where one of them has no times."""

    row: dict[str, Any]
    old_ms: float | None
    new_ms: float | None
    ratio: Ratio | None
    verdict: str


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Line]:
    """A line for every contender in both documents, in the new one's order."""
    from . import results

    before = {results.key(row): row for row in old["results"]}
    return [_line(before[results.key(row)], row) for row in new["results"] if results.key(row) in before]


def _line(old: dict[str, Any], new: dict[str, Any]) -> Line:
    from . import statistics

    if not old["latency_ms"] or not new["latency_ms"]:
        failed = [name for name, row in (("old", old), ("new", new)) if not row["latency_ms"]]
        return Line(new, _median(old), _median(new), None, f"failed in {' and '.join(failed)}")
    found = statistics.ratio(new["samples_ms"], new["rounds"], old["samples_ms"], old["rounds"])
    return Line(new, _median(old), _median(new), found, _verdict(found, old, new))


def _verdict(found: Ratio, old: dict[str, Any], new: dict[str, Any]) -> str:
    """ "faster" or "slower" only if the interval excludes 1, the rounds' test agrees, and the size is not a nothing."""
    if min(len(set(old["rounds"])), len(set(new["rounds"]))) < _FEWEST_ROUNDS:
        return "too few rounds"
    apart = found.low > 1 or found.high < 1
    if not apart or found.p >= _SIGNIFICANT or abs(found.value - 1) < SAME_WITHIN:
        return "no difference"
    return "slower" if found.value > 1 else "faster"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each part of the environment that differs and may explain a difference in time."""
    lines: list[str] = []
    for name in _MATTERS:
        a, b = old["environment"].get(name), new["environment"].get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += [f"{name}.{k}: {a.get(k)} -> {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        elif a != b:
            lines.append(f"{name}: {a} -> {b}")
    return lines


def render(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table, which reads well on a terminal too."""
    from .table import milliseconds

    header = ["model", "contender", "old ms", "new ms", "new/old", "95%", "p", "verdict"]
    body = []
    for line in lines:
        r = line.ratio
        body.append(
            [
                line.row["model"],
                line.row["variant"],
                milliseconds(line.old_ms) if line.old_ms is not None else "",
                milliseconds(line.new_ms) if line.new_ms is not None else "",
                f"{r.value:.3f}" if r else "",
                f"{r.low:.3f} to {r.high:.3f}" if r else "",
                f"{r.p:.3f}" if r else "",
                line.verdict,
            ]
        )
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    texts = ["| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |" for row in [header, *body]]
    return "\n".join([texts[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *texts[1:]])


def parser() -> argparse.ArgumentParser:
    """The command line of `bench.compare`."""
    made = make_parser(
        "compare",
        "bench.compare",
        "Compares two saved runs, contender by contender: the ratio of the medians with its 95% interval, and a "
        "Mann-Whitney test between their rounds. Without files, the last two saved runs of this host.",
        ["", "old.json new.json", "old.json new.json --fail-above 5%"],
    )
    made.add_argument("files", nargs="*", type=Path, metavar="FILE", help="the old run and the new one")
    made.add_argument("--fail-above", type=percentage, metavar="SHARE",
                      help="exit with 1 where one is slower by more, at the interval's lower end")  # fmt: skip
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the comparison; 1 where --fail-above is exceeded, or a contender newly fails under it."""
    args = parser().parse_args(argv)
    old_path, new_path = _paths(args.files)
    from . import results, statistics

    old, new = results.read(old_path), results.read(new_path)
    lines = compare(old, new)
    if not lines:
        raise DataError(f"{old_path} and {new_path} have no contender in common: nothing to compare")
    print(f"old: {old_path}\nnew: {new_path}")
    for difference in differences(old, new):
        print(f"differs: {difference}")
    print(render(lines))
    ratios = [line.ratio.value for line in lines if line.ratio is not None]
    if ratios:
        print(f"geometric mean of new/old over {len(ratios)} contenders: {statistics.geometric_mean(ratios):.3f}")
    if args.fail_above is None:
        return 0
    bad = [line for line in lines if _exceeds(line, args.fail_above)]
    for line in bad:
        print(f"fails: {line.row['model']} {line.row['variant']}: {line.verdict}")
    return 1 if bad else 0


def _exceeds(line: Line, share: float) -> bool:
    if line.ratio is None:
        return line.old_ms is not None
    return line.verdict == "slower" and line.ratio.low > 1 + share


def _paths(files: Sequence[Path]) -> tuple[Path, Path]:
    if len(files) == 2:
        return files[0], files[1]
    if files:
        raise UsageError(f"{len(files)} files given: two are compared, the old and the new, or none for the last two")
    from tvmopt.machine import detect

    from . import environment, results

    root, host = results.results_root(), environment.host_name(detect())
    saved = results.saved_runs(root, host)
    if len(saved) < 2:
        raise DataError(f"{len(saved)} saved runs in {root / host}, two are needed: run the bench, or name two files")
    return saved[-2], saved[-1]


def _median(row: dict[str, Any]) -> float | None:
    return None if not row["latency_ms"] else float(row["latency_ms"]["median"])


if __name__ == "__main__":
    raise SystemExit(run(main))
