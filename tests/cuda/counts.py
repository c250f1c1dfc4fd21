"""How many cases were compiled and executed: lines of JSON in the file that TVMOPT_CI_COUNTS names, and their table."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

VARIABLE = "TVMOPT_CI_COUNTS"


def count(what: str, rule: str, shape: str, arch: str) -> None:
    """Note that a case was `what`: "compiled" for `arch`, or "executed" (its arch is "opencl") and found right."""
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as file:
            file.write(json.dumps({"what": what, "rule": rule, "shape": shape, "arch": arch}) + "\n")


def table(lines: list[str]) -> str:
    """Rules x architectures, as Markdown: the number of different shapes of each."""
    shapes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for line in lines:
        entry = json.loads(line)
        shapes[entry["rule"], f"{entry['what']}, {entry['arch']}"].add(entry["shape"])
    columns = sorted({column for _, column in shapes})
    rows = [["rule", *columns], ["---"] + ["---:"] * len(columns)]
    for rule in sorted({rule for rule, _ in shapes}):
        rows.append([rule, *(str(len(shapes.get((rule, column), ()))) for column in columns)])
    totals = [sum(len(found) for (_, c), found in shapes.items() if c == column) for column in columns]
    rows.append(["all", *map(str, totals)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    # TVMOPT_CI_COUNTS=counts.jsonl pytest tests/cuda; python -m tests.cuda.counts counts.jsonl
    print(table(Path(sys.argv[1]).read_text().splitlines()))
