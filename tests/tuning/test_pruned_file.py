"""A pruned .pt2 as a model: tuned, exported, loaded, beside PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tvmopt
from tests.tuning.conftest import Silent
from tvmopt.compress.one_shot import OneShot
from tvmopt.export import export_model
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import detect
from tvmopt.model import load_model
from tvmopt.options import BuildOptions
from tvmopt.runtime.verify import check
from tvmopt.tune import tune


@pytest.mark.slow
def test_a_pruned_file_is_tuned_and_exported(tmp_path: Path) -> None:
    file = OneShot("digits_cnn", "block-16x1", 0.8).write(load_model("digits_cnn"), tmp_path)
    model, options = load_model(str(file)), BuildOptions(log_dir=tmp_path / "logs")
    ops = [kernel.op for kernel in lower_model(model, detect()).kernels]
    tuned = tune(str(file), trials=4, kernels={ops.index("dense_sparse")}, options=options, report=Silent())
    assert tuned.path.name == model.log_name and tuned.manifest.trials == 4
    artifact = tmp_path / "pruned.so"
    exported = export_model(str(file), artifact, variant="auto", options=options)
    assert exported.verdict is not None and exported.verdict.ok
    # What is zero is not shipped.
    assert exported.size < export_model("digits_cnn", tmp_path / "whole.so", variant="manual", options=options).size
    inputs = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        wanted = model.module(inputs).double()
    assert check(tvmopt.load(artifact)(inputs), wanted, strategy=tuned.manifest.strategies).ok
