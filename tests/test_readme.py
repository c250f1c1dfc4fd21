"""What the README shows is what works: its commands are parsed, the cheap ones run, its Python runs, its links lead."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command line in a bash block, taken apart at `&&`."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return sorted({part.strip() for line in lines if line.strip() for part in line.split("&&")})


def call(arguments: list[str], cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def as_module(command: str) -> list[str] | None:
    """`python -m MODULE ...` in this environment's Python; None for other commands."""
    words = shlex.split(command)
    if re.fullmatch(r"(\.venv/bin/)?python3?", words[0]) and words[1] == "-m":
        return [sys.executable, *words[1:]]
    return None


def test_blocks_are_valid_bash():
    for block in blocks("bash"):
        assert call(["bash", "-n", "-c", block], ROOT).returncode == 0, block


OURS = [c for c in commands() if (words := as_module(c)) and words[2].partition(".")[0] in ("tvmopt", "bench")]


def test_the_commands_are_there():
    modules = {as_module(command)[2] for command in OURS}
    assert {"bench", "bench.compare", "tvmopt.tune", "tvmopt.replay", "tvmopt.export"} <= modules


@pytest.mark.parametrize("command", OURS)
def test_options_shown_are_options(command):
    # Parsed up to --help, which ends it: an option or a value that is wrong comes before that.
    words = as_module(command)
    done = call([*words, "--help"], ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr
    for option in re.findall(r"(?<=\s)--?[\w-]+", command.partition(words[2])[2]):
        assert option in done.stdout, f"{option} is not an option of {words[2]}"


def test_other_commands_are_known():
    known = r"pip install|python3 -m (venv|pytest)|ruff check|mypy$|pytest$|\.ci/run$"
    for command in set(commands()) - set(OURS):
        assert re.match(known, command.removeprefix(".venv/bin/").replace("python -m", "python3 -m")), command


def test_extras_and_files_named_exist():
    project = (ROOT / "pyproject.toml").read_text()
    for extra in {e for found in re.findall(r"\.\[([\w,]+)\]", TEXT) for e in found.split(",")}:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"tuning_logs/[\w./-]+", TEXT):
        assert (ROOT / path).exists(), path


def test_ci_installs_by_the_readme():
    lines = re.search(r"<!-- ci: install -->(.*?)<!-- ci: end -->", TEXT, re.DOTALL)
    assert lines and len(re.findall(r"^pip install", lines[1], re.MULTILINE)) == 2


def test_python_example_runs(tmp_path):
    (code,) = blocks("python")
    code += "\nassert torch.allclose(fast(x), model(x), atol=1e-4) and torch.allclose(fast(x), y)\n"
    done = call([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.so").is_file()


@pytest.mark.slow
def test_export_runs(tmp_path):
    done = call([sys.executable, "-m", "tvmopt.export", "digits_cnn", "--variant", "manual", "-o", "d.so"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d.so").is_file()
