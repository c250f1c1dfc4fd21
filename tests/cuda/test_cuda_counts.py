"""What a run of all checks says of kernels compiled and executed, and nvcc, looked for in one place for everybody."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bench.cuda_proof import device
from tests.cuda.counts import verdict
from tvmopt import nvcc

ROOT = Path(__file__).parents[2]
COMPILED, EXECUTED = (json.dumps({"what": what, "rule": "r", "shape": "s"}) for what in ("compiled", "executed"))


@pytest.mark.parametrize("lines, there, good, said", [
    ([COMPILED, EXECUTED], True, True, "compiled: 1, executed: 1"), ([EXECUTED], True, False, "nothing was compiled"),
    ([EXECUTED], False, True, "NO CUDA KERNEL"), ([COMPILED], True, False, "nothing was executed"),
    ([], False, False, "nothing was executed"),
])  # fmt: skip
def test_cuda_a_run_that_executed_nothing_fails(lines: list[str], there: bool, good: bool, said: str) -> None:
    text, right = verdict(lines, Path("nvcc") if there else None)
    assert right == good and said in text


def toolkit(place: Path) -> Path:
    """An nvcc that can be started, in a toolkit's directory."""
    file = place / "bin" / "nvcc"
    file.parent.mkdir(parents=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_cuda_one_nvcc_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`CUDA_HOME`, `CUDA_PATH`, the path, then the usual places: the newest where none is chosen."""
    assert device.find_nvcc is nvcc.find_nvcc
    packages = tmp_path / "local"
    monkeypatch.setattr(nvcc, "_PACKAGES", packages)
    old, new = toolkit(packages / "cuda-9.2"), toolkit(packages / "cuda-13.0")
    toolkit(packages / "cuda-samples")
    homes = {name: toolkit(tmp_path / name) for name in ("CUDA_HOME", "CUDA_PATH", "path")}
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    for name in ("CUDA_HOME", "CUDA_PATH", "path"):
        assert nvcc.find_nvcc() == homes[name]
        homes[name].unlink()
    assert nvcc.find_nvcc() == new
    (packages / "cuda").symlink_to(packages / "cuda-9.2")
    assert nvcc.find_nvcc() == packages / "cuda/bin/nvcc" and old.is_file()


def test_cuda_the_checks_ask_for_it() -> None:
    text = (ROOT / ".ci/run").read_text()
    assert "python -m tvmopt.nvcc" in text and "python -m tests.cuda.counts" in text
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], env=os.environ, check=False).returncode == 0
