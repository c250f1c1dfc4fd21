"""`bench.kernels --target cuda --show` and `--ladder` where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvmopt.schedules.cuda import LADDERS

from bench import kernels, kernels_gpu_ladder, results
from bench.cuda_proof import gpu, opencl
from bench.cuda_proof.cases.every import CASES, chosen
from bench.ladder import Taken
from tests.cuda.support import compiled, has_pocl, needs_nvcc
from tvmopt.errors import TargetError
from tvmopt.machine import named_gpu

# A depth of no equal parts: by tiles.
GEMM = ["--target", "cuda", "--op", "gemm", "--shape", "130x67x80"]
A100 = named_gpu("sm_80")
PRODUCT = [rung.name for rung in LADDERS["product"]]


@pytest.mark.parametrize("form, sign", [("tir", "T.prim_func"), ("cuda", "__global__")])
def test_cuda_every_rung_is_shown_without_a_gpu(form: str, sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main([*GEMM, "--arch", "sm_86", "--ladder", "--show", form]) == 0
    printed = capsys.readouterr().out
    headers = [line for line in printed.splitlines() if line.startswith("--- ")]
    assert [line.split(", ")[2].split(":")[0] for line in headers] == PRODUCT
    assert printed.count(sign) >= len(PRODUCT)


def test_cuda_the_schedule_by_hand_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dtype", "float16", "--arch", "sm_80", "--show", "cuda"]
    assert kernels.main([*GEMM, *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.count("--- ") == 1 and "tensor_core, manual" in printed and "mma.sync" in printed


@needs_nvcc
def test_cuda_ptx_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main([*GEMM, "--arch", "sm_90", "--show", "ptx"]) == 0
    assert ".target sm_90" in capsys.readouterr().out


def test_no_gpu_to_time_or_show_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmopt.machine.detect_gpu", lambda cores=1: None)
    for arguments in (["--ladder"], ["--show", "tir"]):
        with pytest.raises(TargetError) as caught:
            kernels.main([*GEMM, *arguments])
        assert "\n" not in str(caught.value)


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, times: list[float]) -> None:
    """A GPU whose kernels run through PoCL, and take the seconds of `times`, one after the other."""
    monkeypatch.setattr("tvmopt.machine.detect_gpu", lambda cores=1: A100)
    monkeypatch.setattr("tvmopt.options._has_gpu", lambda: True)
    monkeypatch.setattr(gpu, "run", lambda schedule, inputs, target: opencl.run(schedule, inputs)[-1])
    monkeypatch.setattr(kernels_gpu_ladder, "seconds_of", lambda schedule, inputs, machine, turns: [times.pop(0)])


def test_opencl_a_ladder_is_climbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every rung computes what TVM's default does; times are made up."""
    if not has_pocl():
        pytest.skip("no PoCL or no pyopencl")
    on_the_cpu(monkeypatch, [1.0 / (1 << n) for n in range(len(PRODUCT))])
    file = tmp_path / "ladder.json"
    assert kernels.main([*GEMM, "--ladder", "--json", str(file)]) == 0
    rows = results.read(file)["environment"]["cuda_ladder"]
    assert [row["rung"] for row in rows] == PRODUCT and all(row["problem"] is None for row in rows)
    assert capsys.readouterr().out.count("  2.00x  ") == len(PRODUCT) - 1


def test_opencl_a_wrong_rung_is_said_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not has_pocl():
        pytest.skip("no PoCL or no pyopencl")
    on_the_cpu(monkeypatch, [])
    answers: list[Any] = []

    def run(schedule: Any, inputs: list[np.ndarray], target: Any) -> np.ndarray:
        answers.append(opencl.run(schedule, inputs)[-1])
        return answers[-1] if len(answers) == 1 else answers[-1] * np.nan

    monkeypatch.setattr(gpu, "run", run)
    assert kernels.main([*GEMM, "--ladder"]) == 1
    assert "error nan" in capsys.readouterr().out


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("rule", CASES)
def test_cuda_every_rung_compiles(rule: str) -> None:
    case = chosen(rule, 1)[0]
    for index in range(len(LADDERS[rule])):
        compiled(case, "sm_90", Taken(LADDERS[rule], index))
