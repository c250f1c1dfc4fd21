"""Images held back from training: what an epoch, a sparsity or a learning rate is chosen on, never the test set."""

from __future__ import annotations

from tvmopt.data import Dataset
from tvmopt.errors import DataError


def hold_back(dataset: Dataset, count: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(the rest, `count` images drawn by `seed`); `DataError` where nothing would be left of either."""
    import torch

    if not 0 < count < len(dataset):
        raise DataError(f"{count} of the {len(dataset)} images of {dataset.name} cannot be held back")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    rest, held = order[count:].sort().values, order[:count].sort().values

    def part(rows: torch.Tensor) -> Dataset:
        return Dataset(dataset.name, dataset.split, dataset.images[rows], dataset.labels[rows], dataset.classes)

    return part(rest), part(held)
