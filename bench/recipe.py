"""`python -m bench.recipe NAME`: a published experiment from end to end, as its table."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import UsageError
from tvmopt.options import add_build_options, build_options, duration, make_parser, positive_int, run

from .recipes import RECIPES, Settings
from .results import check_writable

if TYPE_CHECKING:
    import argparse

# What a recipe decides itself, or what this command gives another default.
_LEFT_OUT = ("arch", "batch", "input-shape", "dtype", "strategy", "weights", "log-dir", "dump-ir")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "recipe", "bench.recipe",
        "Runs a published experiment: data, training, tuning, measuring, and its tables beside the published ones. "
        "Recipes: " + "; ".join(f"{name}: {what}" for name, (_, what) in RECIPES.items()) + ".",
        ["conv-vs-gemm --data-dir data", "conv-vs-gemm --quick", "mnist-prune --data-dir data --work-dir work"],
    )  # fmt: skip
    made.add_argument("name", metavar="NAME", help="the recipe: " + ", ".join(RECIPES))
    group = made.add_argument_group("the experiment")
    group.add_argument("--quick", action="store_true",
                       help="little training, a few candidates and samples, to see that all works")  # fmt: skip
    group.add_argument("--data-dir", metavar="DIR",
                       help="where MNIST and CIFAR-10 are; conv-vs-gemm takes the digits without")  # fmt: skip
    group.add_argument("--epochs", type=positive_int, metavar="N", help="passes over the training images")
    group.add_argument("--limit", type=positive_int, metavar="N", help="the most images accuracy is measured on")
    group.add_argument("--trials", type=positive_int, metavar="N", help="candidates of each search for auto")
    group.add_argument("--time-budget", type=duration, default="2m", metavar="T", help="time of each search for auto")
    group.add_argument("--samples", type=positive_int, default=30, help="the fewest samples of a contender")
    group.add_argument("--time-limit", type=duration, default="5s", help="how long a contender is timed at most")
    group.add_argument("--log-dir", type=Path, metavar="DIR",
                       help="keep the tuning logs here, and go on from those; else they are dropped")  # fmt: skip
    group.add_argument("--work-dir", type=Path, metavar="DIR",
                       help="keep trained networks here, and go on from them where a run was cut off")  # fmt: skip
    group.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    group.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    add_build_options(made, leave_out=_LEFT_OUT)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; returns its exit status."""
    args = parser().parse_args(argv)
    name = args.name.replace("_", "-")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(RECIPES)}"
        raise UsageError(f"unknown recipe {args.name!r}: {hint}")
    from . import commands

    options = build_options(args)
    if args.log_dir is not None:
        options = dataclasses.replace(options, log_dir=args.log_dir)
    _check_outputs(args.json, args.log_dir)
    settings = Settings(
        options, args.quick, args.data_dir or os.environ.get("TVMOPT_DATA_DIR"), args.epochs, args.trials,
        args.time_budget, args.limit, args.samples, args.time_limit, args.log_dir is not None, args.markdown, args.json,
        commands.recorded("bench.recipe", sys.argv[1:] if argv is None else argv), args.work_dir,
    )  # fmt: skip
    module = importlib.import_module(f".recipes.{RECIPES[name][0]}", __package__)
    return int(module.run(settings))


def _check_outputs(json: Path | None, log_dir: Path | None) -> None:
    """Raises OutputError now and not after minutes of work."""
    if json is not None:
        check_writable(json, "--json")
    if log_dir is not None:
        from tvmopt.tuning.log import make_writable

        make_writable(log_dir)


if __name__ == "__main__":
    raise SystemExit(run(main))
