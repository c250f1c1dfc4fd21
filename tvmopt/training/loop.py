"""The one training loop, and how accuracy is measured. Plain PyTorch, on the device of the module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tvmopt.data import Dataset

_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data gave. loss: the mean of what is minimised; accuracy: top-1 while training, in 0..1;
    validation: top-1 on the held-back set, or None; lr: the learning rate at its end."""

    number: int
    loss: float
    accuracy: float
    validation: float | None
    lr: float


def _device(module: nn.Module) -> torch.device:
    import torch

    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def _batches(count: int, batch: int, order: Tensor | None) -> Iterator[Tensor | slice]:
    for start in range(0, count, batch):
        yield slice(start, start + batch) if order is None else order[start : start + batch]


def train(
    module: nn.Module,
    dataset: Dataset,
    *,
    epochs: int = 10,
    lr: float = 2e-3,
    seed: int = 0,
    batch: int = 64,
    validation: Dataset | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    progress: Callable[[Epoch], None] | None = None,
    before_step: Callable[[int, int], None] | None = None,
    best_from: int | None = None,
    checkpoint: Path | None = None,
    bfloat16: bool = False,
    teacher: nn.Module | None = None,
) -> list[Epoch]:
    """Trains `module` in place by AdamW with a one-cycle (cosine) learning rate; leaves it in eval mode.

    `seed` fixes the order of the images and what `augment(images, generator)` draws (the module's own start is the
    caller's); the global generator, which dropout draws from, is seeded for the time of training and put back.
    `before_step(step, steps)` is called before each step, steps counted from 0: pruning sets its masks there.
    `best_from`, an epoch: the module ends as it was after the epoch that `validation` likes best (the first of
    equals), of this and later ones; None: as it was after the last.
    With `checkpoint`, a file, training that was interrupted goes on after its last whole epoch.
    `bfloat16`: products and convolutions in bfloat16, weights and sums in float32 (mixed precision).
    `teacher`, a network of the same classes: the loss is mostly to answer as it does (distill.py); it is not changed.
    Returns one `Epoch` per epoch; `progress` is called with each as it ends.
    Errors: `UsageError` for counts below 1, a learning rate that is not positive or `best_from` without a validation
    set, `DataError` for an empty data set, a loss that is not finite or a checkpoint of other training.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from tvmopt.training.checkpoint import State
    from tvmopt.training.distill import distillation

    if epochs < 1 or batch < 1 or lr <= 0:
        raise UsageError(f"epochs ({epochs}), batch ({batch}) and learning rate ({lr}) must all be positive")
    if best_from is not None and validation is None:
        raise UsageError("the best epoch is chosen on held-back images: give a validation set")
    count, device = len(dataset), _device(module)
    if count == 0:
        raise DataError(f"{dataset.name} ({dataset.split}) has no images to train on")
    steps = epochs * -(-count // batch)
    # As convolutions like it: several times the speed of the usual layout where no library chooses it by itself.
    layout = torch.channels_last
    module.to(memory_format=layout)  # type: ignore[call-overload]
    if teacher is not None:
        # A copy, since the caller may go on to change the one it gave, or give the module itself.
        teacher = copy.deepcopy(teacher).eval().to(device=device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2), pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = State(module, optimizer, schedule, generator, best_from)
        if checkpoint is not None:
            taught = ", with a teacher" if teacher is not None else ""
            state.resume(checkpoint, f"{epochs} epochs of {count} images in {batch}s, lr {lr}, seed {seed}{taught}")
        for number in range(len(state.history) + 1, epochs + 1):
            module.train()
            loss_sum, correct, step = 0.0, 0, (number - 1) * -(-count // batch)
            for rows in _batches(count, batch, torch.randperm(count, generator=generator)):
                if before_step is not None:
                    before_step(step, steps)
                images, labels = dataset.images[rows], dataset.labels[rows].to(device)
                if augment is not None:
                    images = augment(images, generator)
                images = images.to(device)
                if images.ndim == 4:
                    images = images.to(memory_format=layout)
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    logits = module(images)
                    if teacher is None:
                        loss = cross_entropy(logits, labels)
                    else:
                        with torch.no_grad():
                            answers = teacher(images)
                        loss = distillation(logits, answers, labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                loss_sum += loss.item() * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
            if not loss_sum < float("inf"):
                raise DataError(f"the loss of epoch {number} is not finite: lower the learning rate ({lr})")
            held_back = None if validation is None else evaluate(module, validation)
            epoch = Epoch(number, loss_sum / count, correct / count, held_back, float(schedule.get_last_lr()[0]))
            state.ended(epoch)
            if checkpoint is not None:
                state.save(checkpoint)
            if progress is not None:
                progress(epoch)
    if best_from is not None:
        state.restore_best()
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    module.eval()
    return state.history


def evaluate(module: nn.Module, dataset: Dataset, *, batch: int = _EVALUATION_BATCH) -> float:
    """Top-1 accuracy in 0..1 of `module` on `dataset`, in eval mode; the module's mode is put back.

    Errors: `DataError` for an empty data set.
    """
    import torch

    if len(dataset) == 0:
        raise DataError(f"{dataset.name} ({dataset.split}) has no images to evaluate on")
    device, training = _device(module), module.training
    module.eval()
    correct = 0
    try:
        with torch.no_grad():
            for rows in _batches(len(dataset), batch, None):
                images = dataset.images[rows].to(device)
                if images.ndim == 4:
                    images = images.to(memory_format=torch.channels_last)
                predicted = module(images).argmax(1).cpu()
                correct += int((predicted == dataset.labels[rows]).sum())
    finally:
        module.train(training)
    return correct / len(dataset)
