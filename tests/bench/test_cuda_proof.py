"""`bench.cuda_proof`: what it does with what it is given, what is missing, and what goes wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.s_tir import Schedule

from bench import results
from bench.cuda_proof import __main__ as command
from bench.cuda_proof import check, device, gpu, opencl, prove, table
from bench.cuda_proof.cases import columns, every
from bench.cuda_proof.cases.base import Case
from bench.cuda_proof.cases.elementwise import chain
from bench.cuda_proof.cases.product import products
from tests.cuda.support import needs_nvcc
from tvmopt.errors import TargetError, UsageError
from tvmopt.machine import named_gpu
from tvmopt.machine_gpu import ARCHITECTURES
from tvmopt.registry import rules

needs_pocl = pytest.mark.skipif(opencl.queue() is None, reason="no PoCL or no pyopencl")


def test_names_of_the_command_line_are_those_of_the_code() -> None:
    assert command.STEPS == prove.STEPS
    assert set(command.ARCHITECTURES) == set(ARCHITECTURES)
    assert tuple(every.CASES) == command.RULES == tuple(rule.name for rule in rules("cuda"))


@pytest.mark.parametrize("rule", every.CASES)
def test_a_limit_keeps_shapes_of_networks(rule: str) -> None:
    labels = [case.label for case in every.chosen(rule, 4)]
    everything = [case.label for case in every.chosen(rule, None)]
    assert 3 <= len(labels) <= 4 and labels[0] == everything[0] and set(labels) <= set(everything)


@needs_nvcc
@needs_pocl
def test_cuda_opencl_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "proof.json"
    assert command.main(["--rule", "elementwise", "--limit", "2", "--json", str(file), "--markdown"]) == 0
    printed = capsys.readouterr()
    assert "| rule | compiled, sm_80 | compiled, sm_86 | compiled, sm_89 | compiled, sm_90 |" in printed.out
    environment = results.read(file)["environment"]
    rows = environment["cuda_proof"]
    assert all(row["problem"] is None and row["rule"] == "elementwise" for row in rows)
    compiled = [row for row in rows if row["what"] == "compiled"]
    # Half precision is executed where PoCL has it.
    assert len(compiled) == 2 * len(ARCHITECTURES) and 1 <= len(rows) - len(compiled) <= 2
    assert {row["arch"] for row in compiled} == set(ARCHITECTURES)
    assert all(0 < row["registers"] <= 255 and row["tensor_core"] == 0 < row["instructions"] for row in compiled)
    assert all(row["error"] <= row["allowed"] for row in rows if row["what"] == "executed")
    assert environment["command"] == "python -m bench.cuda_proof --rule elementwise --limit 2 --markdown"
    assert {"nvcc", "pocl"} <= set(environment["versions"])


@needs_nvcc
def test_cuda_tensor_cores_are_counted() -> None:
    rows: list[dict[str, Any]] = []
    prove.prove([products(64, 64, 64, dtype="float16")], ("compile", "execute"), ("sm_90",), rows.append)
    (row,) = rows
    assert row["rule"] == "tensor_core" and row["tensor_core"] > 0 and row["async_copies"] > 0


@pytest.mark.parametrize("dtype, wanted", [("float32", 0), ("float16", 1), ("bfloat16", 1)])
def test_cuda_half_precision_products_are_on_tensor_cores(
    dtype: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code without them is a problem of a product in half precision, and of nothing else."""
    plain = device.MachineCode(32, 0, 0, device.Counter(["FFMA"]))
    monkeypatch.setattr(prove, "assemble", lambda source, arch: plain)
    rows: list[dict[str, Any]] = []
    prove.prove([products(64, 64, 64, dtype=dtype)], ("compile",), ("sm_80",), rows.append)
    assert sum(row["problem"] == "no instruction of the tensor cores" for row in rows) == wanted


