"""`python -m bench.compare OLD NEW [NEWER ...]`: what became faster, what slower, and what only looks so.

A contender is called different only if the interval of its ratio excludes 1, the test between the rounds agrees, and
the ratio is off by more than SAME_WITHIN; and, where the reference loops between the turns say that the machine itself
was slower in one of the runs, by more than that explains. Where rounds differ by 1%, 1% of the builds compared with
themselves are called different at 10 rounds and fewer at 30; of true differences of 3%, four in five are found at 10
rounds and all at 30 (tests/bench/test_bench_verdicts.py simulates it). That is for each line: of twenty, one may well
be wrong.

But a file holds one process a contender, and what a process has drawn once (where its memory came to lie) is the same
in all of its rounds. So what is judged is those two processes. More rounds make that surer, and say nothing of the
next process of the same build: if processes differ by 0.5%, which SAME_WITHIN covers in part, a tenth of the builds
compared with themselves are called different at 10 rounds and a fifth at 30. Before a difference of a few per cent is
believed, run both builds again, and compare those runs too. The mean over the peers, which nobody changed, says how
much the machine itself did.
"""

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
# Literal, because --help must not import what writes them.
_FORMATS = ("markdown", "csv", "json")
_SUFFIXES = {".md": "markdown", ".csv": "csv", ".json": "json"}


@dataclass(frozen=True)
class Line:
    """One contender: new / old, and what that means. `ratio` is None where there is nothing to compare."""

    row: dict[str, Any]
    old_ms: float | None
    new_ms: float | None
    ratio: Ratio | None
    verdict: str

    def exceeds(self, share: float) -> bool:
        """Whether it is slower by more than `share` at the interval's lower end, or newly fails."""
        if self.ratio is None:
            return self.verdict == "failed in new"
        return self.verdict == "slower" and self.ratio.low > 1 + share


@dataclass(frozen=True)
class Difference:
    """A part of the environment that is not the same."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


@dataclass(frozen=True)
class Comparison:
    """One file against the baseline: `lines` of the contenders in both, `others` of those that have no counterpart.

    `fails` are the lines that exceed --fail-above, empty without it.
    """

    old: str
    new: str
    differences: list[Difference]
    lines: list[Line]
    others: list[Line]
    fails: list[Line]

    def ratios(self, peers: bool | None = None) -> list[float]:
        """The ratios there are: of all, or of the peers only (True), or of our variants only (False)."""
        from .cases import PEER

        found = [line for line in self.lines if line.ratio is not None]
        chosen = [line for line in found if peers is None or line.row["variant"].startswith(PEER) == peers]
        return [line.ratio.value for line in chosen if line.ratio is not None]


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Line]:
    """A line for every contender that stands once in both documents, in the new one's order."""
    before, after = _contenders(old), _contenders(new)
    return [_line(before[k][0], rows[0]) for k, rows in after.items() if len(rows) == len(before.get(k, ())) == 1]


def unmatched(old: dict[str, Any], new: dict[str, Any]) -> list[Line]:
    """A line for every contender that is not compared: missing in one document, or more than once in one."""
    before, after = _contenders(old), _contenders(new)
    lines = []
    for key in {**after, **before}:
        rows = {"old": before.get(key, []), "new": after.get(key, [])}
        if all(len(found) == 1 for found in rows.values()):
            continue
        twice = [f"{len(found)} times in {name}" for name, found in rows.items() if len(found) > 1]
        only = "only in new" if not rows["old"] else "only in old"
        first_old, first_new = (next(iter(rows[name]), None) for name in ("old", "new"))
        # Of several rows none is meant more than the others, so no time is given.
        old_ms, new_ms = (None if row is None or twice else _median(row) for row in (first_old, first_new))
        lines.append(Line(first_new or first_old or {}, old_ms, new_ms, None, " and ".join(twice) or only))
    return lines


