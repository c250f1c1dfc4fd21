"""ResNet-18 at 224 x 224, dense and block-sparse end to end, all in one run: time only, pruned without training.

Dense twice: with every convolution direct, which is what the zeros save operations of, and as the plan has it, Winograd
included, which is what there would be instead. The sparse ones have blocks of 16 outputs x 1 input, equally many
in every layer, and take their dense form layer by layer where that is faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .. import statistics, table
from ..cases import Case
from ..measure import Data, measure_together
from ..pruned import networks
from ..results import counted
from ..turns import Settings as Turns
from . import Settings
from .common import document, say, show, work_directory

SPEC, METHOD = "torchvision:resnet18", "block-16x1"
SPARSITIES = (0.5, 0.8, 0.9)
# Share of zeros -> how many times as fast as dense direct is wanted.
WANTED = {0.8: 2.0, 0.9: 3.0}
_DENSE = {"direct": {"conv2d": "direct"}, "plan": {}}

Row = dict[str, Any]


def run(settings: Settings) -> int:
    """Measures, prints the table and whether it is what is wanted; 1 where a build failed."""
    from tvmopt.machine import configure_threads

    machine = settings.options.cpu("this recipe")
    configure_threads(machine.cores)
    sparsities = SPARSITIES[1:2] if settings.quick else SPARSITIES
    with work_directory(settings) as folder:
        # manual reads no log: the directory need not be there.
        options = dataclasses.replace(settings.options, threads=machine.cores, log_dir=folder / "tuning_logs")
        say(f"pruning {SPEC} at {', '.join(f'{share:.0%}' for share in sparsities)}")
        made = networks([SPEC], sparsities, METHOD, options, folder)
        dense = [
            Case(SPEC, "manual", dataclasses.replace(options, strategies=ways), f"dense, {name}")
            for name, ways in _DENSE.items()
        ]
        models = [dense] + [
            [Case(one.source, "manual", one.options, f"{share:.0%} zeros")]
            for one, share in zip(made, sparsities, strict=True)
        ]
        turns = Turns(samples=settings.samples, time_limit_s=settings.time_limit_s)
        if settings.quick:
            turns = Turns(samples=3, time_limit_s=1.0)
        rows = measure_together(models, turns, Data(), lambda name, text: say(f"{name}: {text}"))
    for row, case in zip(rows, [case for cases in models for case in cases], strict=True):
        row["model"] = f"resnet18, {case.label}"
    recipe = {"name": "resnet18-sparse", "method": METHOD, "sparsities": list(sparsities), "quick": settings.quick}
    document(settings, machine, recipe, rows)
    print("ResNet-18 at 224 x 224, batch 1, pruned without training")
    show(lines(rows), settings.markdown)
    for row in rows:
        if row["error"] is not None:
            print(f"{row['model']} failed: {row['error']}")
    print("\n".join(verdicts(rows)))
    return 1 if any(row["error"] is not None for row in rows) else 0


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """One line a network, the header first."""
    found = [["", "median ms", "dense direct is", "dense as planned is", "bytes, sparse", "file, bytes",
              "largest error"]]  # fmt: skip
    direct, plan = rows[:2]
    for row in rows:
        if row["latency_ms"] is None or direct["latency_ms"] is None or plan["latency_ms"] is None:
            found.append([_name(row), *["failed"] * 6])
            continue
        text = table.milliseconds(row["latency_ms"]["median"]) + (" !" if row["unstable"] else "")
        found.append(
            [_name(row), text, f"{_ratio(direct, row).value:.2f}x", f"{_ratio(plan, row).value:.2f}x",
             f"{row['size_compressed_bytes']:,}", f"{row['size_bytes']:,}", f"{row['max_abs_err']:.1e}"]
        )  # fmt: skip
    return found


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether each sparsity of `WANTED` is as much faster than dense direct as is wanted, in words."""
    found = []
    for share, wanted in WANTED.items():
        row = next((row for row in rows if _name(row) == f"{share:.0%} zeros" and row["latency_ms"]), None)
        if row is not None and rows[0]["latency_ms"]:
            ratio = _ratio(rows[0], row)
            said = "as wanted" if ratio.value >= wanted else "less than wanted"
            found.append(
                f"{share:.0%} zeros: {ratio.value:.2f}x as fast as dense direct (95%: {ratio.low:.2f} to "
                f"{ratio.high:.2f}; {wanted:g}x wanted): {said}"
            )
    return found


def _name(row: Mapping[str, Any]) -> str:
    return str(row["model"]).removeprefix("resnet18, ")


def _ratio(dense: Row, row: Row) -> statistics.Ratio:
    """How many times as long the dense network takes."""
    (before, rounds), (after, others) = counted(dense, row)
    return statistics.ratio(before, rounds, after, others)
