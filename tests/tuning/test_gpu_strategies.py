"""Measuring on a GPU, without one, by which strategy a layer is fastest: what is timed, how, what comes of it."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.kernel_sparsity import mask
from tvmopt.graph.pipeline import Lowered, lower_model
from tvmopt.machine import named_gpu
from tvmopt.model import Model, from_module
from tvmopt.operators.sparse import without_kept
from tvmopt.options import BuildOptions
from tvmopt.registry import Rule, apply_rule, rules
from tvmopt.tuning import strategies, strategy_worker, worker
from tvmopt.tuning.strategy_worker import StrategyWorker

H100 = named_gpu("sm_90")
CONV = "1x16x12x12 16 3x3 stride 1x1 pad 1,1,1,1"
DENSE = "1x64x32 kept 6"


@functools.cache
def network(zeros: float = 0.9, dtype: str = "float32") -> Model:
    """3x3 convolutions, a 1x1 one and dense layers; of those two sorts' blocks the share `zeros` is zero."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    ]  # fmt: skip
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for layer in (layers[4], layers[7]):
            weight: Any = layer.weight
            weight.mul_(torch.from_numpy(mask(weight.shape, zeros, 1, generator)))
    return dataclasses.replace(from_module(nn.Sequential(*layers), torch.randn(1, 3, 12, 12)), dtype=dtype)


_lowered: dict[Any, Lowered] = {}


def lowered(model: Model, _machine: Any, chosen: Any, **_: Any) -> Lowered:
    """`lower_model` for an H100, which takes a second, once for the same."""
    key = (id(model), *sorted(chosen.items()))
    if key not in _lowered:
        _lowered[key] = lower_model(model, H100, chosen)
    return _lowered[key]


@pytest.fixture(autouse=True)
def lowered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "lower_model", lowered)


def planned(monkeypatch: pytest.MonkeyPatch, seconds: Any, model: Model | None = None) -> dict[str, str]:
    """The strategies that come of `seconds`, a function of a candidate's name."""
    monkeypatch.setattr(strategies, "_time", lambda contenders, *_: {c.name: seconds(c.name) for c in contenders})
    return strategies.measure_strategies(model or network(), H100, rules("cuda"), {}, lambda _: None)


def test_cuda_every_way_of_every_layer_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []
    found = planned(monkeypatch, lambda name: timed.append(name) or 1.0)
    pointwise = next(name for name in found if "16x12x12 64 1x1" in name).removeprefix("conv2d ")
    assert sorted(timed) == sorted([
        *(f"{CONV} by {way}" for way in ("direct", "winograd-f2", "winograd-f4")),
        f"{without_kept(pointwise)} by direct", f"{pointwise} by sparse",
        "1x64x32 by packed", f"{DENSE} by sparse",
    ])  # fmt: skip


@pytest.mark.parametrize("fast", ["direct", "winograd-f2", "winograd-f4"])
def test_cuda_the_fastest_wins(monkeypatch: pytest.MonkeyPatch, fast: str) -> None:
    found = planned(monkeypatch, lambda name: 1.0 if name.endswith(fast) else 2.0)
    assert found[f"conv2d {CONV}"] == fast
    ops = [kernel.op for kernel in lowered(network(), H100, found).kernels]
    assert ops.count("conv2d_winograd_nhwc") == (fast != "direct")


@pytest.mark.parametrize("slow, fast", [("sparse", "packed"), ("packed", "sparse")])
def test_cuda_a_dense_layer_takes_what_was_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, slow: str, fast: str
) -> None:
    found = planned(monkeypatch, lambda name: 2.0 if name.endswith(slow) else 1.0)
    assert found[f"dense {DENSE}"] == fast
    again = lowered(network(), H100, found)
    assert again.strategies == {name: way for name, way in found.items() if " " in name}
    assert any(kernel.geometry == DENSE for kernel in again.kernels) == (fast == "sparse")


def test_cuda_half_precision_has_one_way_and_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(name: str) -> float:
        raise AssertionError(name)

    assert planned(monkeypatch, seconds, network(dtype="float16")) == {}


def test_cuda_a_layer_is_told_by_its_sizes_however_it_is_computed() -> None:
    found = {
        way: [kernel.geometry for kernel in lowered(network(), H100, {"conv2d": way, "dense": way}).kernels
              if kernel.geometry is not None]
        for way in ("direct", "winograd", "sparse")
    }  # fmt: skip
    assert len(found["direct"]) == 5 and found["winograd"] == found["direct"]
    assert DENSE in found["sparse"] and list(map(without_kept, found["sparse"])) == found["direct"]


