"""The convolution method against the GEMM method, each as original, manual and auto: time and accuracy.

A small CNN (`mnist_cnn`) is trained on MNIST, or on scikit-learn's digits where MNIST is not at hand. Its convolutions
are then lowered directly (`conv2d=direct`) and through im2col (`conv2d=gemm`). Six builds of the same weights take
turns in processes of their own. In the published experiment accuracy fell from 79.17% to 78.44% under auto; here it
must be the same in all six, because a schedule does not change what is computed.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import environment, results, statistics, table
from ..cases import VARIANTS, Case
from ..compare import SAME_WITHIN
from ..measure import Data, measure
from ..results import counted
from ..turns import Settings as Turns
from . import Settings

if TYPE_CHECKING:
    from tvmopt.data import Dataset
    from tvmopt.machine import Machine
    from tvmopt.options import BuildOptions

# Column -> the strategy it is lowered by.
METHODS = {"conv": "direct", "GEMM": "gemm"}
# (variant, method) -> ms, and variant -> top-1; of the manual variant no accuracy was published.
PUBLISHED_MS = {
    ("original", "conv"): 2.406, ("original", "GEMM"): 2.153,
    ("manual", "conv"): 2.245, ("manual", "GEMM"): 2.388,
    ("auto", "conv"): 0.680, ("auto", "GEMM"): 0.486,
}  # fmt: skip
PUBLISHED_TOP1 = {"original": 0.7917, "auto": 0.7844}

Row = dict[str, Any]
Cell = tuple[str, str]


@dataclass(frozen=True)
class _Plan:
    """What the data set and `--quick` make of the numbers that were not given."""

    dataset: str
    size: int
    epochs: int
    train_limit: int | None
    test_limit: int | None
    trials: int | None
    turns: Turns


def run(settings: Settings) -> int:
    """Trains, tunes, measures, prints both tables; 1 where a build failed or accuracy is not the same in all.

    Raises:
        DataError: MNIST is not where `settings.data_dir` says.
    """
    plan = _plan(settings)
    training, test = _datasets(plan, settings.data_dir)
    machine = settings.options.cpu("this recipe")
    _say(machine.describe())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvmopt-recipe-")))
        weights = folder / "mnist_cnn.pt"
        top1 = _train(plan, training, test, weights, machine.cores)
        options = dataclasses.replace(
            settings.options, threads=machine.cores, weights=str(weights), input_shape=(1, plan.size, plan.size),
            log_dir=settings.options.log_dir if settings.keep_logs else folder / "tuning_logs",
        )  # fmt: skip
        by_method = {name: dataclasses.replace(options, strategies={"conv2d": way}) for name, way in METHODS.items()}
        tuning_s = {name: _tune(chosen, plan, settings.time_budget_s) for name, chosen in by_method.items()}
        described = _environment(machine, plan, settings, top1)
        rows = _measure(by_method, plan, settings.data_dir)
    for (variant, method), row in rows.items():
        row["tuning_s"] = tuning_s[method] if variant == "auto" else None
        row["weights"] = f"{plan.epochs} epochs of {plan.dataset}"
    described["load_after"] = environment.load()
    document = results.document(described, list(rows.values()))
    if settings.json is not None:
        results.write(document, settings.json)
    return _show(rows, plan, test, machine, settings.markdown)


def _plan(settings: Settings) -> _Plan:
    mnist, quick = settings.data_dir is not None, settings.quick
    # 60,000 images take fewer passes than 1,438.
    epochs = settings.epochs or {(True, False): 2, (True, True): 1, (False, False): 15, (False, True): 3}[mnist, quick]
    turns = Turns(samples=settings.samples, time_limit_s=settings.time_limit_s)
    if quick:
        turns = Turns(samples=min(settings.samples, 6), time_limit_s=1.0)
    return _Plan(
        "mnist" if mnist else "digits", 28 if mnist else 8, epochs, 6000 if quick else None,
        settings.limit or (200 if quick else None), settings.trials or (6 if quick else None), turns,
    )  # fmt: skip


def _datasets(plan: _Plan, data_dir: str | None) -> tuple[Dataset, Dataset]:
    from tvmopt.data import load_dataset

    if plan.dataset == "digits":
        _say("no --data-dir: scikit-learn's digits (8x8) instead of MNIST, so times do not compare with the published")
    return (
        load_dataset(plan.dataset, data_dir, "train", plan.train_limit),
        load_dataset(plan.dataset, data_dir, "test", plan.test_limit),
    )


def _train(plan: _Plan, training: Dataset, test: Dataset, weights: Path, threads: int) -> float:
    """Trains from a fixed seed, writes the state dict to `weights`; returns PyTorch's top-1 on `test`."""
    import torch

    from tvmopt.machine import configure_threads
    from tvmopt.models.mnist_cnn import mnist_cnn
    from tvmopt.training.loop import Epoch, evaluate, train

    def show(epoch: Epoch) -> None:
        _say(f"epoch {epoch.number} of {plan.epochs}: loss {epoch.loss:.4f}, top-1 in training {epoch.accuracy:.2%}")

    configure_threads(threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = mnist_cnn(plan.size)
    train(module, training, epochs=plan.epochs, seed=0, progress=show)
    torch.save(module.state_dict(), weights)
    accuracy = evaluate(module, test)
    _say(f"trained on {len(training)} images of {plan.dataset}: top-1 {accuracy:.2%} of {len(test)} in PyTorch")
    return accuracy


def _tune(options: BuildOptions, plan: _Plan, time_budget_s: float) -> float:
    """Searches schedules for auto; returns the seconds it took (in all, where an earlier search is gone on from)."""
    from tvmopt.tune import tune

    _say(f"searching schedules, conv2d={options.strategies['conv2d']}")
    return tune("mnist_cnn", trials=plan.trials, time_budget=time_budget_s, options=options).manifest.tuning_s


def _measure(by_method: dict[str, BuildOptions], plan: _Plan, data_dir: str | None) -> dict[Cell, Row]:
    cells = [(variant, method) for variant in VARIANTS for method in METHODS]
    cases = [Case("mnist_cnn", variant, by_method[method], f"{variant}, {method}") for variant, method in cells]

    def report(name: str, text: str) -> None:
        if text in ("building", "checking"):
            _say(f"{name}: {text}")

    measured = measure(cases, plan.turns, Data(plan.dataset, False, data_dir, plan.test_limit), report)
    return dict(zip(cells, measured, strict=True))


def _environment(machine: Machine, plan: _Plan, settings: Settings, top1: float) -> dict[str, Any]:
    described = environment.describe(machine, machine.cores)
    described["command"] = settings.command
    described["settings"] = {
        "samples": plan.turns.samples, "time_limit_s": plan.turns.time_limit_s, "quick": settings.quick,
    }  # fmt: skip
    described["recipe"] = {
        "name": "conv-vs-gemm", "dataset": plan.dataset, "epochs": plan.epochs, "torch_top1": top1,
        "published_ms": {f"{variant} {method}": ms for (variant, method), ms in PUBLISHED_MS.items()},
        "published_top1": PUBLISHED_TOP1,
    }  # fmt: skip
    return described


# --- what is said of the six rows ---


def time_table(rows: dict[Cell, Row]) -> list[list[str]]:
    """Medians in ms and half their 95% interval, one line a variant, the published ones behind."""
    lines = [["execution time, ms", *METHODS, *(f"published {method}" for method in METHODS)]]
    for variant in VARIANTS:
        ours = [_milliseconds(rows[variant, method]) for method in METHODS]
        lines.append([variant, *ours, *(f"{PUBLISHED_MS[variant, method]:.3f}" for method in METHODS)])
    return lines


def accuracy_table(rows: dict[Cell, Row]) -> list[list[str]]:
    """Top-1, one line a variant, the published one behind."""
    lines = [["accuracy, top-1", *METHODS, "published"]]
    for variant in VARIANTS:
        scores = [rows[variant, method]["accuracy"] for method in METHODS]
        known = PUBLISHED_TOP1.get(variant)
        ours = [f"{score['top1']:.2%}" if score else "failed" for score in scores]
        lines.append([variant, *ours, "" if known is None else f"{known:.2%}"])
    return lines


def verdict(rows: dict[Cell, Row]) -> tuple[str, bool]:
    """One line: is manual faster than original, auto no slower than manual, accuracy equal; and whether the last is so.

    Accuracy is equal only if all six got as many images right, and predicted the same as PyTorch as often.
    """
    faster, no_slower = [], []
    for method in METHODS:
        original, manual, auto = (rows[variant, method] for variant in VARIANTS)
        faster.append(_judge(method, manual, original, lambda r: r.high < 1))
        no_slower.append(_judge(method, auto, manual, lambda r: r.low <= 1 or r.value < 1 + SAME_WITHIN))
    scores = [row["accuracy"] for row in rows.values()]
    equal = all(scores) and len({(score["top1"], score["agreement"]) for score in scores}) == 1
    accuracy = f"yes, {scores[0]['top1']:.2%} of {scores[0]['n']}" if equal else "NO"
    return (
        f"manual faster than original: {', '.join(faster)}; auto at least as fast as manual: {', '.join(no_slower)}; "
        f"accuracy equal in all six: {accuracy}",
        equal,
    )


def _judge(method: str, new: Row, old: Row, holds: Callable[[statistics.Ratio], bool]) -> str:
    if not new["latency_ms"] or not old["latency_ms"]:
        return f"{method} not measured"
    (after, new_rounds), (before, old_rounds) = counted(new, old)
    found = statistics.ratio(after, new_rounds, before, old_rounds)
    times = f"{1 / found.value:.2f}x, 95%: {1 / found.high:.2f} to {1 / found.low:.2f}"
    return f"{method} {'yes' if holds(found) else 'NO'} ({times})"


def _milliseconds(row: Row) -> str:
    if not row["latency_ms"]:
        return "failed"
    median, half = row["latency_ms"]["median"], (row["ci95"][1] - row["ci95"][0]) / 2
    return f"{table.milliseconds(median)} ± {half / median:.1%}" + (" !" if row["unstable"] else "")


def _show(rows: dict[Cell, Row], plan: _Plan, test: Dataset, machine: Machine, as_markdown: bool) -> int:
    _say("")
    print(
        f"mnist_cnn on {plan.dataset}, {plan.size}x{plan.size}, batch 1, {machine.cores} threads, "
        f"{len(test)} test images, on {machine.name}"
    )
    for lines in (time_table(rows), accuracy_table(rows)):
        print()
        print("\n".join(_markdown(lines) if as_markdown else _aligned(lines)))
    print()
    failed = {cell: row["error"] for cell, row in rows.items() if row["error"] is not None}
    for (variant, method), error in failed.items():
        print(f"{variant}, {method} failed: {error}")
    if any(row["unstable"] for row in rows.values()):
        print("! unstable: too few samples within the time limit, or too wide an interval")
    said, equal = verdict(rows)
    print(said)
    return 0 if equal and not failed else 1


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(text.ljust(width) if index == 0 else text.rjust(width) for index, (text, width) in
                  enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    texts = ["| " + " | ".join(line) + " |" for line in lines]
    return [texts[0], rule, *texts[1:]]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