def _contenders(document: dict[str, Any]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    from . import results

    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in document["results"]:
        found.setdefault(results.key(row), []).append(row)
    return found


def _line(old: dict[str, Any], new: dict[str, Any]) -> Line:
    from . import results, statistics

    if not old["latency_ms"] or not new["latency_ms"]:
        failed = [name for name, row in (("old", old), ("new", new)) if not row["latency_ms"]]
        return Line(new, _median(old), _median(new), None, f"failed in {' and '.join(failed)}")
    (after, new_rounds), (before, old_rounds) = results.counted(new, old)
    found = statistics.ratio(after, new_rounds, before, old_rounds)
    explained = _machine(old, new)
    return Line(new, _median(old), _median(new), found, verdict(found, old_rounds, new_rounds, explained))


def _machine(old: dict[str, Any], new: dict[str, Any]) -> float:
    """How many times as long the machine itself took in `new`, by the reference loops between the turns; else 1."""
    before, after = (row.get("reference_gflops") for row in (old, new))
    return float(before / after) if before and after else 1.0


def verdict(found: Ratio, old_rounds: Sequence[int], new_rounds: Sequence[int], machine: float = 1.0) -> str:
    """ "faster" or "slower" only if the interval excludes 1, the rounds' test agrees, and the size is not a nothing.

    machine: how many times as long a loop that nobody changed took in the new run. What lies between 1 and that is
    no difference of the build's: a neighbour that stays for the whole of one run slows all of its rounds.
    """
    if min(len(set(old_rounds)), len(set(new_rounds))) < _FEWEST_ROUNDS:
        return "too few rounds"
    least, most = min(1.0, machine), max(1.0, machine)
    apart = found.low > most or found.high < least
    within = least * (1 - SAME_WITHIN) < found.value < most * (1 + SAME_WITHIN)
    if not apart or found.p >= _SIGNIFICANT or within:
        return "no difference"
    return "slower" if found.value > 1 else "faster"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    """Each part of the environment that differs and may explain a difference in time."""
    found: list[Difference] = []
    for name in _MATTERS:
        a, b = old["environment"].get(name), new["environment"].get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            parts = [Difference(f"{name}.{k}", a.get(k), b.get(k)) for k in sorted({*a, *b})]
            found += [part for part in parts if part.old != part.new]
        elif a != b:
            found.append(Difference(name, a, b))
    return found


def comparison(old_path: Path, new_path: Path, fail_above: float | None = None) -> Comparison:
    """All that is said of a file beside the baseline.

    Raises:
        DataError: a file that cannot be read or is no result file, or two files that have no contender in common.
    """
    from . import results

    old, new = results.read(old_path), results.read(new_path)
    lines, others = compare(old, new), unmatched(old, new)
    if not lines:
        raise DataError(f"{old_path} and {new_path} have no contender in common: nothing to compare")
    fails = [] if fail_above is None else [line for line in lines if line.exceeds(fail_above)]
    return Comparison(str(old_path), str(new_path), differences(old, new), lines, others, fails)


def parser() -> argparse.ArgumentParser:
    """The command line of `bench.compare`."""
    made = make_parser(
        "compare",
        "bench.compare",
        "Compares saved runs, contender by contender: the ratio of the medians with its 95% interval, and a "
        "Mann-Whitney test between their rounds. The first run is the baseline of all others. Without files, the last "
        "two saved runs of this host.",
        ["", "old.json new.json", "old.json new.json --fail-above 5%", "old.json new.json newer.json -o changes.csv"],
    )
    made.add_argument("files", nargs="*", type=Path, metavar="FILE", help="the old run, and one or more new ones")
    made.add_argument("--fail-above", type=percentage, metavar="SHARE",
                      help="exit with 1 where one is slower by more, at the interval's lower end")  # fmt: skip
    made.add_argument("--format", choices=_FORMATS, help="by -o's suffix (.md, .csv, .json), else markdown")
    made.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to this file, and print nothing")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prints or writes the comparisons; 1 where --fail-above is exceeded, or a contender newly fails under it."""
    import sys

    args = parser().parse_args(argv)
    form = _format(args.format, args.output)
    paths = _paths(args.files)
    if args.output is not None and args.output.resolve() in [path.resolve() for path in paths]:
        raise UsageError(f"--output {args.output}: is one of the files compared; name another")
    from . import compare_formats, results

    made = [comparison(paths[0], path, args.fail_above) for path in paths[1:]]
    text = compare_formats.WRITERS[form](made)
    if args.output is not None:
        results.write_text(args.output, text)
    else:
        print(text, end="")
    failing = [(one, line) for one in made for line in one.fails]
    # Printed Markdown has said it already.
    for one, line in failing if args.output is not None or form != "markdown" else []:
        print(f"fails: {line.row['model']} {line.row['variant']}: {line.verdict} ({one.new})", file=sys.stderr)
    return 1 if failing else 0


def _format(chosen: str | None, output: Path | None) -> str:
    if chosen is not None or output is None:
        return chosen or "markdown"
    if output.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--output {output}: give --format, or a name that ends in {', '.join(_SUFFIXES)}")
    return _SUFFIXES[output.suffix.lower()]


def _paths(files: Sequence[Path]) -> list[Path]:
    if len(files) > 1:
        return list(files)
    if files:
        raise UsageError("one file given: the old run and at least one new one are needed, or none for the last two")
    from tvmopt.machine import detect

    from . import environment, results

    root, host = results.results_root(), environment.host_name(detect())
    saved = results.saved_runs(root, host)
    if len(saved) < 2:
        raise DataError(f"{len(saved)} saved runs in {root / host}, two are needed: run the bench, or name two files")
    return saved[-2:]


def _median(row: dict[str, Any]) -> float | None:
    return None if not row["latency_ms"] else float(row["latency_ms"]["median"])


if __name__ == "__main__":
    raise SystemExit(run(main))