def test_cuda_weights_are_streamed_that_do_not_stay_in_l2() -> None:
    assert strategies.streamed_bytes(H100.l2 // 2, H100) == 0
    assert strategies.streamed_bytes(H100.l2, H100) == 3 * H100.l2


class Asked:
    """In place of the process: what it is asked, the kernels it was given all taking 1 s."""

    alive = True

    def __init__(self, *_: object) -> None:
        self.added: dict[str, str] = {}

    def ask(self, method: str, *arguments: Any, limit_s: float) -> Any:
        if method == "add":
            self.added[arguments[0]] = arguments[1]
            return None
        return dict.fromkeys(self.added, 1.0)

    def close(self) -> None:
        """Nothing to end."""


def test_cuda_a_kernel_that_no_rule_takes_is_timed_by_the_default_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    monkeypatch.setattr(strategies, "Process", lambda *_: asked)
    none: list[Rule] = []
    strategies.measure_strategies(network(), H100, none, {}, lambda _: None)
    assert len(asked.added) == 7 and all("blockIdx.x" in module for module in asked.added.values())


class Gpu:
    """A device that notes its waits among the calls of kernels."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.faulty = False

    def sync(self) -> None:
        if self.faulty:
            raise RuntimeError("CUDA: an illegal memory access was encountered")
        self.log.append("wait")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU made up: kernels are only noted, with where their arguments lie."""
    import tvm

    device = Gpu()

    def compiled(target: Any, module: Any) -> Any:
        assert target.kind.name == "cuda" and "main" in [var.name_hint for var in module.get_global_vars()]
        return SimpleNamespace(jit=lambda: {"main": call})

    def call(*arguments: Any) -> None:
        assert all(where is device for _, where in arguments)
        device.log.append("call")

    monkeypatch.setattr(worker, "compile_kernel", compiled)
    monkeypatch.setattr(tvm, "cuda", lambda index: device)
    monkeypatch.setattr(tvm.runtime, "tensor", lambda array, where: (array, where))
    return device


def added(constants: tuple[int, ...] = (), streamed: int = 0) -> StrategyWorker:
    """A worker that was given the 3x3 convolution of 16 channels."""
    import tvm

    (kernel,) = [k for k in lowered(network(), H100, {"conv2d": "direct"}).kernels if k.geometry == CONV]
    scheduled = apply_rule(kernel, H100, rules("cuda"))
    assert scheduled is not None
    made = StrategyWorker()
    target = dict(H100.target().export())
    made.add("one", tvm.ir.save_json(scheduled.schedule.mod), target, constants, streamed)
    return made


def test_cuda_arguments_lie_on_the_gpu_and_a_turn_ends_when_it_has_done_all(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_worker, "TURN_S", 0.003)
    made = added()
    assert gpu.log == ["call", "wait"] and made.is_sound()
    gpu.log.clear()
    assert made.time(1)["one"] > 0
    assert gpu.log == ["wait", "call", "call", "call", "wait"]


def test_cuda_only_weights_have_copies(gpu: Gpu) -> None:
    weights = 9 * 16 * 16 * 4
    rotated = added((1,), 5 * weights)._kernels["one"][1]
    assert len(rotated) == 5 and len({id(arguments[1]) for arguments in rotated}) == 5
    assert len({id(arguments[0]) for arguments in rotated}) == 1


def test_cuda_a_fault_is_its_kernels_and_ends_the_worker(gpu: Gpu) -> None:
    made = added()
    gpu.faulty = True
    with pytest.raises(RuntimeError, match="illegal memory access"):
        made.time(1)
    assert not made.is_sound()


class Measured(Exception):
    """That strategies would be measured now."""


def test_cuda_tune_measures_strategies(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from tests.tuning.conftest import Silent
    from tvmopt.tune import tune

    def measure(model: Any, machine: Any, *_: Any) -> None:
        raise Measured(machine.arch)

    here = dataclasses.replace(H100, assumed=())
    monkeypatch.setattr(BuildOptions, "machine", lambda self: here)
    monkeypatch.setattr(strategies, "measure_strategies", measure)
    with pytest.raises(Measured, match="sm_90"):
        tune(network(), options=BuildOptions(target="cuda", log_dir=tmp_path), report=Silent())
