"""The public ResNet-20 on CIFAR-10, fine-tuned three ways from the same weights: dense, block-sparse, half its filters.

The public weights are first trained on these images, which they do not know as JPEG, for half as many epochs as what
follows. That network is what all three start from, and the teacher of all three: they see the same images for as many
epochs with the same loss, and of each the epoch is kept that does best on 5,000 training images held back; the test
images are only measured on. No epoch is one of the first 40%, in which the block-sparse network is not sparse enough
yet, and in which the others could be good on held-back images that the public weights were trained on. The
block-sparse one has 80% zeros over all layers that are pruned, in blocks of 16 outputs x 1 input, equally many in every
16 outputs of a layer, and fewer in its small layers (compress/allocation.py). The last has half of all filters cut out,
residual paths included. All are then built and timed, taking turns.

The images are CIFAR-10's as JPEG, so accuracies are a little below those on the lossless originals.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import DataError

from .. import statistics, table
from ..cases import Case
from ..measure import Data, measure_together
from ..results import counted
from ..turns import Settings as Turns
from . import Settings
from .common import document, mixes_precision, say, show, work_directory

if TYPE_CHECKING:
    from torch import nn

    from tvmopt.data import Dataset
    from tvmopt.options import BuildOptions

WEIGHTS = "cifar10-resnet/resnet20-12fca82f.th"
# The first that is there: the unpacked folder, or the archive as it is published.
IMAGES = ("cifar10-jpeg", "cifar10-jpeg.tar.xz")
SPARSITY, FILTERS = 0.8, 0.5
# Name -> the method; None is fine-tuned only.
NETWORKS: dict[str, str | None] = {"dense": None, "block 80%": "block-16x1", "half the filters": "structural-l2"}
_HELD_BACK = 5000
_LR = 3e-3
# Of compress/allocation.py. At 1 the first stage, which has few weights and the most pixels, would keep most accuracy
# and most of its time; at 0 least of both.
_POWER = 0.65
# Of all steps, those in which the blocks go: what follows, at the full sparsity, is what recovers the accuracy.
_PRUNED_BY = 0.4
_SHAPE = (3, 32, 32)
_VARIANTS = ("manual", "auto")

Row = dict[str, Any]


def run(settings: Settings) -> int:
    """Fine-tunes the three networks, measures them, prints the table; 1 where a build failed.

    Raises:
        DataError: the weights or the images are not under `settings.data_dir`.
    """
    from tvmopt.data import data_directory
    from tvmopt.machine import configure_threads

    root = data_directory(settings.data_dir)
    images = next((name for name in IMAGES if (root / name).exists()), None)
    if images is None or not (root / WEIGHTS).is_file():
        raise DataError(f"cifar-resnet20 needs {WEIGHTS} and {IMAGES[1]} under {root} (--data-dir says another)")
    machine = settings.options.cpu("this recipe")
    configure_threads(machine.cores)
    epochs = settings.epochs or (1 if settings.quick else 40)
    with work_directory(settings) as folder:
        # What was trained for another number of epochs, or on few images, is not this run's.
        trained = folder / (f"{epochs}-epochs" + ("-quick" if settings.quick else ""))
        made = {name: trained / f"{name.replace(' ', '-').replace('%', '')}.pt2" for name in NETWORKS}
        _finetune(settings, root, images, trained, made, epochs)
        options = dataclasses.replace(
            settings.options, threads=machine.cores,
            log_dir=settings.options.log_dir if settings.keep_logs else folder / "tuning_logs",
        )  # fmt: skip
        rows = _measure(made, options, settings, images)
        facts = {name: _facts(path) for name, path in made.items()}
    recipe = {
        "name": "cifar-resnet20", "dataset": images, "epochs": epochs, "quick": settings.quick,
        "sparsity": SPARSITY, "filters_removed": FILTERS, "networks": facts,
    }  # fmt: skip
    document(settings, machine, recipe, rows)
    return _show(rows, facts, epochs, settings.markdown)


def _finetune(settings: Settings, root: Path, images: str, folder: Path, made: Mapping[str, Path], epochs: int) -> None:
    """Writes each network as a .pt2 that is not there yet."""
    if all(path.is_file() for path in made.values()):
        return
    from tvmopt.compress import saved
    from tvmopt.data import load_dataset
    from tvmopt.model import load_model
    from tvmopt.training.loop import evaluate, train
    from tvmopt.training.split import hold_back

    public = load_model("resnet20", weights=str(root / WEIGHTS))
    whole = load_dataset(images, root, "train", 2000 if settings.quick else None, _SHAPE)
    training, held_back = hold_back(whole, len(whole) // 10 if settings.quick else _HELD_BACK)
    test = load_dataset(images, root, "test", 500 if settings.quick else settings.limit, _SHAPE)
    before = {"public": evaluate(public.module, test)}
    say(f"public weights: top-1 {before['public']:.2%} of {len(test)} test images; trained on these images first:")
    adapted = copy.deepcopy(public.module)
    train(adapted, training, checkpoint=folder / "adapted.ckpt", **_common(held_back, max(1, epochs // 2)))
    before["before"] = evaluate(adapted, test)
    say(f"what all three start from: top-1 {before['before']:.2%} of {len(test)} test images")
    params = sum(parameter.numel() for parameter in public.module.parameters())
    common = _common(held_back, epochs)
    for name, method in NETWORKS.items():
        if made[name].is_file():
            continue
        module = copy.deepcopy(adapted)
        shares: float | Mapping[str, float] = FILTERS
        if method == "block-16x1":
            by_layer = _allocate(adapted)
            say("sparsity by layer: " + ", ".join(f"{layer} {share:.0%}" for layer, share in by_layer.items()))
            shares = by_layer
        say(f"{name}:")
        how = {"checkpoint": folder / f"{made[name].stem}.ckpt", "teacher": adapted, **common}
        best = _finetune_one(module, method, shares, public.example_inputs, training, how)
        asked = {None: 0.0, "block-16x1": SPARSITY}.get(method, FILTERS)
        scores = {**before, "held back": best, "after": evaluate(module, test)}
        say(f"{name}: top-1 {scores['after']:.2%} of {len(test)} test images")
        record = saved.record_of(module, method or "dense", asked, scores, params)
        saved.save(module, public.example_inputs, made[name], record)


def _allocate(module: nn.Module) -> dict[str, float]:
    """Layer -> its block sparsity: the three stages do as much arithmetic each, and have 5, 19 and 76% of the weights.

    By a scan of top-1 layer by layer the first stage would lose 85% of its few weights, which keeps less accuracy
    and more speed.
    """
    from tvmopt.compress.allocation import erdos_renyi
    from tvmopt.compress.layers import chosen_layers
    from tvmopt.compress.methods import method_of

    layers = chosen_layers(module, method_of("block-16x1"))
    return erdos_renyi({name: tuple(layer.weight.shape) for name, layer in layers.items()}, SPARSITY, _POWER)


def _common(held_back: Dataset, epochs: int) -> dict[str, Any]:
    """How every network here is trained; the names are those of `training.loop.train`."""
    from tvmopt.training.augment import crop_and_flip
    from tvmopt.training.loop import Epoch

    def progress(epoch: Epoch) -> None:
        say(
            f"epoch {epoch.number} of {epochs}: loss {epoch.loss:.4f}, top-1 {epoch.accuracy:.2%} in training, "
            f"{epoch.validation or 0:.2%} held back"
        )

    return {
        "epochs": epochs, "lr": _LR, "batch": 128, "validation": held_back, "augment": crop_and_flip,
        "bfloat16": mixes_precision(), "progress": progress,
    }  # fmt: skip


def _finetune_one(
    module: nn.Module, method: str | None, shares: float | Mapping[str, float], inputs: Any, training: Dataset,
    how: dict[str, Any],
) -> float:  # fmt: skip
    """Fine-tunes in place, resuming from its checkpoint; returns top-1 on the held-back images at the epoch kept."""
    from tvmopt.compress.pruning import Finetuning, prune
    from tvmopt.compress.schedule import Schedule
    from tvmopt.training.loop import evaluate, train

    if method is None:
        # As many epochs to choose from as the block-sparse network has (compress/pruning.py).
        train(module, training, best_from=min(int(_PRUNED_BY * how["epochs"]) + 1, how["epochs"]), **how)
    else:
        schedule = Schedule("polynomial", end=_PRUNED_BY) if method.startswith("block") else Schedule()
        prune(module, method, shares, inputs, finetuning=Finetuning(training, schedule=schedule, **how))
    return evaluate(module, how["validation"])


def _measure(made: Mapping[str, Path], options: BuildOptions, settings: Settings, images: str) -> list[Row]:
    """The rows of manual and auto of the networks, all taking turns; auto searched first where that was asked for."""
    variants = _VARIANTS if settings.trials else _VARIANTS[:1]
    if settings.trials:
        from tvmopt.tune import tune

        for path in made.values():
            say(f"searching schedules for {path.stem}")
            tune(str(path), trials=settings.trials, time_budget=settings.time_budget_s, options=options)
    turns = Turns(samples=settings.samples, time_limit_s=settings.time_limit_s)
    if settings.quick:
        turns = Turns(samples=6, time_limit_s=1.0)
    report: Callable[[str, str], None] = lambda name, text: None  # noqa: E731
    data = Data(images, False, settings.data_dir, 500 if settings.quick else settings.limit)
    models = [[Case(str(path), variant, options) for variant in variants] for path in made.values()]
    rows = measure_together(models, turns, data, report)
    names = [name for name in made for _ in variants]
    return [{**row, "model": f"resnet20, {name}"} for name, row in zip(names, rows, strict=True)]


def _facts(path: Path) -> dict[str, Any]:
    """What the program at `path` says of itself."""
    from tvmopt.compress import saved
    from tvmopt.model import load_model

    record = saved.read(load_model(str(path)).extra)
    assert record is not None
    return {
        "method": record.method, "sparsity": record.sparsity, "overall_sparsity": record.overall,
        "top1": record.accuracy, "layers": record.layers, "dense_params": record.dense_params,
    }  # fmt: skip


def lines(rows: Sequence[Row], facts: Mapping[str, Any]) -> list[list[str]]:
    """One line a network and variant, the header first."""
    dense = {row["variant"]: row for row in rows if row["model"].endswith("dense")}
    found = [["", "variant", "top-1", "held back", "zeros", "parameters", "bytes, sparse", "file, bytes", "median ms",
              "dense is"]]  # fmt: skip
    for row in rows:
        name = row["model"].removeprefix("resnet20, ")
        timed = row["latency_ms"] is not None and dense[row["variant"]]["latency_ms"] is not None
        top1 = f"{row['accuracy']['top1']:.2%}" if row["accuracy"] else "failed"
        speed = f"{_ratio(dense[row['variant']], row):.2f}x" if timed else "failed"
        found.append(
            [name, row["variant"], top1, f"{facts[name]['top1']['held back']:.2%}",
             f"{facts[name]['overall_sparsity']:.1%}", f"{row['params']:,}", f"{row['size_compressed_bytes']:,}",
             f"{row['size_bytes']:,}" if timed else "failed",
             table.milliseconds(row["latency_ms"]["median"]) if timed else "failed", speed]
        )  # fmt: skip
    return found


def behind(rows: Sequence[Row]) -> list[str]:
    """How far the accuracy of each pruned network is below dense after the same fine-tuning, in words."""
    first, found = rows[0], []
    for name in list(NETWORKS)[1:]:
        row = next(row for row in rows if row["model"].endswith(name))
        if row["accuracy"] and first["accuracy"]:
            less = (first["accuracy"]["top1"] - row["accuracy"]["top1"]) * 100
            found.append(f"{name}: {less:.2f} points below dense after the same fine-tuning")
    return found


def _show(rows: list[Row], facts: Mapping[str, Any], epochs: int, markdown: bool) -> int:
    print(f"ResNet-20 on CIFAR-10 as JPEG, {epochs} epochs of fine-tuning each, batch 1")
    show(lines(rows, facts), markdown)
    print()
    for row in rows:
        if row["error"] is not None:
            print(f"{row['model']}, {row['variant']} failed: {row['error']}")
    print("\n".join(behind(rows)))
    return 1 if any(row["error"] is not None for row in rows) else 0


def _ratio(dense: Row, row: Row) -> float:
    """How many times as long the dense network takes."""
    (before, rounds), (after, others) = counted(dense, row)
    return statistics.ratio(before, rounds, after, others).value
