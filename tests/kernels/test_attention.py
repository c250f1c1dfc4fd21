"""Attention as one kernel against PyTorch in float64, its rows and keys round the tile and the register."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kernels.support import avx2, compiled, failures, side_by_side
from tvmopt.machine import Machine, detect

# (leading axes and keys and depth of the scores), width of the values.
SHAPES = [
    ((12, 197, 64), 64), ((1, 2, 17, 5), 5), ((3, 16, 16), 16), ((2, 33, 40), 7), ((1, 1, 1), 1), ((2, 15, 8), 8),
]  # fmt: skip


class SelfAttention(nn.Module):
    """softmax(x x^T) (x + 1), of some columns of the values."""

    def __init__(self, width: int, biased: bool = False) -> None:
        super().__init__()
        self.width = width
        self.biased = biased

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x @ (x * 0.1).transpose(-1, -2)
        if self.biased:
            scores = scores - scores.abs()
        return torch.softmax(scores, -1) @ (x + 1.0)[..., : self.width]


@pytest.mark.parametrize("machine", [detect(), avx2(detect())], ids=lambda machine: machine.isa)
def test_attention(machine: Machine) -> None:
    model = side_by_side([SelfAttention(width) for _, width in SHAPES], [shape for shape, _ in SHAPES])
    built, lowered = compiled(model, machine)
    assert sum(kernel.op == "attention" for kernel in lowered.kernels) == len(SHAPES)
    assert not failures(model, built, SHAPES)


def test_the_module_of_pytorch() -> None:
    """What torch.export makes of a transformer's encoder; an operator between the products keeps them apart."""
    layer = nn.TransformerEncoderLayer(48, 4, 100, batch_first=True, activation="gelu").eval()
    model = side_by_side([layer, SelfAttention(8, biased=True)], [(2, 21, 48), (2, 9, 8)])
    built, lowered = compiled(model)
    kinds = [kernel.op for kernel in lowered.kernels]
    assert kinds.count("attention") == 1
    assert kinds.count("batch_matmul") == 2
    assert not failures(model, built, ["encoder", "biased"])
