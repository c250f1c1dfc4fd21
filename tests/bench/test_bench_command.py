"""The command from end to end, with peers, a tiny model and a data set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import cases, peers, results, table
from tvmopt.options import BuildOptions
from tvmopt.runtime.bandwidth import rounded

ROOT = Path(__file__).resolve().parents[2]
_MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3)
        self.linear = torch.nn.Linear(8 * 36, 10)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).flatten(1))

def make():
    return Net(), (torch.randn(3, 1, 8, 8),)

class Odd(Net):
    calls = 0

    def forward(self, x):
        if x.dtype == torch.float32 and type(self).calls > 4:
            return super().forward(x) * 1.01
        type(self).calls += x.dtype == torch.float32
        return super().forward(x)

def odd():
    return Odd(), (torch.randn(3, 1, 8, 8),)
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(_MODEL)
    return str(path)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_peers_are_measured_verified_and_scored(model: str, tmp_path: Path) -> None:
    here, _ = peers.installed(["torch", "onnxruntime"])
    out = tmp_path / "out.json"
    done = bench(
        f"{model}:make", "--variants", "none", "--peers", ",".join(here), "--quick", "--dataset", "digits",
        "--limit", "50", "--json", str(out), "--threads", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = results.read(out)
    assert [row["variant"] for row in document["results"]] == [f"peer:{name}" for name in here]
    for row in document["results"]:
        assert row["error"] is None
        assert row["batch"] == 3
        assert row["params"] == 8 * 9 + 8 + 8 * 36 * 10 + 10
        assert row["flops"] == 3 * 2 * (8 * 9 * 36 + 8 * 36 * 10)
        assert row["max_abs_err"] < 1e-5
        assert row["accuracy"]["n"] == 50
        assert row["accuracy"]["agreement"] == 1.0
        assert len(row["samples_ms"]) >= 3
        assert row["peak_memory_bytes"] > 1e7
    assert document["environment"]["threads"] == 1
    # As given, but for where the file is on this machine, and where the results went.
    recorded = document["environment"]["command"]
    assert re.match(r"python -m bench \w+\.py:make --variants none", recorded) and "json" not in recorded
    assert "fastest peer" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_profile_has_every_kernel_and_its_roof(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    # Images so large that the kernels are what takes time, and not the launches between them.
    done = bench("--variants", "original,manual", "--peers", "none", "--quick", "--dataset", "none", "--profile",
                 "--input-shape", "1,64,64", "--json", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in json.loads(out.read_text())["results"]:
        lines = row["profile"]
        assert sum("conv2d" in line["op"] or "conv2d" in line["kernel"] for line in lines) >= 5
        assert all(line["seconds"] > 0 and line["roof_s"] > 0 for line in lines)
        bandwidths = dict(row["roof"]["bandwidths"])
        assert list(bandwidths.values()) == sorted(bandwidths.values(), reverse=True)
        for line in lines:
            roof = max(line["flops"] / row["roof"]["gflops"] * 1e-9, line["bytes"] / line["bandwidth"])
            assert line["roof_s"] == pytest.approx(roof), "the roof in the row is the one its kernels were set against"
            # As fast as reading sets of that size; what also writes can be half as fast again, and no faster.
            assert bandwidths[rounded(line["bytes"])] / 3 < line["bandwidth"] < 2 * bandwidths[rounded(line["bytes"])]
        # The least of each: the two are measured seconds apart, and others may use the machine in one of them.
        total = sum(line["best_s"] * line["calls"] for line in lines) * 1e3
        assert 0.3 < total / row["latency_ms"]["min"] < 1.5, row["variant"]
    assert "most is to be won in" in done.stdout
    assert "of the roof" in done.stdout


def test_an_output_that_turns_wrong_is_an_error_and_no_time(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = bench(f"{model}:odd", "--variants", "none", "--peers", "torch", "--quick", "--json", str(out))
    assert done.returncode == 0
    row = json.loads(out.read_text())["results"][0]
    assert "wrong outputs after timing" in row["error"]
    assert row["latency_ms"] is None
    assert row["samples_ms"] == []
    assert "nothing was measured" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--variants", "fast"], 2, "--variants fast: unknown"),
        (["--peers", "tensorrt"], 2, "--peers tensorrt: unknown"),
        (["--variants", "none", "--peers", "none"], 2, "nothing to measure"),
        (["--batch", "0"], 2, "0 is not at least 1"),
        (["--strategy", "conv2d=magic"], 2, "conv2d=direct"),
        (["--threads", "4096"], 2, "this process may use"),
        (["--target", "opencl"], 1, "unknown"),
        (["--target", "{"], 1, "not valid JSON"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], status: int, message: str) -> None:
    done = bench(*arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_model_is_one_line_of_the_worker() -> None:
    done = bench("no_such_model", "--variants", "none", "--peers", "torch", "--quick")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no_such_model" in done.stderr.splitlines()[-1]


def test_help_is_quick_and_its_defaults_are_true() -> None:
    begin = time.perf_counter()
    done = bench("--help")
    took = time.perf_counter() - begin
    assert done.returncode == 0
    # On a loaded machine the start of Python alone may take most of a second.
    assert took < 1.0 or os.getloadavg()[0] > 1.0
    args = command.parser().parse_args([])
    assert args.variants == cases.VARIANTS
    assert args.peers == peers.DEFAULT


def test_a_missing_peer_is_named_and_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "openvino", ("openvino", ("no_such_package",)))
    here, skipped = peers.installed(["torch", "openvino"])
    assert here == ["torch"]
    assert skipped == ['openvino: skipped, no_such_package not installed (pip install "tvmopt[peers]")']


def test_a_case_survives_the_pipe() -> None:
    options = BuildOptions(threads=2, input_shape=(3, 8, 8), strategies={"conv2d": "gemm"}, dump_dir=Path("ir"))
    case = cases.Case("torchvision:resnet18", "peer:torch", options)
    assert cases.Case.from_json(json.loads(json.dumps(case.to_json()))) == case
    assert case.peer == "torch"
    assert cases.Case(None, "auto", options).peer is None


def test_conclusion_compares_with_the_fastest_peer() -> None:
    def row(variant: str, ms: float) -> dict[str, object]:
        samples = [ms] * 12
        return {
            "variant": variant, "model": "m", "cold": False,
            "samples_ms": samples, "rounds": [n // 3 for n in range(12)],
            "latency_ms": {"median": ms}, "accuracy": None, "max_abs_err": 1e-6,
        }  # fmt: skip

    said = table.conclusion([row("original", 9.0), row("auto", 1.0), row("peer:torch", 4.0), row("peer:ort", 2.0)])
    assert "fastest peer ort 2.000 ms" in said
    assert "auto 1.000 ms is 2.00x as fast (95%: 2.00 to 2.00)" in said
