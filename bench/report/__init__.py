"""The report: results as one page that needs nothing but itself, `python -m bench.report A.json -o FILE.html`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmopt.errors import UsageError

from ..results import check_writable, write_text

_PACKAGES = ("plotly", "jinja2")


def check(path: Path, option: str) -> None:
    """Looks, before anything is measured, whether a report can be made and written to `path`.

    Raises:
        UsageError: a package it is made with is not installed. OutputError: `path` cannot be written.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'{option}: {" and ".join(missing)} not installed (pip install "tvmopt[report]")')
    check_writable(path, option)


def write(documents: Sequence[tuple[str, dict[str, Any]]], path: Path) -> Path:
    """Writes the page of checked result documents, each with its file's name; raises OutputError where it cannot."""
    from .page import render

    return write_text(path, render(documents))
