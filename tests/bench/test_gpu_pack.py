"""What bench/gpu/pack.sh packs is enough beside torch: a Python that has nothing else imports, builds and collects."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import random
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def _pack() -> ModuleType:
    # A script beside pack.sh, in no package.
    spec = importlib.util.spec_from_file_location("pack", ROOT / "bench/gpu/pack.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pack = _pack()


def required(names: list[str]) -> set[str]:
    """The distributions of these names and all that they require here, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        wanted = map(Requirement, importlib.metadata.distribution(name).requires or ())
        waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with Python, torch and the unpacked archive; links stand for the files."""
    packed, torch = (tmp_path_factory.mktemp(name) for name in ("packed", "torch"))
    for inside, file in pack.installed().items():
        (packed / inside).parent.mkdir(parents=True, exist_ok=True)
        (packed / inside).symlink_to(file)
    for name in required(["torch"]):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (torch / top).exists():
                (torch / top).symlink_to(Path(str(distribution.locate_file(top))))
    path = os.pathsep.join(map(str, (packed, torch, ROOT)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def python(unpacked: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S: without this environment's own packages.
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=ROOT, env=unpacked, capture_output=True, text=True, check=False
    )


def test_every_requirement_is_packed_or_torchs() -> None:
    assert required(list(pack.PACKED)) <= {re.sub(r"[-_.]+", "-", n).lower() for n in pack.PACKED} | required(["torch"])


def test_what_is_left_out() -> None:
    left = "tvm/include/a.h", "tvm/3rdparty/cutlass/x", "numpy/ma/tests/a.py", "../bin/f"
    assert not any(map(pack.is_packed, left))
    assert all(map(pack.is_packed, ("tvm/lib/libtvm_compiler.so", "numpy/testing/__init__.py", "tvm_ffi/core.abi3.so")))


@pytest.mark.parametrize("size, count", [(1 << 20, 1), (2000, 2), (700, 4)])
def test_parts_are_one_archive(tmp_path: Path, size: int, count: int) -> None:
    files = {f"a/{number}.py": tmp_path / f"{number}.py" for number in range(3)}
    for number, file in enumerate(files.values()):
        file.write_bytes(random.Random(number).randbytes(700))
    parts = pack.write(tmp_path / "a.tar.xz", files, size)
    assert len(parts) == count and max(part.stat().st_size for part in parts) <= size
    whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(fileobj=whole, mode="r:xz") as tar:
        for inside, file in files.items():
            found = tar.extractfile(inside)
            assert found is not None and found.read() == file.read_bytes()


@pytest.mark.slow
def test_a_network_is_built_from_it(unpacked: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import numpy, psutil, pytest, rich.progress, torch, tornado, tvm, tvmopt\n"
        "from tvmopt.torchvision_compat import torchvision\n"
        "torchvision()\n"
        "made = tvmopt.compile(torch.nn.Linear(16, 16), torch.randn(4, 16), target='cuda', arch='sm_90',\n"
        f"                      variant='manual', log_dir={str(tmp_path)!r})\n"
        f"made.export({str(tmp_path / 'm.so')!r})\n"
        "print(tvm.__file__)\n"
    )
    done = python(unpacked, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(unpacked["PYTHONPATH"].split(os.pathsep)[0]) and (tmp_path / "m.so").is_file()


@pytest.mark.slow
def test_the_gpus_tests_are_collected(unpacked: dict[str, str]) -> None:
    done = python(unpacked, "-m", "pytest", "-q", "-m", "cuda", "--collect-only", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_a_network_on_the_gpu" in done.stdout


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "bench/gpu/pack.sh", tmp_path / "archive.zip"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 2 and ".tar.xz" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
