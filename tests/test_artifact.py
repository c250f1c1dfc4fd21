"""Artifacts: what is exported loads elsewhere and computes the same; what cannot run here is refused unexecuted."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

import tvmopt
from tvmopt.errors import ArtifactError, OutputError, UsageError
from tvmopt.runtime import artifact

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()


@pytest.fixture(scope="module")
def exported(net, build, tmp_path_factory):
    return build(net, torch.zeros(1, 1, 6, 6)).export(tmp_path_factory.mktemp("artifact") / "net.so")


def rewrite(path: Path, to: Path, change) -> Path:
    """A copy of the artifact whose description went through `change`, with a checksum that matches."""
    data = path.read_bytes()
    _, length, magic = struct.unpack("<IQ8s", data[-20:])
    library, metadata = data[: -20 - length], json.loads(data[-20 - length : -20])
    change(metadata)
    text = json.dumps(metadata).encode()
    to.write_bytes(library + text + struct.pack("<IQ8s", zlib.crc32(library + text), len(text), magic))
    return to


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip(exported, net):
    loaded = tvmopt.load(exported)
    x = torch.randn(1, 1, 6, 6)
    torch.testing.assert_close(loaded(x), net(x).detach(), rtol=1e-4, atol=1e-5)
    assert loaded.variant == "original" and loaded.compile_s == 0.5
    assert loaded.machine is not None and loaded.machine.cores == loaded.threads
    assert [str(spec) for spec in loaded.inputs] == ["float32 [1, 1, 6, 6]"]
    assert loaded.size_bytes() == exported.stat().st_size


def test_loads_in_another_process(exported):
    code = (
        "import sys, numpy as np, tvmopt\n"
        "m = tvmopt.load(sys.argv[1])\n"
        "y = m(np.ones((1, 1, 6, 6), np.float32))\n"
        "print(type(y).__name__, y.shape)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, exported], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "ndarray (1, 3)\n"
    assert run.stderr == ""


def test_export_says_nothing(build, net, tmp_path, capfd):
    build(net, torch.zeros(1, 1, 6, 6)).export(tmp_path / "net.so")
    assert capfd.readouterr().err == ""


def test_any_name_loads(exported, tmp_path, net):
    copy = shutil.copy(exported, tmp_path / "renamed.bin")
    x = torch.randn(1, 1, 6, 6)
    torch.testing.assert_close(tvmopt.load(copy)(x), net(x).detach(), rtol=1e-4, atol=1e-5)


def test_loaded_exports_again(exported, tmp_path):
    again = tvmopt.load(exported).export(tmp_path / "again.so")
    assert again.read_bytes() == exported.read_bytes()


def test_export_replaces_and_leaves_nothing(build, net, exported, tmp_path):
    path = tmp_path / "net.so"
    path.write_text("old")
    build(net, torch.zeros(1, 1, 6, 6)).export(path)
    assert artifact.read_metadata(path)["format_version"] == 1
    assert os.listdir(tmp_path) == ["net.so"]


def test_size_before_export(build, net):
    compiled = build(net, torch.zeros(1, 1, 6, 6))
    # Code and at least its weights.
    assert compiled.size_bytes() > sum(p.numel() for p in net.parameters()) * 4


def test_metadata(exported):
    metadata = artifact.read_metadata(exported)
    assert {"format_version", "target", "cpu_features", "threads", "signature", "versions", "meta"} <= set(metadata)
    assert metadata["meta"]["model"] == "Sequential" and metadata["meta"]["variant"] == "original"
    host = artifact.host_features()
    assert metadata["cpu_features"] and all(host[name] for name in metadata["cpu_features"])


@pytest.mark.isa("avx512")
def test_features_are_those_of_the_code():
    import tvm

    def needed(cpu):
        return artifact.needed_features(tvm.target.Target({"kind": "llvm", "mcpu": cpu}))

    assert "avx512f" in needed("skylake-avx512") and "avx512f" not in needed("haswell") and "avx2" in needed("haswell")
    assert "pku" not in needed("skylake-avx512")


def test_missing_feature_is_refused_before_loading(exported, tmp_path, monkeypatch):
    other = rewrite(exported, tmp_path / "other.so", lambda m: m["cpu_features"].append("amx-transpose"))
    import tvm

    monkeypatch.setattr(tvm.runtime, "load_module", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(ArtifactError, match=r"needs amx-transpose, which this CPU does not have: export it here") as e:
        tvmopt.load(other)
    one_line(e)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda m: m["platform"].update(architecture="riscv64"),
            "was built for Linux on riscv64, and this is Linux on",
        ),
        (lambda m: m["versions"].update(tvm="0.26.0"), "was built with TVM 0.26.0 and this is"),
        (lambda m: m.update(format_version=99), "has format 99, newer than this tvmopt"),
        (lambda m: m["signature"].pop("outputs"), "cannot be loaded"),
        (lambda m: m.pop("versions"), "cannot be loaded"),
        (lambda m: m.pop("platform"), "cannot be loaded"),
    ],
)
def test_other_descriptions_are_refused(exported, tmp_path, change, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        tvmopt.load(rewrite(exported, tmp_path / "other.so", change))
    one_line(caught)


def test_what_is_no_artifact(exported, tmp_path):
    data = exported.read_bytes()
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    cases = {
        "absent.so": (None, "no such file"),
        "empty.so": (b"", "is not a tvmopt artifact"),
        "text.so": (b"hello" * 100, "is not a tvmopt artifact"),
        "half.so": (data[: len(data) // 2], "is not a tvmopt artifact"),
        "torn.so": (data[:-1], "is not a tvmopt artifact"),
        "library.so": (Path(sys.executable).resolve().read_bytes(), "is not a tvmopt artifact"),
        "damaged.so": (bytes(damaged), "is damaged"),
        "length.so": (data[:-16] + struct.pack("<Q", 1 << 60) + data[-8:], "is not a tvmopt artifact"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=message) as caught:
            tvmopt.load(tmp_path / name)
        one_line(caught)
    with pytest.raises(ArtifactError, match="cannot be read"):
        tvmopt.load(tmp_path)


def test_fewer_threads(exported):
    assert tvmopt.load(exported, threads=1).threads == 1
    with pytest.raises(UsageError, match="this process may use 1 to"):
        tvmopt.load(exported, threads=10_000)


def test_where_it_cannot_be_written(exported, tmp_path):
    loaded = tvmopt.load(exported)
    for path, message in (
        (tmp_path / "model.onnx", "ends in .so"),
        (tmp_path / "absent" / "m.so", "there is no directory"),
        (tmp_path, "ends in .so"),
    ):
        with pytest.raises(OutputError, match=message) as caught:
            loaded.export(path)
        one_line(caught)
    with pytest.raises(OutputError, match="cannot be written"):
        loaded.export("/proc/m.so")


def test_without_a_compiler(build, net, tmp_path, monkeypatch):
    compiled = build(net, torch.zeros(1, 1, 6, 6))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArtifactError, match="install gcc or clang") as caught:
        compiled.export(tmp_path / "m.so")
    one_line(caught)
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(ArtifactError, match="/bin/false cannot link") as caught:
        compiled.export(tmp_path / "m.so")
    one_line(caught)
    assert os.listdir(tmp_path) == []


_HELD = """
import sys, numpy as np, tvm, torch, tvmopt, tvmopt.runtime.artifact
from bench.memory_worker import resident
before = resident()
loaded = tvmopt.load(sys.argv[1])
x = np.ones((1, 2048), "float32")
first = loaded(x)
print(resident() - before, float(abs(loaded(x) - first).max()), float(abs(first).max()))
"""


def test_a_loaded_network_holds_its_weights_once(build_function, tmp_path):
    torch.manual_seed(0)
    build_function(torch.nn.Linear(2048, 4096), torch.ones(1, 2048)).export(tmp_path / "m.so")
    done = subprocess.run(
        [sys.executable, "-c", _HELD, str(tmp_path / "m.so")], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held, off, largest = map(float, done.stdout.split())
    weights = 2048 * 4096 * 4
    # 1.0 for the tensors; 2.0 with the pages they were copied from.
    assert weights < held < 1.4 * weights
    assert off == 0 and largest > 0
