"""Prunes a network in place, at once or while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.compress.masked import Masked
from tvmopt.compress.methods import check_sparsity, method_of
from tvmopt.compress.schedule import Schedule
from tvmopt.compress.structural import remove
from tvmopt.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tvmopt.data import Dataset
    from tvmopt.training.loop import Epoch


@dataclass(frozen=True)
class Finetuning:
    """How to train while and after pruning; the names are those of `training.loop.train`."""

    training: Dataset
    epochs: int
    schedule: Schedule = field(default_factory=Schedule)
    lr: float = 1e-3
    batch: int = 128
    seed: int = 0
    validation: Dataset | None = None
    augment: Callable[[Any, Any], Any] | None = None
    checkpoint: Path | None = None
    bfloat16: bool = False
    teacher: nn.Module | None = None
    progress: Callable[[Epoch], None] | None = None


def prune(
    module: nn.Module,
    method_name: str,
    sparsity: float | Mapping[str, float] | None,
    inputs: Sequence[Tensor],
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    finetuning: Finetuning | None = None,
    after_pruning: Callable[[nn.Module], None] | None = None,
) -> list[Epoch]:
    """Prunes `module` in place; returns the epochs of its fine-tuning. It ends plain: zeros in its weights, no masks.

    sparsity: in [0, 1), of every layer or layer -> its own; None for an N:M pattern. only, skip: names of layers.
    after_pruning: called with the network fully pruned and not yet fine-tuned, where the schedule has that. With a
    validation set the epoch it likes best is kept, of those that trained at the full sparsity.
    Errors: `UsageError`, `ModelError` (methods.py, layers.py, structural.py say of what).
    """
    method = method_of(method_name)
    shares = sparsity if isinstance(sparsity, Mapping) else check_sparsity(method, sparsity)
    if isinstance(shares, Mapping):
        if method.name == "unstructured-global":
            raise UsageError(f"{method.name} has one threshold for all layers: give one sparsity, or take unstructured")
        for share in shares.values():
            check_sparsity(method, share)
    masked: Masked | None = None
    if method.kind == "structural":
        remove(module, method, shares, inputs, only=only, skip=skip)
    else:
        masked = Masked(module, method, inputs, only=list(shares) if isinstance(shares, Mapping) else only, skip=skip)
        if finetuning is None or not finetuning.schedule.grows:
            masked.prune(shares)
    grows = masked is not None and finetuning is not None and finetuning.schedule.grows
    if after_pruning is not None and not grows:
        after_pruning(module)
    history = _finetune(module, masked, shares, finetuning) if finetuning is not None else []
    if masked is not None:
        masked.bake()
    return history


def _finetune(
    module: nn.Module, masked: Masked | None, shares: float | Mapping[str, float], how: Finetuning
) -> list[Epoch]:
    from tvmopt.training.loop import train

    def set_masks(step: int, steps: int) -> None:
        assert masked is not None
        final = shares if isinstance(shares, Mapping) else dict.fromkeys(masked.layers, shares)
        now = {name: how.schedule.sparsity(share, step, steps) for name, share in final.items()}
        chosen = {name: share for name, share in now.items() if share is not None}
        # The masks were set before the first step already, and a resumed training has those of its checkpoint.
        if chosen and (step or how.schedule.grows):
            masked.prune(chosen)

    settled = how.schedule.settled if masked is not None else 0.0
    best_from = min(int(settled * how.epochs) + 1, how.epochs) if how.validation is not None else None
    return train(
        module, how.training, epochs=how.epochs, lr=how.lr, seed=how.seed, batch=how.batch, validation=how.validation,
        augment=how.augment, progress=how.progress, before_step=set_masks if masked is not None else None,
        best_from=best_from, checkpoint=how.checkpoint, bfloat16=how.bfloat16,
        teacher=how.teacher,
    )  # fmt: skip
