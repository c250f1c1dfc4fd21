"""The README's table of what was shown of the CUDA rules without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvmopt.errors import DataError

from . import results
from .cuda_proof import table


def proof(files: Sequence[Path]) -> str:
    """A row a rule: shapes compiled for each architecture and executed, the most of what its machine code takes."""
    parts = []
    for path in files:
        environment = results.read(path)["environment"]
        if not environment.get("cuda_proof"):
            raise DataError(f"{path} is no result of bench.cuda_proof: name a file of its --json")
        header, *body = table.lines(environment["cuda_proof"])
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body]))
        versions = environment["versions"]
        tools = [f"{name} {versions[key]}" for name, key in (("nvcc", "nvcc"), ("PoCL", "pocl")) if key in versions]
        parts.append(f"`{environment['command']}`, with {' and '.join(tools)}.")
    return "\n\n".join(parts)