def test_cuda_too_much_shared_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launch asks for is compared with the limit of the architecture that it is compiled for."""
    monkeypatch.setattr(check, "_allocated", lambda func, scope: (100 << 10) if scope == "shared.dyn" else 0)
    monkeypatch.setattr(prove, "assemble", lambda source, arch: device.MachineCode(32, 0, 0, device.Counter(["HMMA"])))
    rows: list[dict[str, Any]] = []
    prove.prove([products(64, 64, 64, dtype="float16")], ("compile",), ("sm_80", "sm_86", "sm_89"), rows.append)
    assert {row["arch"] for row in rows if row["problem"]} == {"sm_86", "sm_89"}


@needs_pocl
def test_opencl_a_wrong_result_is_a_problem_and_the_others_go_on() -> None:
    right = chain(64)
    wrong = dataclasses.replace(right, label="wrong", expected=lambda inputs: right.expected(inputs) + 1)
    lost = dataclasses.replace(right, label="lost", expected=lambda inputs: right.expected(inputs) * np.nan)
    rows: list[dict[str, Any]] = []
    prove.prove([wrong, lost, right], ("execute",), (), rows.append)
    assert ["error" in (row["problem"] or "") for row in rows] == [True, True, False]
    assert table.lines(rows)[-1][-1] == "2"


def test_cuda_a_kernel_that_no_rule_takes_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "rules", lambda kind: [])
    rows: list[dict[str, Any]] = []
    prove.prove([chain(64)], ("compile", "execute"), ("sm_80",), rows.append)
    assert [row["problem"] for row in rows] == ["every rule declines"] * 2
    assert {row["rule"] for row in rows} == {"none"}


@pytest.mark.parametrize("step", ["compile", "execute", "gpu"])
def test_cuda_what_is_missing_is_one_line(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "NVCC", None)
    monkeypatch.setattr(opencl, "queue", lambda: None)
    monkeypatch.setattr("tvmopt.runtime.gpu.detect_gpu", lambda: None)
    with pytest.raises(TargetError, match=rf"leave {step} out of --steps") as caught:
        command.main(["--steps", step])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option, value", [("--rule", "gemm"), ("--arch", "sm_70"), ("--steps", "run"), ("--steps", "none")]
)
def test_what_is_unknown_is_named(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{option} {value}: choose from"):
        command.main([option, value])


def test_cuda_ctrl_c_leaves_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(cases: list[Case], steps: Any, archs: Any, done: Any) -> None:
        done({**prove.row("executed", None, cases[0], "opencl"), "error": 1e-7, "allowed": 1e-6})
        raise KeyboardInterrupt

    for name, value in (("prove", interrupted), ("require", lambda steps: None)):
        monkeypatch.setattr(prove, name, value)
    monkeypatch.setattr(command, "_environment", lambda steps, argv: {"command": ""})
    file = tmp_path / "proof.json"
    with pytest.raises(KeyboardInterrupt):
        command.main(["--rule", "pool", "--json", str(file)])
    assert len(json.loads(file.read_text())["environment"]["cuda_proof"]) == 1
    assert "10%" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_guard_zones_of_a_gpu(dtype: str) -> None:
    """As on a GPU, but that the device is this CPU and the kernel is not scheduled."""
    case = products(3, 5, 7, dtype=dtype)
    schedule = Schedule(tvm.IRModule({"main": case.func.with_attr("global_symbol", "main")}))
    made = check.scheduled(case, named_gpu("sm_80"))
    assert made is not None
    made = dataclasses.replace(made, schedule=schedule)
    target = tvm.target.Target("llvm")
    found = check.execute(case, made, lambda schedule, inputs: gpu.run(schedule, inputs, target, "cpu"))
    assert found.error <= found.allowed
    buffer = gpu.Guarded(np.zeros(3, "float32"), "cpu")
    buffer._whole[-1] = 0
    with pytest.raises(AssertionError, match="outside"):
        buffer.read()


A100 = named_gpu("sm_80")


@pytest.mark.parametrize("shared, spilled", [(48 << 10, 0), ((48 << 10) + 1, 0), (0, 33)])
def test_what_may_not_be_in_machine_code(shared: int, spilled: int) -> None:
    code = device.MachineCode(32, spilled, shared, device.Counter(["FFMA"]))
    assert len(check.wrong(code, 0, A100)) == (shared > 48 << 10) + (spilled > 32)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_what_no_launch_gets_of_shared_memory(arch: str) -> None:
    machine = named_gpu(arch)
    code = device.MachineCode(32, 0, 1024, device.Counter(["HMMA"]))
    assert not check.wrong(code, machine.shared_per_block - 1024, machine)
    (said,) = check.wrong(code, machine.shared_per_block - 1023, machine)
    assert arch in said and str(machine.shared_per_block) in said


@pytest.mark.parametrize("names, flushes, right", [
    (["FFMA"], False, True), (["FFMA.FTZ"], False, False), (["FADD.FTZ"], True, False),
    (["FADD.FTZ", "FCHK"], True, True), (["FADD.FTZ", "FFMA.RP"], True, False), (["FADD.FTZ"], False, True),
    (["FMUL.FTZ", "FCHK"], False, False),
])  # fmt: skip
def test_fast_math_is_told_from_exact_division(names: list[str], flushes: bool, right: bool) -> None:
    assert (not check.wrong(device.MachineCode(32, 0, 0, device.Counter(names), flushes), 0, A100)) == right


@needs_nvcc
@pytest.mark.parametrize("add, right", [("add.f32", True), ("add.ftz.f32", False)])
def test_cuda_what_flushes_is_seen(add: str, right: bool) -> None:
    source = (
        'extern "C" __global__ void k(float* x) { float y; '
        f'asm volatile("{add} %0, %1, %2;" : "=f"(y) : "f"(x[0]), "f"(x[1])); x[2] = y; }}'
    )
    code = device.assemble(source, "sm_80")
    assert bool(code.flushing) != right
    assert (not check.wrong(code, 0, A100)) == right


@needs_nvcc
def test_cuda_an_exact_reciprocal_is_no_fast_math() -> None:
    rows: list[dict[str, Any]] = []
    prove.prove([columns.case("gate", 1, 8, 8, 64)], ("compile",), ("sm_80", "sm_90"), rows.append)
    assert [row["problem"] for row in rows] == [None, None]


@pytest.mark.parametrize("ulps, right", [(1.9, True), (2.1, False)])
def test_cuda_half_precision_may_be_rounded_twice(ulps: float, right: bool) -> None:
    """As a product and its epilogue are, whatever the result is handed out in."""
    case = products(16, 16, 16, dtype="float16")
    made: Any = SimpleNamespace(schedule=None)

    def run(_: Any, inputs: list[np.ndarray]) -> np.ndarray:
        wanted = case.expected(inputs)
        return (wanted + ulps * 2.0**-11 * np.abs(wanted).max()).astype("float32")

    found = check.execute(case, made, run)
    assert (found.error <= found.allowed) == right


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Three cases; scheduling the second raises what no assertion does."""
    cases = [columns.case("gate", 1, 8, 8, size) for size in (8, 16, 24)]
    scheduled = check.scheduled

    def fails(case: Case, *rest: Any) -> Any:
        if case is cases[1]:
            raise RuntimeError("CUDALaunch Error: CUDA_ERROR_ILLEGAL_ADDRESS")
        return scheduled(case, *rest)

    monkeypatch.setattr(check, "scheduled", fails)
    return cases


