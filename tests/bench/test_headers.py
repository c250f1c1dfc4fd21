"""The figures in the schedules' headers are what their result files give, and one that is not is found."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from bench import headers
from tvmopt.options import run

ROOT = Path(__file__).resolve().parent.parent.parent


def run_in(root: Path, *arguments: str) -> int:
    return run(headers.main, ["--root", str(root), *arguments])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """One header and its result file, elsewhere."""
    source = ROOT / "schedules" / "cpu" / "conv2d_direct.py"
    named = re.search(r"^Measured: (\S+)", source.read_text(), re.MULTILINE)
    assert named is not None
    for path in (source, ROOT / named[1]):
        to = tmp_path / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    return tmp_path / "schedules" / "cpu" / "conv2d_direct.py"


def test_the_headers_agree_with_their_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in(ROOT, "--check") == 0, capsys.readouterr().err


def test_every_ladder_of_the_cpu_has_figures() -> None:
    files = {path.stem: path.read_text() for path in (ROOT / "schedules" / "cpu").glob("*.py")}
    having = {name for name, text in files.items() if re.search(r"^LADDER = ", text, re.MULTILINE)}
    assert {"conv2d_direct", "product", "rows"} <= having
    # What sparse kernels gain is the recipe sparse-kernels' to measure: bench.kernels has no ladder of pruned layers.
    sparse = {"sparse_nest", "conv2d_sparse", "conv2d_unstructured", "dense_unstructured", "rows_unstructured"}
    assert {name for name in having if "\nMeasured: " not in files[name]} == sparse


def test_an_altered_figure_is_found_and_mended(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, right = copy.parent.parent.parent, copy.read_text()
    altered = re.sub(r"lanes \d+%", "lanes 99%", right, count=1)
    assert altered != right
    copy.write_text(altered)
    assert run_in(root, "--check") == 1
    said = capsys.readouterr().err
    assert "conv2d_direct.py" in said and "bench.headers" in said and said.count("\n") == 1
    assert copy.read_text() == altered, "--check writes nothing"
    assert run_in(root) == 0
    assert copy.read_text() == right


def test_what_is_no_ladder_is_one_line(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy.parent.parent.parent
    (file,) = root.glob("bench/results/*/ladders/*.json")
    document = json.loads(file.read_text())
    for row in document["results"]:
        row["variant"] = "manual"
    file.write_text(json.dumps(document))
    assert run_in(root) == 1
    assert "is no ladder" in capsys.readouterr().err
    copy.write_text("Measured: \n")
    assert run_in(root) == 1
    assert "names no file" in capsys.readouterr().err
    copy.unlink()
    assert run_in(root) == 1
    assert "has no header" in capsys.readouterr().err
