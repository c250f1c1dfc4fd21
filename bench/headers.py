"""`python -m bench.headers`: writes the measured steps in the schedules' headers anew from the ladders' result files.

In a header (a docstring in schedules/) a paragraph that begins with `Measured: FILE [FILE ...]` has one line
a kernel: what share of the roof each rung of the ladder reaches. FILE is of `python -m bench.kernels --ladder --json`,
named from the directory that has the schedules in it. Everything else of a header is written by hand.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import DataError, TvmoptError
from tvmopt.options import make_parser, run

if TYPE_CHECKING:
    import argparse

_BEGIN = "Measured:"
# The paragraph: its first line, and the indented ones below.
_PARAGRAPH = re.compile(rf"^{_BEGIN}(?P<files>.*)\n(?P<body>(?:[ ]+.*\n)*)", re.MULTILINE)
_RUNG = "rung:"
_WIDTH, _INDENT = 120, 4


def measured(files: Sequence[Path]) -> str:
    """The lines of a paragraph: each kernel with its rungs and their shares of the roof.

    Raises:
        DataError: a file that is no result of a ladder.
    """
    from . import results

    lines: list[str] = []
    for path in files:
        kernels: dict[tuple[str, str], list[str]] = {}
        for row in results.read(path)["results"]:
            if not row["variant"].startswith(_RUNG) or "peak_fraction" not in row:
                raise DataError(f"{path} is no ladder: name a file of python -m bench.kernels --ladder --json")
            doubt = " (unstable)" if row["unstable"] else ""
            name = row["variant"].removeprefix(_RUNG)
            of = "" if row["bound"] == "arithmetic" else " of the bandwidth"
            steps = kernels.setdefault((row["op"], f"{row['shape']}{_way(row['strategy'])}{of}"), [])
            steps.append(f"{name} {row['peak_fraction']:.0%}{doubt}")
        for (op, shape), rungs in kernels.items():
            text = f"{op} {shape}: {', '.join(rungs)}"
            lines += textwrap.wrap(
                text, _WIDTH, initial_indent=" " * _INDENT, subsequent_indent=" " * (2 * _INDENT),
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "".join(f"{line}\n" for line in lines)


def _way(strategy: str) -> str:
    return "" if strategy == "default" else f" {strategy.partition('=')[2]}"


def rewritten(text: str, path: Path, root: Path) -> str:
    """A schedule's text with its paragraph as its files give it; files are named from `root`.

    Raises:
        DataError: `path` and what is wrong with a paragraph or its files.
    """

    def paragraph(found: re.Match[str]) -> str:
        files = found["files"].split()
        if not files:
            raise DataError(f"{path}: `{_BEGIN}` names no file of python -m bench.kernels --ladder --json")
        try:
            return f"{_BEGIN} {' '.join(files)}\n{measured([root / name for name in files])}"
        except TvmoptError as error:
            raise DataError(f"{path}: {error}") from error

    return _PARAGRAPH.sub(paragraph, text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "headers", "bench.headers", "Writes the measured steps in the schedules' headers anew from their result files.",
        ["", "--check"],
    )  # fmt: skip
    made.add_argument("--check", action="store_true", help="write nothing; exit with 1 and name the first that differs")
    made.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="the directory with schedules/ in it")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the headers.

    Raises:
        DataError: no header has figures, a file that is no ladder, or, under --check, figures that are not the file's.
        OutputError: a header cannot be written.
    """
    from . import results

    args = parser().parse_args(argv)
    paths = sorted(args.root.glob("schedules/*/*.py"))
    texts = {path: path.read_text() for path in paths}
    having = {path: text for path, text in texts.items() if _PARAGRAPH.search(text)}
    if not having:
        raise DataError(f"{args.root / 'schedules'} has no header with `{_BEGIN} FILE`: name the checkout with --root")
    wanted = {path: rewritten(text, path, args.root) for path, text in having.items()}
    changed = [path for path, text in having.items() if wanted[path] != text]
    if args.check and changed:
        raise DataError(f"{changed[0]}: its figures are not what the file it names gives: run python -m bench.headers")
    for path in changed:
        results.write_text(path, wanted[path])
    print(f"{len(having)} headers, {len(changed)} written anew")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
