"""`python -m bench.report A.json [B.json ...] -o FILE.html`: saved results as a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.options import make_parser, run

if TYPE_CHECKING:
    import argparse


def parser() -> argparse.ArgumentParser:
    """The command line of `bench.report`."""
    made = make_parser(
        "report", "bench.report",
        "Writes saved results as one page: bars, roofline, accuracy, tuning, kernels, environment. The page needs no "
        "network. `bench --report FILE` writes the same of a run at once.",
        ["run.json -o report.html", "monday.json friday.json -o week.html"],
    )  # fmt: skip
    made.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="results of the bench")
    made.add_argument("-o", "--output", type=Path, metavar="FILE.html", required=True, help="the page to write")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and says where."""
    args = parser().parse_args(argv)
    from .. import results
    from . import check, write

    check(args.output, "--output")
    documents = [(str(path), results.read(path)) for path in args.files]
    print(f"report: {write(documents, args.output)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
