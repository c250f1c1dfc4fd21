"""The command line a result file was made with: recorded in its environment, or told from what it measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from .cases import PEER, VARIANTS

# Where the results went says nothing of what was measured.
_OUTPUTS = ("--json", "--report")
# A file or a directory as another machine would not have it, alone or behind `--option=`.
_ELSEWHERE = re.compile(r"(--[\w-]+=)?((?:/|~|\.\./|[A-Za-z]:\\).*)", re.DOTALL)


def recorded(module: str, arguments: Sequence[str]) -> str:
    """`python -m MODULE ...` with the arguments as given, but for output files, and directories of this machine.

    Of a path that begins at the root, at a home or outside the working directory, the last part is kept.
    """
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in _OUTPUTS:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in _OUTPUTS)):
            found = _ELSEWHERE.fullmatch(argument)
            kept.append(f"{found[1] or ''}{PurePath(found[2]).name}" if found else argument)
    return " ".join(["python -m", module, *map(shlex.quote, kept)])


def of_bench(document: Mapping[str, Any]) -> str:
    """The command of a run of `python -m bench`; of a file older than the record, from its models and contenders."""
    known = document["environment"].get("command")
    if known is not None:
        return str(known)
    rows = document["results"]
    specs = list(dict.fromkeys(row["model"] for row in rows))
    names = list(dict.fromkeys(row["variant"] for row in rows))
    variants = [name for name in names if not name.startswith(PEER)]
    peers = [name[len(PEER) :] for name in names if name.startswith(PEER)]
    arguments = [] if specs == ["digits_cnn"] else specs
    if variants != list(VARIANTS):
        arguments += ["--variants", ",".join(variants) or "none"]
    # Where one was not installed it was asked for all the same, with the others.
    if peers != _default_peers() and not document["environment"].get("skipped_peers"):
        arguments += ["--peers", ",".join(peers) or "none"]
    usual = {"batch": 1, "dtype": "float32", "strategy": "default"}
    for name, value in usual.items():
        arguments += [] if rows[0][name] == value else [f"--{name}", str(rows[0][name])]
    return recorded("bench", arguments)


def of_kernels(document: Mapping[str, Any]) -> str:
    """The command of a run of `python -m bench.kernels`."""
    known = document["environment"].get("command")
    if known is not None:
        return str(known)
    ops = list(dict.fromkeys(row["op"] for row in document["results"]))
    shapes = dict.fromkeys(row["shape"] for row in document["results"]) if len(ops) == 1 else ()
    return recorded("bench.kernels", ["--op", ",".join(ops), *(text for one in shapes for text in ("--shape", one))])


def of_recipe(document: Mapping[str, Any]) -> str:
    """The command of a run of `python -m bench.recipe`."""
    known = document["environment"].get("command")
    if known is not None:
        return str(known)
    recipe = document["environment"]["recipe"]
    data = ["--data-dir", "DIR"] if recipe.get("dataset") == "mnist" else []
    return recorded("bench.recipe", [recipe["name"], *data])


def _default_peers() -> list[str]:
    from .__main__ import parser

    return str(parser().get_default("peers")).split(",")
