"""`tune --sparsity`: a network is pruned as the bench prunes it, and its log is found and replayed."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from bench.pruned import networks
from tvmopt.compress.one_shot import OneShot
from tvmopt.machine import detect
from tvmopt.model import load_model
from tvmopt.options import BuildOptions
from tvmopt.replay import replay
from tvmopt.runtime.verify import check
from tvmopt.tune import main
from tvmopt.tuning.manifest import read_manifest
from tvmopt.tuning.network import reference
from tvmopt.variants import build_by_options

pytestmark = pytest.mark.slow

NAMED = ["digits_cnn", "--sparsity", "0.8", "--method", "block"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of `tvmopt.tune digits_cnn --sparsity 0.8 --method block`, with a tiny budget; its --log-dir."""
    folder = tmp_path_factory.mktemp("tuning_logs")
    assert main([*NAMED, "--trials", "4", "--log-dir", str(folder)]) == 0
    return folder


def test_the_log_says_what_was_pruned_and_how_its_layers_are_computed(log: Path) -> None:
    (path,) = (log / detect().slug).iterdir()
    assert path.name.startswith("digits_cnn-block-16x1-0.8-")
    manifest = read_manifest(path)
    assert manifest.model["spec"] == "digits_cnn --sparsity 0.8 --method block-16x1"
    assert manifest.model["one_shot"] == OneShot("digits_cnn", "block-16x1", 0.8).to_json()
    assert "dense 1x64x48 kept 13" in manifest.strategies
    assert any(name.startswith("conv2d ") and " kept " in name for name in manifest.strategies)


def test_bench_finds_the_log_as_auto(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", *NAMED, "--variants", "auto", "--peers", "none", "--quick", "--dataset", "none",
         "--log-dir", str(log), "--json", str(file)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["results"]
    assert (row["model"], row["sparsity"], row["method"]) == ("digits_cnn", 0.8, "block-16x1")
    assert row["tuning_s"] > 0
    assert "have no record" not in done.stderr


def test_every_kernel_has_its_record(log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (found,) = networks(["digits_cnn"], [0.8], "block", BuildOptions(), tmp_path)
    options, model = BuildOptions(log_dir=log), load_model(found.source)
    (path,) = (log / detect().slug).iterdir()
    with caplog.at_level(logging.WARNING):
        built = build_by_options(model, "auto", detect(), options)
    assert not caplog.records
    assert set(built.meta["strategies"].items()) <= set(read_manifest(path).strategies.items())
    assert check(built(*model.example_inputs), reference(model), strategy=built.meta["strategies"]).ok


def test_a_log_of_another_sparsity_is_not_its(tmp_path: Path, log: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the warning says what to type, not the file, which is soon gone."""
    (found,) = networks(["digits_cnn"], [0.5], "block", BuildOptions(), tmp_path)
    with caplog.at_level(logging.WARNING):
        build_by_options(load_model(found.source), "auto", detect(), BuildOptions(log_dir=log))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("tune with: python -m tvmopt.tune digits_cnn --sparsity 0.5 --method block-16x1")


def test_the_log_replays_without_the_file(log: Path) -> None:
    (path,) = (log / detect().slug).iterdir()
    replayed = replay(path)
    assert not replayed.misses and replayed.replayed_ms > 0
