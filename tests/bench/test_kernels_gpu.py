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


def test_results_of_both_dtypes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measured(cases: Any, settings: Any, data: Any, report: Any) -> list[dict[str, Any]]:
        asked.append([(case.contender, case.options.dtype, case.options.target) for case in cases])
        times = dict.fromkeys(results.LATENCY, 0.5)
        rows = [
            {**results.empty_row(), "model": "m", "variant": case.contender, "target": "cuda", "dtype": "float32",
             "batch": 1, "threads": 1, "strategy": "default", "flops": 10**9, "latency_ms": times}
            for case in cases
        ]  # fmt: skip
        rows[0] |= {"latency_ms": None, "error": "it does not build"}
        return rows

    cpu = detect()
    monkeypatch.setattr(measure, "measure", measured)
    monkeypatch.setattr(kernels_gpu, "check", lambda args: None)
    monkeypatch.setattr(kernels_gpu, "measured_roof", lambda dtype: kernels_gpu.Roof(1e13, 1e12))
    monkeypatch.setattr(BuildOptions, "machine", lambda options: named_gpu("sm_90"))
    describe = environment.describe
    monkeypatch.setattr(environment, "describe", lambda machine, threads: describe(cpu, threads))
    file = tmp_path / "k.json"
    arguments = ["--dtype", "float32,float16", "--variants", "original,manual,torch", "--json", str(file)]
    assert kernels.main([*KERNEL, *arguments]) == 1
    contenders = ["original", "manual", "peer:torch"]
    assert asked == [[(name, dtype, "cuda") for name in contenders] for dtype in ("float32", "float16")]
    rows = results.read(file)["results"]
    assert [row["model"] for row in rows] == [f"gemm:{SHAPE}"] * 6
    assert rows[1]["gflops"] == pytest.approx(2000) and rows[1]["peak_fraction"] == pytest.approx(0.2)
    printed = capsys.readouterr().out
    assert "TF32 off" in printed and f"gemm {SHAPE} original: it does not build" in printed
