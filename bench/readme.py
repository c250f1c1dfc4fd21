"""`python -m bench.readme`: writes the README's tables anew from the result files they name.

A table stands between `<!-- table: KIND FILE [FILE ...] -->` and `<!-- end table -->`, each on a line of its own, which
GitHub does not show. Files are named from the README's directory. What is written by hand around them stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import DataError, TvmoptError
from tvmopt.options import make_parser, run

if TYPE_CHECKING:
    import argparse

_BEGIN = re.compile(r"<!-- table:(.*)-->\s*")
_END = "<!-- end table -->"


@dataclass(frozen=True)
class Table:
    """One table of a README: from line `first` (the comment, counted from 1) up to line `last` (the other comment)."""

    first: int
    last: int
    kind: str
    files: tuple[str, ...]
    body: str


def tables(text: str, where: str) -> list[Table]:
    """The tables of a README's text, in order.

    Raises:
        DataError: a table without its end, an end without its table, a comment without a kind or files, or no table
            at all; with `where` and the line.
    """
    found: list[Table] = []
    lines = text.splitlines()
    begin: tuple[int, list[str]] | None = None
    for number, line in enumerate(lines, 1):
        opened = _BEGIN.fullmatch(line)
        if opened is None and line.strip() != _END:
            continue
        if (opened is None) == (begin is None):
            wrong = f"a table begins before the end of the one of line {begin[0]}" if begin else "the end of no table"
            raise DataError(f"{where}, line {number}: {wrong}: each stands between a table comment and {_END}")
        if opened is not None:
            begin = number, opened[1].split()
            if len(begin[1]) < 2:
                raise DataError(f"{where}, line {number}: a table needs a kind and at least one file")
        elif begin is not None:
            first, (kind, *files) = begin
            found.append(Table(first, number, kind, tuple(files), "\n".join(lines[first : number - 1])))
            begin = None
    if begin is not None:
        raise DataError(f"{where}, line {begin[0]}: this table has no end: add a line {_END}")
    if not found:
        raise DataError(f"{where} has no table: add a line <!-- table: KIND FILE -->, and {_END}")
    return found


def generated(table: Table, readme: Path) -> str:
    """What has to stand in the table; raises DataError, with its line, for an unknown kind or a file it can't have."""
    from . import readme_tables

    where = f"{readme}, line {table.first}"
    if table.kind not in readme_tables.KINDS:
        raise DataError(f"{where}: unknown kind of table {table.kind!r}: choose from {', '.join(readme_tables.KINDS)}")
    try:
        body = readme_tables.KINDS[table.kind]([readme.parent / name for name in table.files])
    except TvmoptError as error:
        raise DataError(f"{where}: {error}") from error
    # Markdown is not read on the lines of a comment, nor by every reader right below one.
    return f"\n{body}\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "readme", "bench.readme", "Writes the README's tables anew from the result files that their comments name.",
        ["", "--check", "--readme docs/results.md"],
    )  # fmt: skip
    made.add_argument("--check", action="store_true", help="write nothing; exit with 1 and name the first that differs")
    made.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE", help="the Markdown file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the tables.

    Raises:
        DataError: no README, a table that cannot be made, or, under --check, one that is not what its files give.
        OutputError: the README cannot be written.
    """
    args = parser().parse_args(argv)
    try:
        text = args.readme.read_text()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {args.readme}: {said}: name the file with --readme") from error
    found = tables(text, str(args.readme))
    wanted = [generated(table, args.readme) for table in found]
    changed = [table for table, body in zip(found, wanted, strict=True) if table.body != body]
    if args.check and changed:
        first = changed[0]
        raise DataError(
            f"{args.readme}, line {first.first}: the table {first.kind} is not what {' '.join(first.files)} give: "
            "run python -m bench.readme"
        )
    if changed:
        from . import results

        lines = text.splitlines()
        for table, body in reversed(list(zip(found, wanted, strict=True))):
            lines[table.first : table.last - 1] = body.split("\n")
        results.write_text(args.readme, "\n".join(lines) + "\n")
    print(f"{args.readme}: {len(found)} tables, {len(changed)} written anew")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
