"""`bench.kernels --target cuda` where there is no GPU: what it refuses, and what it makes of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import environment, kernels, kernels_gpu, measure, results
from bench.kernel_cases import layer
from tvmopt.errors import TargetError, UsageError
from tvmopt.machine import detect, named_gpu
from tvmopt.model import load_model
from tvmopt.options import BuildOptions

SHAPE = "64x96x80"
KERNEL = ["--target", "cuda", "--op", "gemm", "--shape", SHAPE]


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmopt.machine.detect_gpu", lambda: None)
    with pytest.raises(TargetError, match=r"no CUDA GPU here.*bench\.cuda_proof") as caught:
        kernels.main(KERNEL)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([*KERNEL, "--dtype", "float8"], "--dtype float8: choose from float32, float16, bfloat16"),
        ([*KERNEL, "--tune", "8"], "--tune is for CPUs"),
        ([*KERNEL, "--show", "asm"], "--show asm: a kernel of a GPU has tir, cuda, ptx"),
        ([*KERNEL, "--ladder", "--arch", "sm_90"], "--arch: kernels are timed on the GPU that is here"),
        ([*KERNEL[2:], "--arch", "sm_90"], "--arch: names a GPU"),
        ([*KERNEL, "--sparsity", "0.5", "--dtype", "float16"], "sparse kernels for GPUs compute in float32"),
        ([*KERNEL, "--sparsity", "0.5", "--strategy", "dense=sparse"], "leave --ladder, --tune and --strategy out"),
        ([*KERNEL[2:], "--dtype", "float16"], "on a CPU kernels are timed in float32"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        kernels.main(arguments)


def test_a_kernel_is_a_model_of_the_bench() -> None:
    model = load_model(kernels_gpu.spec("gemm", SHAPE))
    wanted = layer("gemm", SHAPE)
    assert [tuple(x.shape) for x in model.example_inputs] == [tuple(x.shape) for x in wanted.example_inputs]
    assert bool((model.module.weight == wanted.module.weight).all())
    assert kernels_gpu.bytes_of("gemm", SHAPE, "float16") == 2 * (64 * 96 + 96 * 80 + 64 * 80)


@pytest.mark.parametrize("flops, size, bound, least", [(10, 1, "arithmetic", 2.0), (1, 10, "memory", 5.0)])
def test_what_binds(flops: int, size: int, bound: str, least: float) -> None:
    assert kernels_gpu.Roof(5.0, 2.0).bound(flops, size) == (bound, least)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str, dict[str, str], str | None]]]:
    """What was measured: of each layer's contenders the name, dtype, strategies and source; without a GPU, each takes
    half a millisecond, and an `original` does not build."""
    found: list[list[tuple[str, str, dict[str, str], str | None]]] = []

    def measured(models: Any, settings: Any, data: Any, report: Any) -> list[dict[str, Any]]:
        cases = [case for model in models for case in model]
        found.append([(case.contender, case.options.dtype, case.options.strategies, case.spec) for case in cases])
        rows = []
        for case in cases:
            assert case.options.target == "cuda"
            strategy = ",".join(f"{op}={way}" for op, way in case.options.strategies.items())
            row = {"model": "m", "variant": case.contender, "target": "cuda", "dtype": "float32", "batch": 1,
                   "threads": 1, "strategy": strategy or "default", "flops": 10**9,
                   "latency_ms": dict.fromkeys(results.LATENCY, 0.5)}  # fmt: skip
            if case.contender == "original":
                row |= {"latency_ms": None, "error": "it does not build"}
            rows.append({**results.empty_row(), **row})
        return rows

    cpu = detect()
    monkeypatch.setattr(measure, "measure_together", measured)
    monkeypatch.setattr("tvmopt.machine.detect_gpu", lambda: named_gpu("sm_90"))
    monkeypatch.setattr(kernels_gpu, "measured_roof", lambda dtype: kernels_gpu.Roof(1e13, 1e12))
    monkeypatch.setattr(BuildOptions, "machine", lambda options: named_gpu("sm_90"))
    describe = environment.describe
    monkeypatch.setattr(environment, "describe", lambda machine, threads: describe(cpu, threads))
    return found


def test_results_of_both_dtypes(tmp_path: Path, asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "k.json"
    arguments = ["--dtype", "float32,float16", "--variants", "original,manual,torch", "--json", str(file)]
    assert kernels.main([*KERNEL, *arguments]) == 1
    contenders = ["original", "manual", "peer:torch"]
    assert [[one[:2] for one in layer] for layer in asked] == [
        [(name, dtype) for name in contenders] for dtype in ("float32", "float16")
    ]
    rows = results.read(file)["results"]
    assert [row["model"] for row in rows] == [f"gemm:{SHAPE}"] * 6
    assert rows[1]["gflops"] == pytest.approx(2000) and rows[1]["peak_fraction"] == pytest.approx(0.2)
    printed = capsys.readouterr().out
    assert "TF32 off" in printed and f"gemm {SHAPE} original: it does not build" in printed


@pytest.mark.parametrize(
    "op, shape, dense, sparse",
    [
        ("gemm", "256x64x96", {"dense": "packed"}, {"dense": "sparse"}),
        ("conv2d", "2x64x8x8,32,1,2", {"conv2d": "direct"}, {"conv2d": "sparse"}),
    ],
)
def test_cuda_sparse_layers_beside_the_dense_one(
    op: str, shape: str, dense: dict[str, str], sparse: dict[str, str], tmp_path: Path, asked: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "k.json"
    arguments = ["--target", "cuda", "--op", op, "--shape", shape, "--sparsity", "0.5,0.75", "--variants"]
    assert kernels.main([*arguments, "manual,torch", "--json", str(file)]) == 0
    ((*whole, half, quarter),) = asked
    assert [(one[0], one[2]) for one in whole[:2]] == [("manual", dense), ("peer:torch", dense)]
    assert (half[0], half[2]) == (quarter[0], quarter[2]) == ("manual", sparse) and half[3] != quarter[3]
    first, *_, last = results.read(file)["results"]
    assert (first["sparsity"], first["method"], first["flops"]) == (0.0, None, 10**9)
    assert (last["sparsity"], last["method"]) == (0.75, "block-16x1")
    # Of what is kept: sixteen of 64 inputs.
    rows, columns = (256, 96) if op == "gemm" else (2 * 4 * 4, 32)
    assert last["flops"] == 2 * rows * columns * 16
    printed = capsys.readouterr().out
    assert "sparse, 75% of zeros" in printed and "\n75% of zeros: 1 " in printed


def test_cuda_layers_without_a_sparse_kernel(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for shape in ("1x32x8x8,32,3,1,1", "1x32x8x8,32,1,1,0,32"):
        with pytest.raises(UsageError, match="has no sparse kernel on a GPU"):
            kernels.main(["--target", "cuda", "--op", "conv2d", "--shape", shape, "--sparsity", "0.5"])
    assert not asked
    assert kernels.main(["--target", "cuda", "--op", "conv2d", "--shape", shape, "--shape", "1x32x8x8,32,1",
                         "--sparsity", "0.5", "--variants", "manual"]) == 0  # fmt: skip
    assert len(asked) == 1 and f"left out: conv2d {shape} has no sparse kernel" in capsys.readouterr().err
