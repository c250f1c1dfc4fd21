"""The built-in `digits_cnn`: a small residual CNN for scikit-learn's 8x8 digits, with its weights beside it.

It is small, yet holds one of each thing a lowering has to get right: a stem with one input channel, convolutions
with batch norm and ReLU, a residual addition, a strided 1x1 shortcut, max and average pooling, two dense layers.
`python -m tvmopt.training.train_digits` trains it anew and writes `digits_cnn.pt`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

INPUT_SHAPE = (1, 8, 8)
CLASSES = 10
WEIGHTS = Path(__file__).with_suffix(".pt")


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class DigitsCNN(nn.Module):
    """float32 (N, 1, 8, 8), pixels normalised -> float32 (N, 10) logits. About 47,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(1, 16, 3)
        self.conv1 = _conv_bn(16, 32, 3)
        self.conv2 = _conv_bn(32, 32, 3)
        self.conv3 = _conv_bn(32, 64, 3, stride=2)
        self.shortcut = _conv_bn(32, 64, 1, stride=2)
        self.hidden = nn.Linear(64, 48)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv1(x))
        x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(x + self.conv2(x))
        x = torch.relu(self.conv3(x) + self.shortcut(x))
        x = x.mean((2, 3))
        x = torch.relu(self.hidden(x))
        return self.head(x)


def digits_cnn() -> DigitsCNN:
    """Returns the network with freshly drawn weights (from torch's global generator), in training mode."""
    return DigitsCNN()
