"""How many cases were compiled and executed: lines of JSON in the file that TVMOPT_CI_COUNTS names, and their table."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

from tvmopt.nvcc import find_nvcc

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


def verdict(lines: list[str], nvcc: Path | None) -> tuple[str, bool]:
    """How many were compiled and executed, in words, and whether that will do.

    nvcc cannot be installed everywhere: without it nothing is compiled, and that is said. PoCL can: where nothing was
    executed, it is missing or the tests are broken.
    """
    whats = [json.loads(line)["what"] for line in lines]
    compiled, executed = (whats.count(what) for what in ("compiled", "executed"))
    said = [f"compiled: {compiled}, executed: {executed}"]
    if nvcc is None:
        said.append("there is no nvcc on this machine: NO CUDA KERNEL WAS COMPILED")
    elif not compiled:
        said.append(f"{nvcc} is here and nothing was compiled")
    if not executed:
        said.append("nothing was executed: apt-get install pocl-opencl-icd, pip install pyopencl")
    return "\n".join(said), executed > 0 and (nvcc is None or compiled > 0)


if __name__ == "__main__":
    # TVMOPT_CI_COUNTS=counts.jsonl pytest tests/cuda; python -m tests.cuda.counts counts.jsonl
    noted = Path(sys.argv[1]).read_text().splitlines()
    print(table(noted))
    text, good = verdict(noted, find_nvcc())
    print(text)
    raise SystemExit(not good)
