"""What was tuned for one number of threads, or one batch, is not silently used for another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tvmopt.machine import available_cores, detect
from tvmopt.model import from_module
from tvmopt.plan import KernelPlan, Plan
from tvmopt.tuning.log import Log
from tvmopt.tuning.manifest import new_manifest
from tvmopt.variants import build_variant, log_path_of, lower_model

several = pytest.mark.skipif(available_cores() < 2, reason="this process may use one CPU only")


def _model(batch: int = 1) -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.ReLU())
    return from_module(layers, (torch.randn(batch, 32),), name="m")


def _tuned(log_dir: Path, model: Any, threads: int) -> Path:
    """A log of `model` for `threads` threads whose plan has every kernel."""
    machine = detect(threads)
    path = log_path_of(model, machine, log_dir, {})
    Log.start(path)
    plan = Plan(tuple(KernelPlan(k.name, k.key, "manual") for k in lower_model(model, machine, {}).kernels))
    new_manifest(model, machine, {}, "template", 0).with_plan(plan).write(path)
    return path


@several
def test_a_log_of_two_threads_is_not_taken_for_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = _model()
    of_two = _tuned(tmp_path, model, 2)
    build_variant(model, "auto", detect(2), log_dir=tmp_path)
    assert not caplog.records
    compiled = build_variant(model, "auto", detect(1), log_dir=tmp_path)
    assert compiled.meta["threads"] == 1
    assert "have no record" in caplog.text and "-t1" in caplog.text
    # Put there by hand it is used, and said.
    caplog.clear()
    of_one = log_path_of(model, detect(1), tmp_path, {})
    assert of_one.parent.name == detect(1).slug != of_two.parent.name
    shutil.copytree(of_two, of_one)
    build_variant(model, "auto", detect(1), log_dir=tmp_path)
    assert "was tuned on another machine: cores: 2 in the log, 1 here" in caplog.text


def test_a_log_of_one_image_is_not_taken_for_eight(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine = detect(1)
    _tuned(tmp_path, _model(1), 1)
    build_variant(_model(1), "auto", machine, log_dir=tmp_path)
    assert not caplog.records
    build_variant(_model(8), "auto", machine, log_dir=tmp_path)
    assert "have no record" in caplog.text
    assert log_path_of(_model(8), machine, tmp_path, {}).name.endswith("-b8")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [8, 32])
def test_bench_takes_batch_and_threads(batch: int, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--batch", str(batch), "--threads", "1", "--variants", "manual", "--peers",
         "torch", "--quick", "--json", str(file), "--log-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["results"]
    assert [(row["batch"], row["threads"], row["error"]) for row in rows] == [(batch, 1, None)] * 2
    assert rows[0]["max_abs_err"] < 1e-3


@pytest.mark.slow
def test_tune_takes_batch_and_threads(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tvmopt.tune", "--batch", "8", "--threads", "1", "--trials", "4", "--kernels", "0",
         "--search", "template", "--log-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (manifest,) = tmp_path.glob("*/*/manifest.json")
    assert manifest.parent.name == "digits_cnn-b8" and manifest.parent.parent.name == detect(1).slug
    assert json.loads(manifest.read_text())["machine"]["cores"] == 1