@pytest.mark.parametrize("step", ["compile", "execute", "gpu"])
def test_cuda_one_error_is_one_cases_problem(step: str, failing: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "assemble", lambda *_: device.MachineCode(32, 0, 0, device.Counter(["FFMA"])))
    monkeypatch.setattr(prove, "detect_gpu", lambda: named_gpu("sm_80"))
    monkeypatch.setattr(check, "execute", lambda *_: check.Execution(0.0, 1.0))
    monkeypatch.setattr("tvmopt.runtime.gpu.answers", lambda _: True)
    rows: list[dict[str, Any]] = []
    prove.prove(failing, (step,), ("sm_80",), rows.append)
    problems = {row["shape"]: row["problem"] for row in rows}
    assert [problems[case.label] for case in failing] == [
        None, "RuntimeError: CUDALaunch Error: CUDA_ERROR_ILLEGAL_ADDRESS", None,
    ]  # fmt: skip


def test_cuda_a_spoilt_gpu_ends_the_run_with_what_was_done(
    failing: list[Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prove, "detect_gpu", lambda: named_gpu("sm_80"))
    monkeypatch.setattr(prove, "require", lambda steps: None)
    monkeypatch.setattr(check, "execute", lambda *_: check.Execution(0.0, 1.0))
    monkeypatch.setattr("tvmopt.runtime.gpu.answers", lambda _: False)
    monkeypatch.setattr(every, "chosen", lambda rule, limit: failing)
    monkeypatch.setattr(command, "_environment", lambda steps, argv: {"command": ""})
    file = tmp_path / "proof.json"
    with pytest.raises(TargetError, match=r"answers no more after .*ILLEGAL_ADDRESS"):
        command.main(["--rule", "columns", "--steps", "gpu", "--json", str(file)])
    rows = json.loads(file.read_text())["environment"]["cuda_proof"]
    assert [row["problem"] is None for row in rows] == [True, False]
