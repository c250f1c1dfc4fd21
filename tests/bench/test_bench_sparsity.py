"""`python -m bench --sparsity`: a network pruned in one shot, beside itself whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import results
from bench.pruned import networks
from tvmopt.errors import ModelError, UsageError
from tvmopt.options import BuildOptions

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
              nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers), (torch.randn(1, 3, 16, 16),)
"""


@pytest.mark.slow
def test_every_sparsity_has_its_rows(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    file = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", f"{tmp_path / 'net.py'}:make", "--sparsity", "0,0.9", "--method", "block",
         "--variants", "manual", "--peers", "none", "--quick", "--json", str(file)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, pruned = results.read(file)["results"]
    assert whole["model"] == pruned["model"]
    assert (whole["sparsity"], whole["method"]) == (0.0, None)
    assert (pruned["sparsity"], pruned["method"]) == (0.9, "block-16x1")
    assert pruned["nonzero_params"] < 0.2 * whole["nonzero_params"]
    # The first convolution and the last layer, which no block fits, are whole.
    assert pruned["size_compressed_bytes"] < 0.4 * pruned["size_bytes"]
    # A long title is wrapped.
    assert "90% of zeros by block-16x1" in " ".join(done.stdout.split())


def test_what_cannot_be_pruned_is_said(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    spec = f"{tmp_path / 'net.py'}:make"
    with pytest.raises(UsageError, match="unknown pruning method"):
        networks([spec], [0.5], "blocks-of-ice", BuildOptions(), tmp_path)
    (found,) = networks([spec], [0.5], "block", BuildOptions(), tmp_path)
    assert found.is_pruned and found.spec == spec and Path(str(found.source)).is_file()
    with pytest.raises(ModelError, match="exported program"):
        networks([found.source], [0.5], "block", BuildOptions(), tmp_path)
