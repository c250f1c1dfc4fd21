"""Concatenation without a copy: where it is, where it cannot be, and that it computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_one_function import faults
from torch import nn

import tvmopt
from tvmopt.graph.network import Network, read_network
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import detect
from tvmopt.model import from_module


class Branches(nn.Module):
    """Convolutions of one input, by channels one behind the other; `after` is done to what comes of it."""

    def __init__(self, channels: Sequence[int], after: Any = None) -> None:
        super().__init__()
        self.ways = nn.ModuleList(nn.Conv2d(16, c, 1 + 2 * (i % 2), padding=i % 2) for i, c in enumerate(channels))
        self.after = after or nn.Conv2d(sum(channels), 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(torch.cat([torch.relu(way(x)) for way in self.ways], 1))


class Dense(nn.Module):
    """Each step sees all before it, as in DenseNet, and the last two are returned side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(16 * (i + 1), 16, 3, padding=1) for i in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        known = [self.steps[0](x)]
        for step in self.steps[1:]:
            known.append(step(torch.cat([x, *known], 1)))
        return torch.cat(known, 1)


class Twice(nn.Module):
    """One value in two places, one of them in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.after, self.beside = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x), self.second(x)
        return self.after(torch.cat([a, b], 1)) + self.beside(torch.cat([b, a], 1)) + self.beside(torch.cat([a, a], 1))


def network(module: nn.Module, batch: int) -> Network:
    model = from_module(module.eval(), torch.randn(batch, 16, 9, 7), name="joined")
    return read_network(lower_model(model, detect()).module)


def copies(found: Network) -> int:
    return sum("concat" in (step.kernel or "") for step in found.steps)


CASES = [
    (Branches([16, 32, 48]), 1, 0), (Branches([16, 32, 48]), 2, 1), (Branches([17, 5]), 1, 1),
    (Branches([16, 16], nn.Sequential(nn.ReLU(), nn.Conv2d(32, 16, 1))), 1, None),
    (Branches([32, 32], nn.Identity()), 1, None),
    (Dense(), 1, None), (Dense(), 3, None), (Twice(), 1, 2),
]  # fmt: skip


@pytest.mark.parametrize("module, batch, left", CASES)
def test_what_stands_side_by_side_is_written_there(module: nn.Module, batch: int, left: int | None) -> None:
    found = network(module, batch)
    assert faults(found) == []
    if left is not None:
        assert copies(found) == left
    inputs = torch.randn(batch, 16, 9, 7)
    compiled = tvmopt.compile(module.eval(), inputs, variant="manual")
    for _ in range(2):
        inputs = torch.randn(batch, 16, 9, 7)
        with torch.no_grad():
            wanted = module.double()(inputs.double())
            module.float()
        torch.testing.assert_close(compiled(inputs).double(), wanted, rtol=0, atol=5e-5 * float(wanted.abs().max()))


def test_a_kernel_that_is_not_run_is_no_kernel() -> None:
    """Neither tuned nor scheduled, nor in a profile."""
    model = from_module(Branches([16, 32]).eval(), torch.randn(1, 16, 9, 7), name="joined")
    assert [kernel.op for kernel in lower_model(model, detect()).kernels if "concat" in kernel.op] == []
