"""`python -m tvmopt.prune`: a smaller network from a model, as an exported program that says how it was pruned."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.compress.allocation import KINDS as ALLOCATIONS
from tvmopt.errors import ModelError, OutputError, UsageError
from tvmopt.options import add_build_options, build_options, make_parser, names, positive_int, run

if TYPE_CHECKING:
    from torch import nn

    from tvmopt.compress.saved import Record
    from tvmopt.compress.size import Layer, Size
    from tvmopt.data import Dataset
    from tvmopt.model import Model

_LEFT_OUT = ("target", "arch", "dtype", "strategy", "schedules", "log-dir", "dump-ir", "cuda-graphs", "fast-math")
_SCHEDULES = ("one-shot", "constant", "polynomial", "iterative")
# Held back from fine-tuning: a tenth of the training images, at most so many, and for a scan at most so many.
_HELD_BACK, _SCANNED = 5000, 2000


@dataclass(frozen=True)
class Settings:
    """What to prune and how. sparsity: None for an N:M pattern, or for a scan alone. output: None writes nothing."""

    method: str
    sparsity: float | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    schedule: str = "one-shot"
    epochs: int = 0
    lr: float = 1e-3
    seed: int = 0
    dataset: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    sensitivity: bool = False
    allocation: str = "uniform"
    bfloat16: bool = False
    distill: bool = False
    output: Path | None = None


@dataclass(frozen=True)
class Pruned:
    """A pruned network: the module, how it was pruned, and its size and layers beside the dense ones."""

    module: nn.Module
    record: Record
    before: Size
    after: Size
    layers: list[Layer]


def prune_model(model: Model, settings: Settings, say: Any = print) -> Pruned | None:
    """Prunes a copy of `model`'s module and writes it to `settings.output`; None where only a scan was asked for.

    say: takes the lines that tell how it goes.
    Errors: `UsageError`, `ModelError`, `DataError`, `OutputError`, one line each.
    """
    from tvmopt.compress import saved
    from tvmopt.compress.methods import check_sparsity, method_of
    from tvmopt.compress.pruning import Finetuning, prune
    from tvmopt.compress.schedule import Schedule
    from tvmopt.compress.size import layer_sizes, size_of

    method = method_of(settings.method)
    scan_alone = settings.sensitivity and settings.sparsity is None and method.fixed_sparsity is None
    if not scan_alone:
        check_sparsity(method, settings.sparsity)
    _check_module(model)
    test, training, held_back = _datasets(model, settings)
    module = copy.deepcopy(model.module)
    before, scores = size_of(module), _Scores(test)
    scores.take("before", module)
    sparsity: float | Mapping[str, float] | None = settings.sparsity
    if settings.sensitivity:
        sparsity = _by_sensitivity(model, settings, held_back, say)
        if sparsity is None:
            return None
    elif settings.allocation != "uniform":
        sparsity = _by_size(model, settings)
    finetuning = None
    if settings.epochs:
        assert training is not None
        finetuning = Finetuning(
            training, settings.epochs, Schedule(settings.schedule, rounds=settings.epochs), settings.lr,
            seed=settings.seed, validation=held_back, bfloat16=settings.bfloat16,
            teacher=model.module if settings.distill else None,
            progress=lambda epoch: say(
                f"epoch {epoch.number} of {settings.epochs}: loss {epoch.loss:.4f}, top-1 {epoch.accuracy:.2%} in "
                f"training, {epoch.validation or 0:.2%} on {len(held_back or ())} held-back images"
            ),
        )  # fmt: skip
    prune(
        module, method.name, sparsity, model.example_inputs, only=settings.only, skip=settings.skip,
        finetuning=finetuning,
        after_pruning=(lambda pruned: scores.take("pruned", pruned)) if settings.epochs else None,
    )  # fmt: skip
    scores.take("after", module)
    asked = settings.sparsity if settings.sparsity is not None else method.fixed_sparsity or 0.0
    record = saved.record_of(module, method.name, asked, scores.top1, before.params)
    if settings.output is not None:
        saved.save(module, model.example_inputs, settings.output, record)
    return Pruned(module, record, before, size_of(module), layer_sizes(module))


class _Scores:
    """Top-1 at the stages of pruning; nothing where there is no data set."""

    def __init__(self, test: Dataset | None) -> None:
        self._test = test
        self.top1: dict[str, float] = {}

    def take(self, stage: str, module: nn.Module) -> None:
        from tvmopt.training.loop import evaluate

        if self._test is not None:
            self.top1[stage] = evaluate(module, self._test)


def _check_module(model: Model) -> None:
    if model.exported is not None:
        raise ModelError(
            f"{model.spec} is an exported program, which has no layers any more: prune the model it was exported from"
        )


def _datasets(model: Model, settings: Settings) -> tuple[Dataset | None, Dataset | None, Dataset | None]:
    """(test, training, held back); the latter two only where they are needed."""
    from tvmopt.data import default_dataset, load_dataset
    from tvmopt.training.split import hold_back

    name = settings.dataset or default_dataset(model)
    trains = settings.epochs > 0 or settings.sensitivity
    if name is None:
        if trains:
            raise UsageError("fine-tuning and a sensitivity scan need images: give --dataset, and --data-dir")
        return None, None, None
    shape = model.input_shape
    test = load_dataset(name, settings.data_dir, "test", settings.limit, shape)
    if not trains:
        return test, None, None
    whole = load_dataset(name, settings.data_dir, "train", settings.limit, shape)
    return test, *hold_back(whole, max(1, min(_HELD_BACK, len(whole) // 10)), settings.seed)


def _by_sensitivity(
    model: Model, settings: Settings, held_back: Dataset | None, say: Any
) -> Mapping[str, float] | None:
    """Prints the scan; returns the sparsities that follow from it for the one asked for, None where none was."""
    from tvmopt.compress import sensitivity
    from tvmopt.compress.methods import method_of
    from tvmopt.compress.size import layer_sizes
    from tvmopt.training.loop import evaluate
    from tvmopt.training.split import hold_back

    assert held_back is not None
    some = held_back if len(held_back) <= _SCANNED else hold_back(held_back, _SCANNED)[1]
    method = method_of(settings.method)
    found = sensitivity.scan(
        model.module, method, model.example_inputs, lambda module: evaluate(module, some),
        only=settings.only, skip=settings.skip,
    )  # fmt: skip
    shares = list(next(iter(found.values())))
    lines = [[f"top-1 of {len(some)} held-back images", *(f"{share:.0%}" for share in shares)]]
    lines += [[name, *(f"{line[share]:.2%}" for share in shares)] for name, line in found.items()]
    for text in aligned(lines):
        say(text)
    if settings.sparsity is None:
        return None
    params = {layer.name: layer.params for layer in layer_sizes(model.module)}
    return sensitivity.allocate(found, params, settings.sparsity)


def _by_size(model: Model, settings: Settings) -> Mapping[str, float]:
    from tvmopt.compress.allocation import erdos_renyi
    from tvmopt.compress.layers import chosen_layers
    from tvmopt.compress.methods import method_of

    assert settings.sparsity is not None
    chosen = chosen_layers(model.module, method_of(settings.method), settings.only, settings.skip)
    return erdos_renyi({name: tuple(layer.weight.shape) for name, layer in chosen.items()}, settings.sparsity)


def summary(pruned: Pruned) -> list[str]:
    """The lines that say what was reached: layer by layer, overall, accuracy, sizes."""
    rows = [["layer", "shape", "weights", "zeros"]]
    rows += [
        [layer.name, "x".join(map(str, layer.shape)), f"{layer.params:,}", f"{layer.sparsity:.1%}"]
        for layer in pruned.layers
    ]
    before, after = pruned.before, pruned.after
    rows.append(["all parameters", "", f"{after.params:,}", f"{after.sparsity:.1%}"])
    lines = aligned(rows)
    if after.params != before.params:
        removed = 1 - after.params / before.params
        lines.append(f"parameters: {before.params:,} -> {after.params:,} ({removed:.1%} removed)")
    if pruned.record.accuracy:
        words = {"before": "before", "pruned": "pruned, not yet fine-tuned", "after": "after"}
        lines.append("top-1: " + ", ".join(f"{words[at]} {top1:.2%}" for at, top1 in pruned.record.accuracy.items()))
    lines.append(
        f"size: dense {before.dense_bytes:,} -> {after.dense_bytes:,} bytes, compressed sparse "
        f"{before.compressed_bytes:,} -> {after.compressed_bytes:,}, zipped {before.zipped_bytes:,} -> "
        f"{after.zipped_bytes:,} ({before.zipped_bytes / after.zipped_bytes:.2f}x smaller)"
    )
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under each other, the first set left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [
        [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in texts]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "prune", "tvmopt.prune",
        "Prunes a model, fine-tunes it with the zeros held, says what it costs and saves, and writes it as an exported "
        "program that tune, bench and export take as a model. Methods: unstructured, unstructured-global, unit, "
        "filter-l1|l2|bn (masks), structural-l1|l2|bn (cut out), block-16x1, block-16x4, 2:4, 4:8; block, filter and "
        "structural are short for the first that is usual.",
        [
            "--method block --sparsity 0.8 --finetune-epochs 5 -o pruned.pt2",
            "resnet20 --weights resnet20.th --method structural --sparsity 0.5 --dataset cifar10-jpeg.tar.xz "
            "--data-dir data --finetune-epochs 3 -o small.pt2",
            "torchvision:resnet18 --method 2:4 -o pruned.pt2",
            "digits_cnn --method unstructured --sensitivity",
        ],
    )  # fmt: skip
    made.add_argument("model", nargs="?", metavar="MODEL", default="digits_cnn",
                      help="digits_cnn, mnist_cnn, resnet20, torchvision:NAME or FILE.py:FACTORY")  # fmt: skip
    made.add_argument("--method", required=True, metavar="M", help="what is pruned (above)")
    made.add_argument("--sparsity", type=float, metavar="S", help="share of zeros, or of filters removed, as 0.8")
    made.add_argument("--layers", type=names, default=(), metavar="A,B", help="only these; by default all that fit")
    made.add_argument("--skip", type=names, default=(), metavar="A,B", help="leave these layers alone")
    made.add_argument("--sensitivity", action="store_true",
                      help="scan layer by layer; with --sparsity, prune each layer by what it can lose")  # fmt: skip
    made.add_argument("--allocation", choices=ALLOCATIONS, default="uniform",
                      help="uniform: all layers alike; erdos-renyi: small layers less, wide ones more")  # fmt: skip
    made.add_argument("-o", "--output", type=Path, metavar="FILE.pt2", help="the file to write")
    group = made.add_argument_group("fine-tuning and data")
    group.add_argument("--finetune-epochs", type=int, default=0, metavar="N", help="passes over the training images")
    group.add_argument("--schedule", choices=_SCHEDULES, default="one-shot", help="when the weights go")
    group.add_argument("--lr", type=float, default=1e-3, help="the largest learning rate")
    group.add_argument("--seed", type=int, default=0, help="of the order of the images")
    group.add_argument("--distill", action="store_true",
                       help="learn from the answers of the network before pruning, too")  # fmt: skip
    group.add_argument("--bfloat16", action="store_true", help="mixed precision: fast on CPUs that have it")
    group.add_argument("--dataset", metavar="D", help="digits, mnist, fashionmnist, cifar10, cifar100, an image folder "
                       "or a tar archive of one; by default the built-in model's own")  # fmt: skip
    group.add_argument("--data-dir", metavar="DIR", help="where data sets are; by default $TVMOPT_DATA_DIR or ./data")
    group.add_argument("--limit", type=positive_int, metavar="N", help="at most so many images of each split")
    add_build_options(made, leave_out=_LEFT_OUT)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prunes, writes, and says what was reached."""
    args = parser().parse_args(argv)
    if args.finetune_epochs < 0 or not args.lr > 0:
        raise UsageError("--finetune-epochs must not be negative, and --lr must be positive")
    if args.schedule in ("polynomial", "iterative") and not args.finetune_epochs:
        raise UsageError(f"--schedule {args.schedule} prunes while training: give --finetune-epochs")
    if args.distill and not args.finetune_epochs:
        raise UsageError("--distill is a way to fine-tune: give --finetune-epochs")
    if args.output is None and not (args.sensitivity and args.sparsity is None):
        raise UsageError("give -o FILE.pt2, the file to write")
    if args.allocation != "uniform" and (args.sensitivity or args.sparsity is None):
        raise UsageError(f"--allocation {args.allocation} spreads --sparsity over the layers: give one, and no scan")
    if args.output is not None:
        _check_output(args.output)
    options = build_options(args)
    settings = Settings(
        args.method, args.sparsity, args.layers, args.skip, args.schedule, args.finetune_epochs, args.lr, args.seed,
        args.dataset, args.data_dir, args.limit, args.sensitivity, args.allocation, args.bfloat16, args.distill,
        args.output,
    )  # fmt: skip
    from tvmopt.compress.methods import check_sparsity, method_of
    from tvmopt.machine import available_cores, configure_threads

    # What can be told at once is told before the model is loaded.
    method = method_of(settings.method)
    if settings.sparsity is not None or not settings.sensitivity:
        check_sparsity(method, settings.sparsity)
    model = options.load(args.model)
    configure_threads(options.threads or available_cores())
    pruned = prune_model(model, settings)
    if pruned is None:
        return 0
    print("\n".join(summary(pruned)))
    print(f"{args.output}: {args.model} by {method.name}, {args.output.stat().st_size:,} bytes", file=sys.stderr)
    return 0


def _check_output(path: Path) -> None:
    if path.suffix != ".pt2":
        raise OutputError(f"{path}: a pruned model is an exported program; give it a name that ends in .pt2")
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a directory" if path.is_dir() else f"there is no directory {path.parent}"
        raise OutputError(f"{path} cannot be written: {what}")


if __name__ == "__main__":
    raise SystemExit(run(main))
