"""Networks pruned in one shot, without training, so that a bench shows what the zeros alone cost and save."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmopt.options import BuildOptions


@dataclass(frozen=True)
class Pruned:
    """A network of the bench: `spec` names it for people, `source` is the model spec it is loaded from.

    `options` are those to load `source` with: a pruned file has its batch, shape and weights in it. `dataset` is the
    one the whole network is measured on by default, None where it has none or is asked itself.
    """

    spec: str | None
    source: str | None
    options: BuildOptions
    dataset: str | None = None

    @property
    def title(self) -> str:
        """What progress calls it."""
        return Path(str(self.source)).stem if self.is_pruned else str(self.spec)

    @property
    def is_pruned(self) -> bool:
        """Whether it is loaded from a file made for this run."""
        return self.source != self.spec

    def __hash__(self) -> int:
        return hash(self.source)


def networks(
    specs: Sequence[str | None], sparsities: Sequence[float], method: str, options: BuildOptions, folder: Path
) -> list[Pruned]:
    """Every one of `specs` at every one of `sparsities`; files of the pruned ones are written into `folder`.

    Raises:
        UsageError: a method that is not one, or allows no layer. ModelError: a model that cannot be loaded.
    """
    found = []
    for spec in specs:
        for sparsity in sparsities or (0.0,):
            if sparsity:
                found.append(_prune(spec, sparsity, method, options, folder))
            else:
                found.append(Pruned(spec, spec, options))
    return found


def _prune(spec: str | None, sparsity: float, method: str, options: BuildOptions, folder: Path) -> Pruned:
    from tvmopt.compress.one_shot import OneShot
    from tvmopt.data import default_dataset

    made = OneShot.of(spec, method, sparsity, options)
    model = options.load(spec)
    path = made.write(model, folder)
    whole = dataclasses.replace(options, batch=None, input_shape=None, weights=None)
    return Pruned(spec, str(path), whole, default_dataset(model))
