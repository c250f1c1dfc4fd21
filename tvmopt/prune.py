"""`python -m tvmopt.prune`: a smaller network from a model, as an exported program that says how it was pruned."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.compress.allocation import KINDS as ALLOCATIONS
from tvmopt.compress.schedule import KINDS as SCHEDULES
from tvmopt.compress.settings import Settings, check
from tvmopt.errors import ModelError, OutputError, UsageError
from tvmopt.options import add_build_options, build_options, make_parser, names, positive_int, run
from tvmopt.pt2 import duplicate

if TYPE_CHECKING:
    from torch import nn

    from tvmopt.compress.saved import Record
    from tvmopt.compress.sensitivity import Scan
    from tvmopt.compress.size import Layer, Size
    from tvmopt.data import Dataset
    from tvmopt.model import Model

_LEFT_OUT = ("target", "arch", "dtype", "strategy", "schedules", "log-dir", "dump-ir", "cuda-graphs", "fast-math")
# Held back from fine-tuning: a tenth of the training images, at most so many, and for a scan at most so many.
_HELD_BACK, _SCANNED = 5000, 2000


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
    from tvmopt.compress.pruning import Finetuning, prune
    from tvmopt.compress.size import layer_sizes, size_of

    method = check(settings)
    _check_module(model)
    test, training, held_back = _datasets(model, settings)
    module = duplicate(model.module)
    before, scores = size_of(module), _Scores(test)
    scores.take("before", module)
    sparsity: float | Mapping[str, float] | None = settings.sparsity
    if settings.sensitivity:
        found = _scan(model, settings, held_back, say)
        if settings.scan_alone:
            return None
        # An N:M pattern is the same in every layer, whatever the scan says.
        if method.fixed_sparsity is None:
            sparsity = _by_sensitivity(model, settings, found)
    elif settings.allocation != "uniform":
        sparsity = _by_size(model, settings)
    finetuning = None
    if settings.epochs:
        assert training is not None
        finetuning = Finetuning(
            training, settings.epochs, settings.when(), settings.lr,
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


def _scan(model: Model, settings: Settings, held_back: Dataset | None, say: Any) -> Scan:
    """Scans, and prints what was found."""
    from tvmopt.compress import sensitivity
    from tvmopt.compress.methods import method_of
    from tvmopt.compress.summary import aligned
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
    return found


def _by_sensitivity(model: Model, settings: Settings, found: Scan) -> Mapping[str, float]:
    from tvmopt.compress import sensitivity
    from tvmopt.compress.size import layer_sizes

    assert settings.sparsity is not None
    params = {layer.name: layer.params for layer in layer_sizes(model.module)}
    return sensitivity.allocate(found, params, settings.sparsity)


def _by_size(model: Model, settings: Settings) -> Mapping[str, float]:
    from tvmopt.compress.allocation import erdos_renyi
    from tvmopt.compress.layers import chosen_layers
    from tvmopt.compress.methods import method_of

    assert settings.sparsity is not None
    chosen = chosen_layers(model.module, method_of(settings.method), settings.only, settings.skip)
    return erdos_renyi({name: tuple(layer.weight.shape) for name, layer in chosen.items()}, settings.sparsity)


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
    group.add_argument("--schedule", choices=SCHEDULES, default="one-shot", help="when the weights go")
    group.add_argument("--rounds", type=positive_int, metavar="N", help="of iterative: rounds of pruning; by default 3")
    group.add_argument("--prune-until", type=float, metavar="F",
                       help="of polynomial and iterative: the share of training after which all that goes is gone; by "
                       "default 0.5, and the start of the last of equal rounds")  # fmt: skip
    group.add_argument("--prune-every", type=positive_int, metavar="N",
                       help="of constant and polynomial: steps from choice to choice; by default 50")  # fmt: skip
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
    settings = Settings(
        args.method, args.sparsity, args.layers, args.skip, args.schedule, args.finetune_epochs, args.lr, args.seed,
        args.dataset, args.data_dir, args.limit, args.sensitivity, args.allocation, args.bfloat16, args.distill,
        args.output, args.rounds, args.prune_until, args.prune_every,
    )  # fmt: skip
    # What can be told at once is told before the model is loaded.
    method = check(settings)
    if settings.output is not None:
        _check_output(settings.output)
    elif not settings.scan_alone:
        raise UsageError("give -o FILE.pt2, the file to write")
    from tvmopt.compress.summary import summary
    from tvmopt.machine import available_cores, configure_threads

    options = build_options(args)
    model = options.load(args.model)
    configure_threads(options.threads or available_cores())
    pruned = prune_model(model, settings)
    if pruned is None:
        return 0
    print("\n".join(summary(pruned.layers, pruned.before, pruned.after, pruned.record.accuracy)))
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
