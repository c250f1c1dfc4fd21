"""Block-pruned networks for a GPU: their 1x1 convolutions and dense layers by the block-sparse kernels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tvm import relax

from bench.cuda_proof import opencl
from bench.kernel_sparsity import mask
from tests.cuda.support import ARCHITECTURES, has_pocl
from tvmopt.graph.pipeline import Lowered, lower_model
from tvmopt.machine import named_gpu
from tvmopt.model import Model, from_module
from tvmopt.nvcc import find_nvcc
from tvmopt.options import BuildOptions
from tvmopt.registry import apply_rule, rules
from tvmopt.runtime.verify import check
from tvmopt.variants import build_variant

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc here")

SPARSE = {"conv2d": "sparse", "dense": "sparse"}


class Network(nn.Module):
    """Bottlenecks as residual networks have them, one of them with a stride, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(24, 64, 1), nn.Conv2d(64, 24, 1)
        self.short, self.long = nn.Conv2d(24, 40, 1, 2, bias=False), nn.Conv2d(24, 40, 3, 2, 1)
        self.head = nn.Linear(40, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        y = torch.relu(self.narrow(nn.functional.silu(self.wide(y))) + y)
        y = torch.relu(self.short(y) + self.long(y))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def pruned(seed: int = 0, columns: int = 1, zeros: float = 0.75) -> Model:
    """The network with equally many blocks in every row of blocks, where `seed` says; weights are always the same."""
    torch.manual_seed(0)
    module = Network().eval()
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for layer in (module.wide, module.narrow, module.short, module.long, module.head):
            layer.weight.mul_(torch.from_numpy(mask(layer.weight.shape, zeros, columns, generator)))
    return from_module(module, (torch.randn(2, 3, 13, 11),))


def through_opencl(lowered: Lowered, inputs: tuple[torch.Tensor, ...]) -> np.ndarray:
    """The network's output: `main` step by step, every kernel as its rule schedules it, by PoCL on the CPU."""
    kernels = {kernel.name: kernel for kernel in lowered.kernels}
    values: dict[relax.Var, np.ndarray] = {}
    main = lowered.module["main"]
    values.update({param: x.numpy() for param, x in zip(main.params, inputs, strict=True)})

    def value(expr: relax.Expr) -> Any:
        return values[expr] if isinstance(expr, relax.Var) else expr.value.numpy()

    for block in main.body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Tuple):
                return values[call.fields[0]]
            if call.op.name == "relax.reshape":
                values[binding.var] = value(call.args[0]).reshape([int(size) for size in binding.var.ty.shape])
            else:
                made = apply_rule(kernels[call.args[0].name_hint], named_gpu("sm_80"), rules("cuda"))
                assert made is not None
                values[binding.var] = opencl.run(made.schedule, [value(one) for one in call.args[1].fields])[-1]
    raise AssertionError("main returns no tuple")


def wanted(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.module.double()(*[x.double() for x in model.example_inputs])  # type: ignore[no-any-return]


def test_cuda_a_pruned_network_has_the_sparse_kernels() -> None:
    """Three 1x1 convolutions and the dense layer, epilogues in them; 3x3 convolutions are as they were.

    Element-wise are only the image's turning and a reshape.
    """
    lowered = lower_model(pruned(), named_gpu("sm_90"), SPARSE)
    assert sorted(lowered.strategies.values()) == ["direct", "direct", *["sparse"] * 4]
    ops = Counter(kernel.op for kernel in lowered.kernels)
    assert ops == {"dense_sparse": 4, "conv2d_implicit_gemm": 2, "elementwise": 2, "reduce": 1}
    for kernel in lowered.kernels:
        made = apply_rule(kernel, named_gpu("sm_90"), rules("cuda"))
        assert made is not None and (made.rule.name == "sparse") == (kernel.op == "dense_sparse")


@pytest.mark.parametrize("columns", [1, 4])
def test_opencl_a_pruned_network_gives_pytorchs_results(columns: int) -> None:
    if not has_pocl():
        pytest.skip("no PoCL or no pyopencl")
    model = pruned(columns=columns)
    lowered = lower_model(model, named_gpu("sm_80"), SPARSE)
    assert sum(kernel.op == "dense_sparse" for kernel in lowered.kernels) == 4
    verdict = check(through_opencl(lowered, model.example_inputs), wanted(model), strategy=lowered.strategies)
    assert verdict.ok, verdict.message


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_a_pruned_network_compiles(arch: str) -> None:
    built = build_variant(pruned(), "manual", named_gpu(arch), strategies=SPARSE)
    assert built.code is not None
    sparse = [use for use in built.code.kernels if "sparse" in use.name]
    # Each a launch that turns the left side, and one that multiplies.
    assert len(sparse) == 8 and all(use.spilled == 0 and use.registers <= 128 for use in sparse)


def test_cuda_patterns_share_kernels() -> None:
    """Which blocks are kept is data; how many is the kernel's."""

    def keys(seed: int, zeros: float = 0.75) -> set[str]:
        kernels = lower_model(pruned(seed, zeros=zeros), named_gpu("sm_90"), SPARSE).kernels
        return {kernel.key for kernel in kernels if kernel.op == "dense_sparse"}

    assert keys(0) == keys(1) and not keys(0) & keys(0, 0.5)


def test_cuda_a_lowering_can_be_repeated_from_what_it_says_of_itself() -> None:
    machine = named_gpu("sm_90")
    first = lower_model(pruned(), machine, SPARSE)
    again = lower_model(pruned(), machine, {**first.strategies, "dense": "sparse"})
    assert [kernel.key for kernel in again.kernels] == [kernel.key for kernel in first.kernels]
    kept = [decision for geometry, decision in first.decided.items() if " kept " in geometry]
    assert len(kept) == 4
    for decision in kept:
        assert decision.possible == ("packed" if decision.op == "dense" else "direct", "sparse")


def test_cuda_the_plan_takes_sparse_by_itself_where_products_are_large() -> None:
    layer = nn.Sequential(nn.Conv2d(512, 512, 1), nn.ReLU(), nn.Conv2d(512, 512, 1))
    kept = torch.from_numpy(mask((512, 512, 1, 1), 0.9, 1, np.random.default_rng(0)))
    with torch.no_grad():
        layer[2].weight.mul_(kept)
    model = from_module(layer, torch.randn(16, 512, 28, 28))
    lowered = lower_model(model, named_gpu("sm_90"))
    assert [kernel.op for kernel in lowered.kernels if kernel.flops] == ["conv2d_implicit_gemm", "dense_sparse"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cuda_half_precision_is_dense(dtype: str) -> None:
    lowered = lower_model(dataclasses.replace(pruned(), dtype=dtype), named_gpu("sm_90"), SPARSE)
    assert set(lowered.strategies.values()) == {"direct"}
    assert all(kernel.op != "dense_sparse" for kernel in lowered.kernels)


@pytest.mark.cuda
def test_a_pruned_network_on_the_gpu() -> None:
    model = pruned()
    machine = BuildOptions(target="cuda").machine()
    built = build_variant(model, "manual", machine, strategies=SPARSE)
    found = built(*[x.cuda() for x in model.example_inputs])
    verdict = check(found.cpu(), wanted(model), strategy=built.meta["strategies"])
    assert verdict.ok, verdict.message
