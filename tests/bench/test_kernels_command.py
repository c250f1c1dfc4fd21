"""`python -m bench.kernels`, its ladder, and the measured peak."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
from tvm_ffi import structural_equal

from bench import kernels, ladder, results
from bench.kernel_cases import OPERATORS, layer
from tvmopt.errors import TvmoptError
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import configure_threads, detect
from tvmopt.registry import apply_rule, rules


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.kernels", *arguments], capture_output=True, text=True, timeout=240, check=False
    )


def test_variants_and_torch_are_verified_and_set_beside_the_roof(tmp_path: Path) -> None:
    file = tmp_path / "k.json"
    done = _run(
        "--op", "conv2d", "--shape", "1x17x13x13,33,3,2,1", "--rounds", "5", "--limit", "1", "--json", str(file),
        "--log-dir", str(tmp_path), "--show", "tir",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = results.read(file)
    assert document["environment"]["command"].startswith(
        "python -m bench.kernels --op conv2d --shape 1x17x13x13,33,3,2,1 --rounds 5 --limit 1 --log-dir"
    )
    found = {row["variant"]: row for row in document["results"]}
    assert list(found) == ["original", "manual", "peer:torch"]
    for name, row in found.items():
        # PyTorch's turns take a process change each, and the time limit is a second.
        least = 3 if name == "peer:torch" else 5
        assert len(row["samples_ms"]) == len(row["shares"]) == len(row["quiet"]) >= least
        assert 0 < row["peak_fraction"] < 1
        assert 0 < row["max_abs_err"] < 1e-4
        assert row["gflops"] == pytest.approx(row["flops"] / row["latency_ms"]["median"] * 1e-6)
    assert found["manual"]["latency_ms"]["median"] < found["original"]["latency_ms"]["median"]
    assert "auto: no log under" in done.stdout
    assert "T.vectorized" in done.stdout  # --show tir: the last variant of ours, scheduled


@pytest.mark.slow
def test_every_rung_is_timed(tmp_path: Path) -> None:
    file = tmp_path / "k.json"
    done = _run(
        "--op", "gemm", "--shape", "64x96x80", "--ladder", "--rounds", "3", "--limit", "1", "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    rows = results.read(file)["results"]
    assert [row["variant"] for row in rows] == [
        f"rung:{name}" for name in ("unscheduled", "lanes", "tile", "unroll", "parallel")
    ]
    assert rows[0]["latency_ms"]["median"] > 3 * rows[-1]["latency_ms"]["median"]
    assert rows[1]["choices"]["rows"] == rows[1]["choices"]["vectors"] == 1


@pytest.mark.parametrize(
    ("op", "shape"),
    [("conv2d", "1x17x9x14,33,3,2,1"), ("conv2d", "1x32x14x14,48,1"), ("conv2d", "1x32x14x14,32,3,1,1,32"),
     ("gemm", "13x96x80"), ("batch_matmul", "2x9x31x48"),
     ("batch_matmul", "2x37x31x47")],
)  # fmt: skip
def test_the_ladder_ends_at_manual_and_its_steps_differ(op: str, shape: str) -> None:
    machine = detect()
    kernel = max(lower_model(layer(op, shape), machine).kernels, key=lambda k: k.flops)
    candidates = rules(machine.kind)
    rungs = ladder.ladder_of(kernel, machine, candidates)
    made = [ladder.schedule_rung(kernel, machine, candidates, rungs, i).schedule.mod for i in range(len(rungs))]
    manual = apply_rule(copy.deepcopy(kernel), machine, candidates)
    assert manual is not None
    assert structural_equal(made[-1], manual.schedule.mod)
    assert not structural_equal(made[0], made[-1])
    asked: list[str] = []

    def note(name: str, _: object, default: object) -> object:
        asked.append(name)
        return default

    apply_rule(kernel, machine, candidates, note)
    # A rung that takes back what its rule never asks for would be no step at all.
    frees = {name for rung in rungs for name in rung.frees}
    assert frees - set(asked) <= {"pad"}


def test_bad_input_is_named() -> None:
    for arguments, said in (
        (("--op", "conv2d", "--shape", "64"), "not of the form NxCxHxW"),
        (("--op", "gemm", "--shape", "3x"), "not of the form MxKxN"),
        (("--shape", "1x1x1"), "--shape needs --op"),
        (("--op", "fft"), "choose from conv2d"),
        (("--variants", "fast"), "choose from original"),
        (("--op", "gemm", "--json", "/"), "--json /"),
    ):
        with pytest.raises(TvmoptError, match=said):
            kernels.main(arguments)


@pytest.mark.slow
def test_a_kernel_without_a_ladder_is_one_line(tmp_path: Path) -> None:
    # A rule of the user's own that comes before ours.
    (tmp_path / "mine.py").write_text(
        "from tvmopt.schedules.cpu import rows\nRULES = [('mine', 1, rows.rule)]\n"
    )
    done = _run("--op", "softmax", "--ladder", "--schedules", str(tmp_path))
    assert done.returncode == 2
    assert [line[:18] for line in done.stderr.splitlines()[1:]] == ["tvmopt: --ladder: "], done.stderr


def test_help_names_the_operators_there_are() -> None:
    assert tuple(OPERATORS) == kernels.OPS


def test_the_peak_fits_the_clock() -> None:
    """No CPU has more than two multiply-add units of full width; a loop that was optimised away would show hundreds."""
    machine = detect()
    configure_threads(machine.cores)
    from tvmopt.runtime.peak import Peak

    roof = Peak(machine).roof(20)
    assert 0.5 < roof.clock_ghz < 8
    assert 0.2 < roof.units < 2.3
