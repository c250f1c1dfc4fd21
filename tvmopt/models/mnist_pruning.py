"""The two MNIST networks of the published pruning experiments."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)
CLASSES = 10
_UNITS = (784, 1000, 1000, 500, 200, CLASSES)


class PruningCNN(nn.Module):
    """float32 (N, 1, 28, 28) -> float32 (N, 10) logits. 1,199,882 parameters, 4.58 MiB.

    PyTorch's own MNIST example: 3x3 convolutions of 32 and 64 filters, a 2x2 max pool, dense layers of 128 and 10. It
    is trained without a quarter of each convolution's channels at a time ("SpatialDropout", Tompson et al., 2015; the
    example once did so behind the second one): a network that has learned to do without some of its filters loses less
    when they are cut out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.dropout1 = nn.Dropout2d(0.25)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout2 = nn.Dropout2d(0.25)
        self.hidden = nn.Linear(64 * 12 * 12, 128)
        self.dropout3 = nn.Dropout(0.5)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout1(torch.relu(self.conv1(x)))
        x = self.dropout2(nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2))
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.head(self.dropout3(x))


class UnitsMLP(nn.Module):
    """float32 (N, 1, 28, 28) -> float32 (N, 10) logits. Dense layers 784-1000-1000-500-200-10 with ReLU, no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in itertools.pairwise(_UNITS))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in list(self.layers)[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)
