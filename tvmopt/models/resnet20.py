"""The built-in `resnet20`: the residual network for CIFAR-10 of He et al. (2015), section 4.2.

Names and shapes are those of github.com/akamaster/pytorch_resnet_cifar10, whose pretrained ResNet-20 loads by
`--weights resnet20-12fca82f.th`. That network was trained on pixels normalised as ImageNet's are, which is how image
folders are read here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad

INPUT_SHAPE = (3, 32, 32)
CLASSES = 10
_WIDTHS = (16, 32, 64)
_BLOCKS = 3


class _Block(nn.Module):
    """Two 3x3 convolutions and the shortcut: (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.widening = stride, outputs - inputs
        self.projection: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return self.projection(x)
        # Option A of the paper: every second pixel, and channels of zeros on both sides; no parameters.
        if not self.widening:
            return x
        half = self.widening // 2
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.widening - half))


class ResNet20(nn.Module):
    """float32 (N, 3, H, W), normalised -> float32 (N, 10) logits. 269,722 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = self._stage(_WIDTHS[0], _WIDTHS[0], 1)
        self.layer2 = self._stage(_WIDTHS[0], _WIDTHS[1], 2)
        self.layer3 = self._stage(_WIDTHS[1], _WIDTHS[2], 2)
        self.linear = nn.Linear(_WIDTHS[2], CLASSES)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = _Block(inputs, outputs, stride)
        return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(_BLOCKS - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(adaptive_avg_pool2d(x, 1).flatten(1))


def project_shortcuts(network: nn.Module) -> None:
    """Replaces, in place, a `ResNet20`'s shortcuts that pad with zero channels by 1x1 convolutions that do the same.

    Adds 2,560 parameters. Which channel goes where is then in weights that can be cut, and no longer in a number.
    Other networks, and shortcuts that are projections already, stay as they are.
    """
    for block in network.modules():
        if isinstance(block, _Block) and block.widening and block.projection is None:
            inputs, outputs = block.conv1.in_channels, block.conv1.out_channels
            projection = nn.Conv2d(inputs, outputs, 1, stride=block.stride, bias=False)
            with torch.no_grad():
                projection.weight.zero_()
                half = block.widening // 2
                projection.weight[half : half + inputs, :, 0, 0] = torch.eye(inputs)
            block.projection = projection


def resnet20() -> ResNet20:
    """Returns the network with freshly drawn weights, in training mode."""
    return ResNet20()
