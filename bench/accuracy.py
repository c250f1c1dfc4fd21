"""How many images are classified rightly, and how often as PyTorch classifies them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def scores(call: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    """The scores (N, classes) of `images` (N, C, H, W), computed `batch` at a time.

    A compiled network takes one batch size only: the last batch is filled up with copies of its last image,
    whose scores are dropped.
    """
    import torch

    parts: list[Tensor] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        missing = batch - len(part)
        if missing:
            part = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])
        # A copy: some contenders reuse the memory of their outputs.
        parts.append(call(part.contiguous())[: batch - missing].float().clone())
    return torch.cat(parts)


def accuracy(scored: Tensor, labels: Tensor, reference: Tensor) -> dict[str, float]:
    """The `accuracy` of a result, shares of 1.

    Args:
        scored: (N, classes), any floating dtype.
        labels: (N,) int64, the right classes.
        reference: (N,) int64, the classes PyTorch chose.
    """
    n = len(labels)
    best = scored.topk(min(5, scored.shape[1]), dim=1).indices
    return {
        "top1": float((best[:, 0] == labels).sum()) / n,
        "top5": float((best == labels[:, None]).any(dim=1).sum()) / n,
        "agreement": float((best[:, 0] == reference).sum()) / n,
        "n": n,
    }
