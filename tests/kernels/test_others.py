"""Dense layers, products, pooling, element-wise chains, concatenation and reductions against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kernels.support import compiled, failures, side_by_side


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)  # type: ignore[no-any-return]


def test_dense() -> None:
    """Rows round the register tile, columns round the panel, depths of 1 and primes; the last three in chunks."""
    sizes = [
        (1, 512, 1000),
        (1, 1, 1),
        (2, 17, 16),
        (3, 31, 15),
        (7, 64, 33),
        (29, 100, 32),
        (64, 64, 64),
        (57, 33, 17),
        (197, 96, 48),
        (128, 1024, 32),
        (131, 1024, 33),
        (128, 2500, 32),
    ]
    layers = [nn.Linear(k, n) for _, k, n in sizes] + [nn.Linear(24, 40, bias=False), nn.Linear(16, 16)]
    shapes = [(m, k) for m, k, _ in sizes] + [(2, 13, 24), (3, 16)]
    model = side_by_side(layers, shapes)
    built, lowered = compiled(model)
    assert {kernel.op for kernel in lowered.kernels} <= {"dense", "elementwise"}  # reshapes round the 3-dimensional one
    assert sum(kernel.op == "dense" for kernel in lowered.kernels) == len(layers)
    assert not failures(model, built, shapes)


def test_batched_products() -> None:
    """Attention's products: a computed matrix times another."""
    # Rows and columns: one register and a rest, whole, too few to copy for, and such as no tile divides.
    shapes = [
        (1, 2, 17, 16), (2, 3, 16, 31), (1, 1, 7, 64), (3, 33, 5), (1, 8, 9), (2, 2, 31, 3), (1, 47, 17),
        (7, 1, 197, 1),
    ]  # fmt: skip
    layers = [Apply(lambda x: torch.matmul(x * 0.5, (x + 1.0).transpose(-1, -2))) for _ in shapes]
    model = side_by_side(layers, shapes)
    built, lowered = compiled(model)
    assert sum(kernel.op == "batch_matmul" for kernel in lowered.kernels) == len(shapes)
    assert not failures(model, built, shapes)


def test_batched_products_of_other_widths_with_an_epilogue() -> None:
    """(M, K) times (K, N), and what stands after it: computed where the copied results leave."""

    class Product(nn.Module):
        def __init__(self, columns: int) -> None:
            super().__init__()
            self.columns = columns

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            right = (x + 1.0).transpose(-1, -2)[..., : self.columns]
            return torch.relu(torch.matmul(x * 0.5, right) - 0.25) + x.sum()

    sizes = [(1, 48, 5, 15), (3, 48, 8, 16), (2, 37, 8, 17), (1, 31, 3, 31), (5, 37, 7, 33), (1, 9, 17, 1)]
    shapes = [(batch, rows, depth) for batch, rows, depth, _ in sizes]
    model = side_by_side([Product(columns) for *_, columns in sizes], shapes)
    built, lowered = compiled(model)
    assert sum(kernel.op == "batch_matmul" for kernel in lowered.kernels) == len(shapes)
    assert not failures(model, built, shapes)


def _after_conv(*layers: nn.Module, channels: int = 19) -> nn.Sequential:
    """Behind a convolution, so that the layers see the blocked layout with a filled-up block."""
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *layers)


class Concat(nn.Module):
    """Convolutions of several widths side by side, concatenated."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, c, 1) for c in channels)
        self.last = nn.Conv2d(sum(channels), 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(torch.cat([branch(x) for branch in self.branches], 1)))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Adds its input, scales it by a squeeze-and-excite branch, and leaves the blocked layout in between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.b = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x) * self.scale
        gate = torch.sigmoid(self.b(y.mean((2, 3), keepdim=True)))
        y = torch.relu(y * gate + x)
        n, c, h, w = y.shape
        return self.b(y.reshape(n, h, c, w).transpose(1, 2))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_layers_in_and_out_of_the_blocked_layout() -> None:
    layers: list[nn.Module] = [
        _after_conv(nn.MaxPool2d(3, 2, 1)),
        _after_conv(nn.MaxPool2d(2, 2, ceil_mode=True)),
        _after_conv(nn.AvgPool2d(3, 2, 1)),
        _after_conv(nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        _after_conv(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(19, 7)),
        _after_conv(nn.AdaptiveAvgPool2d(2)),
        _after_conv(nn.ReLU6(), nn.BatchNorm2d(19), nn.Conv2d(19, 19, 3, groups=19)),
        _after_conv(nn.Hardswish(), nn.Conv2d(19, 4, 1)),
        _after_conv(nn.SiLU(), nn.Conv2d(19, 32, 3, stride=2)),
        _after_conv(nn.GELU(), nn.Softmax(1)),
        _after_conv(nn.LeakyReLU(0.1), nn.Flatten(2), nn.LayerNorm(15 * 15)),
        _after_conv(nn.PReLU(), nn.GroupNorm(1, 19)),
        _after_conv(nn.Hardtanh(), nn.Upsample(scale_factor=2)),
        _after_conv(nn.ChannelShuffle(2), nn.Conv2d(20, 20, 3, groups=2), channels=20),
        _after_conv(nn.Softplus(), nn.Conv2d(19, 3, 1)),
        Concat(16, 32, 16),
        Concat(8, 24, 3),
        Concat(1, 17),
        Residual(16),
        Residual(3),
    ]
    shapes = [(2, 16 if i == 18 else 3, 15, 15) for i in range(len(layers))]
    model = side_by_side(layers, shapes, seed=3)
    built, _ = compiled(model)
    assert not failures(model, built, [f"{i} {layer}" for i, layer in enumerate(layers)])


def test_tensors_of_one_number() -> None:
    """Infinities too: a causal mask, a neutral element of the maximum, one too large to be kept as a constant."""

    def causal(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x + torch.full((x.shape[-1], x.shape[-1]), float("-inf")).triu(1), -1)

    layers = [
        Apply(causal),
        Apply(lambda x: torch.maximum(x, torch.full_like(x, float("-inf")))),
        Apply(lambda x: torch.minimum(x, torch.full((300, 300), float("inf")))),
        Apply(lambda x: x * torch.full((3, 1), 2.5)),
    ]
    shapes = [(2, 9, 9), (2, 3), (300, 300), (3, 17)]
    model = side_by_side(layers, shapes)
    built, _ = compiled(model)
    assert not failures(model, built, ["causal", "full_like", "large", "finite"])


def test_shuffled_planes() -> None:
    """Channels of planes in another order: planes below, at and above a register, of prime sizes, few and many."""
    sizes = [(1, 6, 7, 7), (3, 34, 13, 13), (1, 68, 3, 5), (1, 68, 4, 4), (1, 68, 4, 17), (2, 116, 14, 14)]
    sizes.append((1, 20, 1, 97))
    layers = [nn.ChannelShuffle(2) for _ in sizes] + [_after_conv(nn.ChannelShuffle(3), channels=33)]
    shapes = [*sizes, (1, 3, 19, 19)]
    model = side_by_side(layers, shapes)
    built, _ = compiled(model)
    assert not failures(model, built, shapes)
