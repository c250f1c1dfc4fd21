"""What training does to images so that no two epochs see the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# He et al. (2015), section 4.2: CIFAR images padded by 4, a random crop of the old size, and a mirror image by chance.
_PADDING = 4


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by up to four pixels either way over zeros, and mirrors half of them; same shape and dtype."""
    import torch
    from torch.nn.functional import pad

    count, channels, height, width = images.shape
    padded = pad(images, (_PADDING,) * 4)
    down, right = torch.randint(0, 2 * _PADDING + 1, (2, count, 1), generator=generator)
    rows = (down + torch.arange(height)).view(count, 1, height, 1)
    columns = right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns).view(count, 1, 1, width)
    return padded[torch.arange(count).view(count, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]
