"""The page: a template, filled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmopt.options import make_parser

from .. import table
from . import accuracy, kernels, latency, roofline, sparse, style, tables, tuning
from .runs import Run, Section, groups_of, is_kernel, runs_of

_HERE = Path(__file__).resolve().parent


def render(documents: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The page of one or more result documents, each with the name of the file it is from."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    jinja = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    jinja.filters.update(figure=_script_json, code=_with_code)
    runs = runs_of(documents)
    groups = groups_of(runs)
    found = sections(runs)
    header = tables.header(runs)
    return jinja.get_template("page.html").render(
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs() if any(section.charts for section in found) else "",
        dark=style.exchange(),
        models=list(dict.fromkeys(row["model"] for run in runs for row in run.rows)),
        conclusions=conclusions(runs),
        runs=[{"name": run.name, "file": Path(file).name, "facts": tables.facts(run)}
              for run, (file, _) in zip(runs, documents, strict=True)],
        header=header,
        shared=tables.shared(runs),
        texts=header.index(table.HEADER[0]) + 1,
        lines=tables.lines(runs),
        sections=found,
        profiles=kernels.tables(groups),
        environment=tables.environment(runs),
    )  # fmt: skip


def sections(runs: Sequence[Run]) -> list[Section]:
    """All charts, or in their place which command would give the data for them."""
    groups = groups_of(runs)
    # What a user has to type depends on how this was installed.
    bench, tune = make_parser("bench", "bench", "", []).prog, make_parser("tune", "tvmopt.tune", "", []).prog
    from ..__main__ import parser

    whole = [group for group in groups if not is_kernel(group.rows[0])]
    return [
        latency.section(groups, bench),
        accuracy.over_latency(whole, bench),
        accuracy.over_sparsity(whole, bench, prunes="--sparsity" in parser().format_usage()),
        sparse.section(groups, bench),
        roofline.section(groups, bench),
        kernels.section(groups, bench),
        tuning.section(groups, tune, bench),
    ]


def conclusions(runs: Sequence[Run]) -> list[str]:
    """The bench's own last lines."""
    found = []
    for run in runs:
        before = f"{run.name}: " if run.name else ""
        found += [before + table.conclusion(rows) for rows in table.by_model(run.rows).values()]
    return found


def _script_json(value: Any) -> Any:
    """JSON for a script element, which nothing in it can end."""
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _with_code(text: str) -> Any:
    """Escaped text in which what stood between backticks is code."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    marked = [Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)]
    return Markup("").join(marked)
