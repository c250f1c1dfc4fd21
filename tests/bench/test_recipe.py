"""The recipe as a user runs it, and what it says of times and accuracies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import recipe, results
from bench.recipes import RECIPES, conv_vs_gemm

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.recipe", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_quick_on_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVMOPT_DATA_DIR", raising=False)
    out, logs = tmp_path / "out.json", tmp_path / "logs"
    done = command(
        "conv-vs-gemm", "--quick", "--trials", "3", "--limit", "100", "--json", str(out), "--log-dir", str(logs)
    )
    assert done.returncode == 0, done.stderr
    assert "scikit-learn's digits" in done.stderr
    for text in ("2.406", "2.153", "79.17%", "78.44%", "execution time, ms", "accuracy, top-1"):
        assert text in done.stdout
    last = done.stdout.splitlines()[-1]
    assert "manual faster than original: conv yes" in last
    assert "accuracy equal in all six: yes" in last
    document = results.read(out)
    rows = document["results"]
    assert {(row["variant"], row["strategy"]) for row in rows} == {
        (variant, f"conv2d={way}") for variant in ("original", "manual", "auto") for way in ("direct", "gemm")
    }
    for row in rows:
        assert row["error"] is None
        assert row["accuracy"]["n"] == 100
        # Trained, and the same network in every build.
        assert row["accuracy"]["top1"] == rows[0]["accuracy"]["top1"] > 0.5
        assert row["accuracy"]["agreement"] == 1.0
        assert (row["tuning_s"] is not None) == (row["variant"] == "auto")
    assert document["environment"]["recipe"]["dataset"] == "digits"
    wanted = "python -m bench.recipe conv-vs-gemm --quick --trials 3 --limit 100 --log-dir logs"
    assert document["environment"]["command"] == wanted
    # A log for each method, with records in it.
    assert len(list(logs.glob("*/mnist_cnn*/manifest.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["conv-vs-gem"], 2, "unknown recipe 'conv-vs-gem': did you mean conv-vs-gemm?"),
        (["zzz"], 2, "choose from conv-vs-gemm"),
        ([], 2, "NAME"),
        (["conv-vs-gemm", "--trials", "0"], 2, "0 is not at least 1"),
        (["conv-vs-gemm", "--target", "opencl"], 1, "unknown"),
        (["conv-vs-gemm", "--data-dir", "/no/such/directory"], 1, "mnist: no such directory"),
        (["conv-vs-gemm", "--json", "/dev/null/out.json"], 1, "cannot be written"),
        (["conv-vs-gemm", "--log-dir", "/proc/logs"], 1, "/proc/logs"),
    ],
)
def test_bad_input_is_one_line(
    refused: Callable[..., tuple[int, str]], arguments: list[str], status: int, message: str
) -> None:
    ended, line = refused(recipe.main, *arguments)
    assert ended == status and message in line, line


def test_a_data_directory_without_mnist_is_one_line(tmp_path: Path, refused: Callable[..., tuple[int, str]]) -> None:
    status, line = refused(recipe.main, "conv-vs-gemm", "--data-dir", str(tmp_path))
    assert status == 1 and "MNIST/raw" in line


def test_every_recipe_is_there() -> None:
    import importlib

    for module, _ in RECIPES.values():
        assert callable(importlib.import_module(f"bench.recipes.{module}").run)
    assert all(name in recipe.parser().format_help() for name in RECIPES)


def _row(ms: float, top1: float = 0.9, agreement: float = 1.0) -> dict[str, Any]:
    return {
        "samples_ms": [ms * (1 + 0.001 * (n % 5)) for n in range(30)],
        "rounds": [n // 5 for n in range(30)],
        "latency_ms": {"median": ms},
        "ci95": [ms, ms],
        "unstable": False,
        "error": None,
        "accuracy": {"top1": top1, "top5": 1.0, "agreement": agreement, "n": 1000},
    }


def _rows(**changed: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    times = {"original": 9.0, "manual": 2.0, "auto": 1.0}
    rows = {(variant, method): _row(ms) for variant, ms in times.items() for method in conv_vs_gemm.METHODS}
    rows.update({("auto", method): row for method, row in changed.items()})
    return rows


def test_the_verdict_of_a_run_as_it_should_be() -> None:
    said, equal = conv_vs_gemm.verdict(_rows())
    assert equal
    assert said.count("yes") == 5 and "NO" not in said
    assert "conv yes (4.50x" in said


@pytest.mark.parametrize("row", [_row(1.0, top1=0.899), _row(1.0, agreement=0.999), _row(1.0) | {"accuracy": None}])
def test_another_accuracy_in_one_build_is_told(row: dict[str, Any]) -> None:
    said, equal = conv_vs_gemm.verdict(_rows(GEMM=row))
    assert not equal
    assert said.endswith("accuracy equal in all six: NO")


def test_a_slower_auto_is_told() -> None:
    said, equal = conv_vs_gemm.verdict(_rows(conv=_row(2.2)))
    assert equal
    assert "manual: conv NO (0.91x" in said
    # Half a percent is what two builds of the same code differ by.
    assert "NO" not in conv_vs_gemm.verdict(_rows(conv=_row(2.01)))[0]


def test_a_build_that_failed_is_in_the_tables() -> None:
    rows = _rows(conv=_row(1.0) | {"latency_ms": None, "ci95": None, "accuracy": None, "error": "boom"})
    assert "failed" in conv_vs_gemm.time_table(rows)[-1]
    assert "failed" in conv_vs_gemm.accuracy_table(rows)[-1]
    assert "conv not measured" in conv_vs_gemm.verdict(rows)[0]
