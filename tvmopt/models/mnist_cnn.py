"""The built-in `mnist_cnn`: the small plain CNN of the conv-vs-gemm experiment, for 28x28 or 8x8 gray digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)
CLASSES = 10


class MnistCNN(nn.Module):
    """float32 (N, 1, H, W) -> float32 (N, 10) logits, for H = W = 28 (MNIST) or 8 (scikit-learn's digits).

    Three 3x3 convolutions with ReLU, a 2x2 max pool after each of the first two, one dense layer. No batch norm: each
    convolution keeps its bias, and nothing but how the convolution is lowered differs between the methods compared.
    """

    def __init__(self, size: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64 * (size // 4) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.conv3(x))
        return self.head(x.flatten(1))


def mnist_cnn(size: int = 28) -> MnistCNN:
    """Returns the network for `size` x `size` images with freshly drawn weights, in training mode."""
    return MnistCNN(size)
