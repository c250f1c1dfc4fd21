"""`tvmopt.compile` on any module, and `python -m tvmopt.export`: what they do, and one line where they cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tvmopt
from tvmopt import export as export_command
from tvmopt.errors import ModelError, TargetError, TvmoptError, UsageError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))


@pytest.mark.parametrize("variant", ["original", "manual", "auto"])
def test_variants_compute_the_model(net, variant, tmp_path):
    x = torch.randn(1, 3, 8, 8)
    net.eval()
    expected = net(x).detach()
    fast = tvmopt.compile(net, x, variant=variant, log_dir=tmp_path)
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    assert fast.variant == variant and fast.compile_s > 0 and len(fast.plan) > 0
    path = fast.export(tmp_path / "net.so")
    loaded = tvmopt.load(path)
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)
    assert loaded.variant == variant and len(loaded.plan) == len(fast.plan)


def test_the_module_is_left_as_it_was(net):
    net.train()
    net[1].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    tvmopt.compile(net, torch.randn(1, 3, 8, 8), variant="original")
    assert [module.training for module in net.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    net.eval()


def test_threads(net):
    assert tvmopt.compile(net, torch.randn(1, 3, 8, 8), variant="original", threads=1).threads == 1


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"variant": "best"}, UsageError, "unknown variant 'best': choose one of original, manual, auto"),
        ({"target": "vax"}, TargetError, "vax"),
        ({"target": "cuda"}, TargetError, "llvm"),
        ({"threads": 10_000}, UsageError, "may use"),
        ({"strategies": {"conv2d": "magic"}}, UsageError, "conv2d=direct"),
        ({"example_inputs": torch.randn(1, 4, 8, 8)}, ModelError, "does not run on inputs of"),
        ({"example_inputs": ["x"]}, ModelError, "tensors"),
        ({"model": "net"}, TvmoptError, "Module"),
        ({"dtype": "float8"}, ModelError, "float8"),
    ],
)
def test_what_cannot_be_is_one_line(net, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        tvmopt.compile(**{"model": net, "example_inputs": torch.randn(1, 3, 8, 8), "variant": "original", **arguments})
    assert "\n" not in str(caught.value)


def export(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tvmopt.export", *arguments], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_export_command(tmp_path):
    done = export("digits_cnn", "--variant", "original", "--batch", "2", "-o", "d.so", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.startswith("d.so: digits_cnn as original, "), done.stderr
    assert re.search(r"^verified beside PyTorch in fp64: error \d\.\de-0\d of max\|reference\|", done.stderr, re.M)
    assert tvmopt.load(tmp_path / "d.so")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert os.listdir(tmp_path) == ["d.so"]


def test_a_wrong_build_is_not_exported(tmp_path, monkeypatch):
    from tvmopt import variants
    from tvmopt.errors import VerificationError
    from tvmopt.export import export_model

    class Wrong:
        def __init__(self):
            self.meta = {}

        def __call__(self, image):
            return torch.zeros(1, 10)

    monkeypatch.setattr(variants, "build_by_options", lambda *arguments: Wrong())
    with pytest.raises(VerificationError, match=r"digits_cnn as manual is wrong: error 1\.0e\+00"):
        export_model("digits_cnn", tmp_path / "d.so", variant="manual")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        ((), 2, "-o"),
        (("digits_cnn", "-o", "m.onnx"), 1, "ends in .so"),
        (("digits_cnn", "-o", "absent/m.so"), 1, "there is no directory absent"),
        (("digits_cnn", "-o", "/proc/m.so"), 1, "cannot be written"),
        (("digits_cnn", "--variant", "best", "-o", "m.so"), 2, "invalid choice"),
        (("resnet1", "-o", "m.so"), 1, "unknown model"),
        (("digits_cnn", "--target", "cuda", "-o", "m.so"), 1, "use --target llvm"),
        (("absent.pt2", "-o", "m.so"), 1, "absent.pt2"),
    ],
)
def test_export_refuses_in_one_line(tmp_path, monkeypatch, refused, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    ended, line = refused(export_command.main, *arguments)
    assert ended == status and message in line, line
    assert os.listdir(tmp_path) == []
