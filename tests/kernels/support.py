"""Many small layers in one network, so that one export and one build test many kernels, each on its own output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tvmopt.graph.pipeline import Lowered, build, lower_model, with_kernels
from tvmopt.machine import Machine, detect
from tvmopt.model import Model, from_module
from tvmopt.runtime.executable import Compiled
from tvmopt.runtime.signature import Signature
from tvmopt.runtime.verify import check
from tvmopt.variants import schedule_kernels

# How many of a covering array's rows a test takes (None: all). The first rows cover most pairs: each is the one that
# covers the most that are left.
some_or_all = pytest.mark.parametrize("count", [16, pytest.param(None, marks=pytest.mark.slow)], ids=["first", "all"])


class Side(nn.Module):
    """Layers side by side: one input and one output each."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


def side_by_side(layers: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]], seed: int = 0) -> Model:
    """The layers as a model of random inputs of the given shapes, weights drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    module = Side(layers).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return from_module(module, tuple(torch.randn(shape, generator=generator) for shape in shapes), name="side")


def reference(model: Model, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What PyTorch computes in float64."""
    with torch.no_grad():
        outputs = [y.double() for y in model.module.double()(*[x.double() for x in inputs])]
    model.module.float()
    return outputs


def compiled(
    model: Model,
    machine: Machine | None = None,
    strategies: dict[str, str] | None = None,
    variant: str = "manual",
    change: Callable[[Lowered, dict[str, Any]], None] | None = None,
) -> tuple[Compiled, Lowered]:
    """Build `model`; `change` may alter the scheduled functions, by kernel name, before they are built."""
    machine = machine or detect()
    lowered = lower_model(model, machine, strategies, variant=variant)
    functions = schedule_kernels(lowered, variant, machine).functions
    if change is not None:
        change(lowered, functions)
    executable = build(with_kernels(lowered.module, functions), machine)
    meta = {"model": model.name, "variant": variant, "machine": machine, "threads": machine.cores}
    return Compiled(executable, Signature.from_exported(lowered.program), meta), lowered


def failures(
    model: Model, built: Compiled, labels: Sequence[Any], strategies: dict[str, str] | None = None
) -> list[str]:
    """The layers whose output is not PyTorch's within the tolerance table, with what is wrong."""
    wanted = reference(model, model.example_inputs)
    found = []
    for got, want, label in zip(built(*model.example_inputs), wanted, labels, strict=True):
        verdict = check([got], [want], "float32", strategies or {})
        if not verdict.ok:
            found.append(f"{label}: {verdict.message}")
    return found


def avx2(machine: Machine) -> Machine:
    """The same machine as seen with AVX2 only: 8 lanes, 16 registers."""
    return replace(machine, isa="avx2", lanes=8, registers=16)
