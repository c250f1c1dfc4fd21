"""Operations counted, beside what the layers' shapes say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.sizes import flops

ROWS, WIDTH, HEADS, HIDDEN = 10, 64, 4, 128
PROJECTIONS = 2 * ROWS * WIDTH * WIDTH * 4
PRODUCTS = 2 * 2 * HEADS * ROWS * ROWS * WIDTH // HEADS


@pytest.mark.parametrize("training", [False, True])
def test_attention_counts_its_projections_and_products(training: bool) -> None:
    x = torch.randn(1, ROWS, WIDTH)
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).train(training)
    assert flops(attention, (x, x, x)) == PROJECTIONS + PRODUCTS
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True).train(training)
    assert flops(layer, (x,)) == PROJECTIONS + PRODUCTS + 2 * 2 * ROWS * WIDTH * HIDDEN
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_convolution_and_a_module_that_fails() -> None:
    layer = nn.Conv2d(3, 16, 3, stride=2, padding=1)
    assert flops(layer, (torch.randn(2, 3, 9, 9),)) == 2 * 2 * 16 * 5 * 5 * 3 * 9
    assert flops(layer, (torch.randn(2, 4, 9, 9),)) is None
