"""A wheel holds everything and adds nothing at top level but `tvmopt`; installed, it works away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {"schedules": "tvmopt.schedules", "bench": "tvmopt.bench"}

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None


def packages_in_the_tree() -> set[str]:
    found = set()
    for top in ("tvmopt", *MAPPED):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            found.add(".".join([MAPPED.get(top, top), *parts[1:]]))
    return found


@pytest.mark.skipif(tomllib is None, reason="reading TOML takes Python 3.11")
def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == packages_in_the_tree() and len(listed) == len(set(listed))
    for path in (ROOT / "tvmopt").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


@pytest.mark.skipif(tomllib is None, reason="reading TOML takes Python 3.11")
def test_one_version():
    import tvmopt

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == tvmopt.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # From a copy: building writes into the tree.
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("tvmopt", "schedules", "bench"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    pytest.importorskip("setuptools")
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.strip().splitlines()[-1]


def test_wheel_holds_everything(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"tvmopt"}
    for top in ("tvmopt", *MAPPED):
        for path in (ROOT / top).rglob("*.py"):
            if path.parent == ROOT / "bench" / "gpu":  # what run.sh benches, a script of the checkout
                continue
            inside = path.relative_to(ROOT).as_posix()
            assert (inside if top == "tvmopt" else f"tvmopt/{inside}") in names
    assert "tvmopt/models/digits_cnn.pt" in names
    assert {f"tvmopt/bench/report/page.{kind}" for kind in ("html", "css", "js")} <= names


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin directory of a fresh environment with the wheel in it, and this environment's other packages."""
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    # What is not found here is looked for there: TVM, torch and the rest are not installed twice.
    (site / "there.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def call(*command, cwd):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)


def test_installed_wheel_is_what_is_imported(installed, tmp_path):
    code = (
        "import json, tvmopt, tvmopt.schedules.cpu, tvmopt.bench.results as r; "
        "print(json.dumps([tvmopt.__file__, tvmopt.schedules.__file__, r.__file__]))"
    )
    done = call(installed / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    home = str(installed.parent)
    assert all(file.startswith(home) and "/site-packages/tvmopt/" in file for file in json.loads(done.stdout))


def test_installed_commands(installed, tmp_path):
    for command in ([installed / "tvmopt"], [installed / "python", "-m", "tvmopt.cli"]):
        assert call(*command, "--version", cwd=tmp_path).stdout.startswith("tvmopt ")
    for name in ("tune", "replay", "export", "bench", "compare", "report"):
        done = call(installed / "tvmopt", name, "--help", cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: tvmopt {name}"), done.stderr
    # No module of the name `bench` or `schedules` came with it.
    for module in ("bench", "schedules"):
        assert call(installed / "python", "-c", f"import {module}", cwd=tmp_path).returncode == 1


@pytest.mark.slow
def test_installed_wheel_exports_and_loads(installed, tmp_path):
    done = call(installed / "tvmopt", "export", "digits_cnn", "--variant", "manual", "-o", "digits.so", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = "import tvmopt, torch; print(tuple(tvmopt.load('digits.so')(torch.zeros(1, 1, 8, 8)).shape))"
    done = call(installed / "python", "-c", code, cwd=tmp_path)
    assert done.stdout == "(1, 10)\n", done.stderr
