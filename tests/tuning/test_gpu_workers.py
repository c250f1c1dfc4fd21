"""Tuning on a GPU, without one: faults of candidates, what half precision is held to, what is timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.cuda.support import has_pocl
from tests.tuning.conftest import make_kernel
from tvmopt.errors import VerificationError
from tvmopt.machine import named_gpu
from tvmopt.model import Model, from_module
from tvmopt.runtime import artifact, timer
from tvmopt.runtime.gpu import CompiledForGpu
from tvmopt.tuning import expected, network, rpc_runner, worker
from tvmopt.tuning.contender import Contender
from tvmopt.tuning.network import Turns
from tvmopt.tuning.process import Process, WorkerBroken
from tvmopt.tuning.runner import Runner, compute_dtype


class FaultyRunner(Runner):
    """Candidates go to workers whose GPU is made up."""

    def _start(self, index: int) -> Process:
        return Process("tests.tuning.faulty_worker", {})


def test_cuda_a_fault_costs_its_candidate_and_no_other(machine: Any) -> None:
    import tvm

    kernel, other = make_kernel(), make_kernel(32)
    module = tvm.IRModule({"main": kernel.func})
    with FaultyRunner(machine, workers=1) as runner:
        runner.open(kernel.key, kernel.func, module)
        # The first faults, the second fails and leaves the GPU as it was.
        found = runner.measure([module] * 4)
        assert [one.status for one in found] == ["crash", "crash", "ok", "ok"]
        assert "illegal memory access" in found[0].message and "asks for too much" in found[1].message
        runner.open(other.key, other.func, tvm.IRModule({"main": other.func}))


def test_cuda_a_broken_process_says_why_and_ends() -> None:
    process = Process("tests.tuning.faulty_worker", {})
    with pytest.raises(WorkerBroken, match="illegal memory access"):
        process.ask("measure", "key", 0, 1, limit_s=60.0)
    assert not process.alive


def test_opencl_what_is_right_of_a_large_kernel_is_computed_by_a_thread_for_every_output() -> None:
    if not has_pocl():
        pytest.skip("no PoCL or no pyopencl")
    from tvm import te
    from tvm.s_tir import Schedule

    from bench.cuda_proof import opencl
    from tvmopt.operators.gemm import gemm
    from tvmopt.tuning.log import key_module

    a, b = te.placeholder((37, 41), name="a"), te.placeholder((41, 29), name="b")
    module = key_module(te.create_prim_func([a, b, gemm(a, b)]))
    left, right = (np.random.default_rng(0).standard_normal(shape, "float32") for shape in ((37, 41), (41, 29)))
    found = opencl.run(Schedule(expected.plainly(module)), [left, right])[-1]
    np.testing.assert_allclose(found, left @ right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit, kinds", [(1e9, ["llvm", "cuda"]), (1.0, ["cuda", "cuda"])])
def test_cuda_only_large_kernels_are_referred_to_the_gpu(
    monkeypatch: pytest.MonkeyPatch, limit: float, kinds: list[str]
) -> None:
    """Both ends with arguments where the code runs."""
    import tvm

    compiled: list[str] = []

    def compile_for(target: Any, module: Any) -> Any:
        compiled.append(target.kind.name)
        return {"main": lambda *arguments: arguments[-1].copyfrom(np.ones((64, 64), "float32"))}

    monkeypatch.setattr(expected, "LARGE_FLOPS", limit)
    monkeypatch.setattr(worker, "_compile", compile_for)
    monkeypatch.setattr(worker, "_watch", lambda *_: 1e-3)
    monkeypatch.setattr(worker.Worker, "_device", lambda self, target: tvm.cpu())
    module = tvm.ir.save_json(tvm.IRModule({"main": make_kernel().func.with_attr("global_symbol", "main")}))
    spec = {"target": dict(named_gpu("sm_90").target().export()), "outputs": [2], "dtype": "float32", "strategy": None,
            "seed": 0}  # fmt: skip
    assert worker.Worker().kernel("key", module, module, spec) == 1e-3
    assert compiled == kinds


def product(read: str, written: str) -> Any:
    """A product of `read` matrices, cast to `written`."""
    from tvm import te

    a, b = (te.placeholder((8, 8), read, name) for name in "AB")
    k = te.reduce_axis((0, 8), "k")
    c = te.compute((8, 8), lambda i, j: te.sum(a[i, k].astype("float32") * b[k, j].astype("float32"), axis=k))
    return te.create_prim_func([a, b, te.compute((8, 8), lambda i, j: c[i, j].astype(read).astype(written))])


@pytest.mark.parametrize("read, written, judged", [
    ("float16", "float32", "float16"), ("bfloat16", "float32", "bfloat16"), ("float32", "float16", "float16"),
    ("float32", "float32", "float32"), ("int32", "int32", "float32"),
])  # fmt: skip
def test_a_kernel_is_judged_by_the_narrowest_type(read: str, written: str, judged: str) -> None:
    assert compute_dtype(product(read, written)) == judged


@pytest.fixture
def half() -> Model:
    """A network that computes in half precision and hands out float32."""
    torch.manual_seed(0)
    model = from_module(torch.nn.Linear(16, 8), (torch.randn(2, 16),))
    return dataclasses.replace(model, dtype="float16")


class Answers:
    """In place of a process: what a network of this one gives, off by `error`, and times."""

    def __init__(self, model: Model, error: float) -> None:
        with torch.no_grad():
            self.outputs = [(model.module(*model.example_inputs) * (1 + error)).numpy()]

    def ask(self, method: str, *_: Any, limit_s: float) -> Any:
        measured = {"outputs": self.outputs, "samples": [1.0, 1.0]}
        return {"load": self.outputs, "warm": 1e-3, "network": [measured, measured]}[method]

    def close(self) -> None:
        """Nothing to end."""


def test_cuda_a_half_precision_network_may_hand_out_float32(half: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "Process", lambda *_: Answers(half, 1e-3))
    with Turns({"manual": Path("m.so")}, half, 1, {}):
        pass
    monkeypatch.setattr(network, "Process", lambda *_: Answers(half, 1e-1))
    with pytest.raises(VerificationError, match="2e-02 allowed"):
        Turns({"manual": Path("m.so")}, half, 1, {})
    exact = dataclasses.replace(half, dtype="float32")
    monkeypatch.setattr(network, "Process", lambda *_: Answers(half, 1e-3))
    with pytest.raises(VerificationError, match="5e-05 allowed"):
        Turns({"manual": Path("m.so")}, exact, 1, {})


def test_cuda_so_may_one_on_a_server(half: Model, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(export_library=lambda path: None)
    monkeypatch.setattr(rpc_runner, "build", lambda *_, **__: library)
    monkeypatch.setattr(rpc_runner, "connected", lambda *_: Answers(half, 1e-3))
    module: Any = SimpleNamespace(attrs=None)
    fleet: Any = None
    found = rpc_runner.compare_networks(fleet, machine, module, module, half, {})
    assert found.ratio == 1.0


def test_cuda_a_network_is_timed_on_the_gpu_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []

    class Compiled(CompiledForGpu):
        def __init__(self) -> None:
            """Nothing is built."""

        def __call__(self, *inputs: Any, **named: Any) -> Any:
            called.append(inputs)
            return (inputs[0] + 1,)

    def events(call: Any) -> timer.Stopwatch:
        def watch(calls: int) -> float:
            call()
            return 0.02 * calls

        return watch

    monkeypatch.setattr(artifact, "load", lambda path: Compiled())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(timer, "event_stopwatch", events)
    contender = Contender()
    (output,) = contender.load("m.so", [np.zeros((2, 3), "float32")])
    assert isinstance(output, np.ndarray) and (output == 1).all()
    assert contender.warm() == pytest.approx(0.02)
    assert contender.turn(2) == pytest.approx([0.02, 0.02])
    # What was copied to the GPU once is what every call gets.
    assert len(called) > 3 and all(inputs[0] is called[0][0] for inputs in called)
    assert all(isinstance(inputs[0], torch.Tensor) for inputs in called)
