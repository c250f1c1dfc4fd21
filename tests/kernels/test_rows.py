"""Softmax, layer norm and the elementary functions against PyTorch in float64, on rows round a register's width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.kernels.support import avx2, compiled, failures, reference, side_by_side
from tests.kernels.test_others import Apply
from tvmopt.machine import Machine, detect

LENGTHS = [1, 7, 8, 15, 16, 17, 31, 33, 64, 197]
MACHINES = [detect(), avx2(detect())]


@pytest.mark.parametrize(
    "machine", [MACHINES[0], pytest.param(MACHINES[1], marks=pytest.mark.slow)], ids=lambda machine: machine.isa
)
def test_rows_round_a_register(machine: Machine) -> None:
    shapes = [*[(2, 3, n) for n in LENGTHS], *[(5, n) for n in LENGTHS[1:]], (1, 4, 97, 64), (3, 50, 768)]
    layers: list[nn.Module] = [nn.Softmax(-1) for _ in LENGTHS]
    layers += [nn.LayerNorm(n) for n in LENGTHS[1:]]
    layers += [nn.Softmax(-1), nn.LayerNorm(768, eps=1e-3)]
    model = side_by_side(layers, shapes)
    built, lowered = compiled(model, machine)
    assert {kernel.op for kernel in lowered.kernels} == {"softmax", "layer_norm"}
    assert not failures(model, built, shapes)


def test_rows_of_large_and_of_equal_values() -> None:
    """The peak is taken off before exp, the mean before the squares."""
    layers: list[nn.Module] = [
        nn.Sequential(Apply(lambda x: x * 40.0 - 3000.0), nn.Softmax(-1)),
        nn.Sequential(Apply(lambda x: x * 0.01 + 30.0), nn.LayerNorm(33)),
    ]
    model = side_by_side(layers, [(4, 19), (4, 33)])
    built, _ = compiled(model)
    softmax, norm = built(*model.example_inputs)
    wanted = reference(model, model.example_inputs)
    # x * 40 - 3000 and x * 0.01 + 30 in float32 have a rounding error of their own: 2e-4, and 1e-6 of a spread of 0.01.
    torch.testing.assert_close(softmax.double(), wanted[0], rtol=0, atol=5e-4)
    torch.testing.assert_close(norm.double(), wanted[1], rtol=0, atol=2e-3)


FUNCTIONS = [torch.exp, torch.tanh, torch.erf, torch.sigmoid, nn.functional.silu, nn.functional.gelu,
             lambda x: nn.functional.gelu(x, approximate="tanh")]  # fmt: skip


def test_elementary_functions() -> None:
    """Over the whole range in which they are not constant, and far beyond it where they do not overflow."""
    layers = [Apply(function) for function in FUNCTIONS]
    model = side_by_side(layers, [(1, 4001)] * len(layers))
    built, _ = compiled(model)
    for low, high in ((-1.0, 1.0), (-12.0, 12.0), (-80.0, 80.0), (-1e4, 80.0)):
        inputs = [torch.linspace(low, high, 4001).reshape(1, -1) for _ in layers]
        for got, want in zip(built(*inputs), reference(model, inputs), strict=True):
            error = (got.double() - want).abs().numpy()
            assert np.max(error / np.maximum(np.abs(want.numpy()), 1.0)) < 1e-6
