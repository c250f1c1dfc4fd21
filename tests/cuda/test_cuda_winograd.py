"""Winograd's 3x3 convolution in NHWC, both tile sizes, at boundary shapes."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax
from tvm.s_tir import SBlock
from tvm_ffi import structural_walk
from tvmopt.schedules.cuda import LADDERS

from bench.cuda_proof.cases.base import Arrays, Case
from bench.cuda_proof.cases.winograd import boundary, winograd
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, COMPILED, compiled, executed, needs_nvcc, scheduled
from tvmopt.graph.kernels import Kernel
from tvmopt.graph.pipeline import Lowered, lower_model
from tvmopt.machine import named_gpu
from tvmopt.model import from_module
from tvmopt.registry import Recorder

# The most registers a thread may have where two blocks of 256 are to have an SM's 65536.
REGISTERS = 128
CASES = boundary()


def test_opencl_gives_pytorchs_results() -> None:
    for case in [*random.Random(0).sample(CASES, 6), winograd(1, 3, 16, 32, 4, padding=0)]:
        assert scheduled(case).rule.name == "winograd"
        executed(case)


@pytest.mark.slow
def test_opencl_every_pair_of_boundary_values() -> None:
    for case in CASES:
        executed(case)


@pytest.mark.parametrize("index", range(len(LADDERS["winograd"])), ids=[rung.name for rung in LADDERS["winograd"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(winograd(1, 13, 20, 36, 2), choose=Taken(LADDERS["winograd"], index))


def test_opencl_other_choices() -> None:
    for given in ({"warps_down": 1, "warps_across": 1, "width": 2}, {"rows": 8, "vectors": 2, "depth": 8, "width": 4}):
        for m in (2, 4):
            executed(winograd(1, 13, 20, 36, m), choose=Recorder(given))


class Residual(nn.Module):
    """relu(relu(convolution) + x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.relu(self.conv(x)) + x)


def network(way: str) -> tuple[nn.Module, torch.Tensor, Lowered]:
    """A residual layer as the pipeline lowers it."""
    torch.manual_seed(0)
    module, image = Residual(20).eval(), torch.randn(2, 20, 13, 14)
    lowered = lower_model(from_module(module, (image,)), named_gpu("sm_80"), {"conv2d": way})
    return module, image, lowered


def in_network(way: str) -> Case:
    """Its kernel, with the constants that the network hands it."""
    module, image, lowered = network(way)
    (kernel,) = [kernel for kernel in lowered.kernels if kernel.op == "conv2d_winograd_nhwc"]
    nhwc = image.permute(0, 2, 3, 1).contiguous().numpy()

    def inputs() -> Arrays:
        return [argument.value.numpy() if is_constant(argument) else nhwc for argument in arguments(lowered, kernel)]

    def expected(_: Arrays) -> np.ndarray:
        with torch.no_grad():
            return module.double()(image.double()).permute(0, 2, 3, 1).numpy()

    return Case(f"residual {way}", 180, kernel.func, inputs, expected)


def is_constant(argument: relax.Expr) -> bool:
    return isinstance(argument, tvm.ir.expr.GenericConst)


def arguments(lowered: Lowered, kernel: Kernel) -> list[relax.Expr]:
    """What `main` calls the kernel with."""
    calls = [binding.value for block in lowered.module["main"].body.blocks for binding in block.bindings]
    found = [c for c in calls if isinstance(c, relax.Call) and getattr(c.args[0], "name_hint", "") == kernel.name]
    return list(found[0].args[1].fields)


@pytest.mark.parametrize("way", ["winograd-f2", "winograd-f4"])
def test_opencl_as_a_network_has_it(way: str) -> None:
    """Weights as the pipeline transforms them; bias, activation and residual in the third kernel."""
    case = in_network(way)
    executed(case)
    blocks: list[SBlock] = []
    structural_walk(scheduled(case).schedule.mod["main"].body, (SBlock, blocks.append))
    stored = {buffer.name for block in blocks for buffer in block.alloc_buffers if buffer.scope() == "global"}
    assert stored == {"tile_in", "products"}


def test_cuda_strategy_is_asked_for() -> None:
    assert all(kernel.op != "conv2d_winograd_nhwc" for kernel in network("direct")[2].kernels)
    (way,) = network("winograd")[2].strategies.values()
    assert way in ("winograd-f2", "winograd-f4")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cuda_half_precision_is_the_tensor_cores(dtype: str) -> None:
    module = nn.Conv2d(32, 32, 3, padding=1).eval()
    model = dataclasses.replace(from_module(module, (torch.randn(1, 32, 14, 14),)), dtype=dtype)
    lowered = lower_model(model, named_gpu("sm_80"), {"conv2d": "winograd"})
    assert {kernel.op for kernel in lowered.kernels} >= {"conv2d_implicit_gemm"}
    assert set(lowered.strategies.values()) == {"direct"}


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("m", [2, 4])
def test_cuda_instructions(m: int, arch: str) -> None:
    """A tile stays in registers; the products are product.py's."""
    code = compiled(winograd(1, 56, 64, 64, m), arch)
    assert code.registers <= REGISTERS and code.spilled == 0 and not code.has("LDL") and not code.has("STL")
    assert 0 < code.shared <= 48 << 10
    for instruction in ("LDGSTS.E.BYPASS.128", "LDS.128", "FFMA", "LDG.E.CONSTANT"):
        assert code.has(instruction), instruction
    # Every pixel of a tile is read once: its other uses come from registers.
    assert code.instructions["LDG.E.CONSTANT"] <= 2 * (m + 2) ** 2 + m * m + m


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_boundary_shapes_compile(arch: str) -> None:
    for case in random.Random(0).sample(CASES, 2):
        assert compiled(case, arch).registers <= REGISTERS


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_many_boundary_values_compile(arch: str) -> None:
    for case in random.Random(arch).sample(CASES, min(COMPILED, len(CASES))):
        assert compiled(case, arch).registers <= REGISTERS
