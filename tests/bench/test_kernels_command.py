"""`python -m bench.kernels` and the measured peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import results
from tvmopt.machine import configure_threads, detect


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.kernels", *arguments], capture_output=True, text=True, timeout=240, check=False
    )


def test_a_kernel_is_verified_and_set_beside_the_peak(tmp_path: Path) -> None:
    file = tmp_path / "k.json"
    done = _run(
        "--op", "conv2d", "--shape", "1x17x13x13,33,3,2,1", "--rounds", "5", "--limit", "1", "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    document = results.read(file)
    wanted = "python -m bench.kernels --op conv2d --shape 1x17x13x13,33,3,2,1 --rounds 5 --limit 1"
    assert document["environment"]["command"] == wanted
    (result,) = document["results"]
    assert len(result["samples_ms"]) == len(result["shares"]) == len(result["quiet"]) >= 5
    assert 0 < result["peak_fraction"] < 1
    assert result["max_abs_err"] < 1e-4


def test_bad_shapes_are_one_line() -> None:
    for arguments in (("--op", "conv2d", "--shape", "64"), ("--op", "gemm", "--shape", "3x"), ("--shape", "1x1x1")):
        done = _run(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_the_peak_fits_the_clock() -> None:
    """No CPU has more than two multiply-add units of full width; a loop that was optimised away would show hundreds."""
    machine = detect()
    configure_threads(machine.cores)
    from tvmopt.runtime.peak import Peak

    roof = Peak(machine).roof(20)
    assert 0.5 < roof.clock_ghz < 8
    assert 0.2 < roof.units < 2.3
