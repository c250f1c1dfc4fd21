"""`python -m bench.kernels --sparsity`: pruning of single layers, its rows, and what is said of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import kernels, results, sparsity_table
from bench.kernel_sparsity import mask
from bench.recipes import sparse_kernels
from bench.results import empty_row
from tvmopt.errors import TvmoptError


@pytest.mark.parametrize("columns", [1, 4])
def test_blocks_are_whole_and_equally_many_in_every_row(columns: int) -> None:
    kept = mask((40, 24, 3, 3), 0.8, columns, np.random.default_rng(0))
    assert kept.shape == (40, 24, 3, 3)
    rows = [kept[:16], kept[16:32], kept[32:]]
    for row in rows:
        assert (row == row[:1]).all()
        groups = row[0].reshape(24 // columns, columns, 9)
        assert (groups == groups[:, :1]).all()
        assert groups[:, 0].sum() == round(0.2 * 24 * 9 / columns)
    assert not np.array_equal(rows[0], rows[1])
    with pytest.raises(TvmoptError, match="3 input channels"):
        mask((16, 3, 1, 1), 0.5, 4, np.random.default_rng(0))


@pytest.mark.slow
def test_dense_strategies_and_sparse_kernels_share_a_run(tmp_path: Path) -> None:
    file = tmp_path / "k.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.kernels", "--op", "conv2d", "--shape", "1x32x14x14,48,3,1,1", "--sparsity",
         "0.5,0.9", "--variants", "manual", "--rounds", "5", "--limit", "1", "--json", str(file)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {(row["strategy"], row["sparsity"]): row for row in results.read(file)["results"]}
    assert {strategy for strategy, _ in rows} >= {"conv2d=direct", "conv2d=gemm", "conv2d=sparse"}
    dense, sparse = rows["conv2d=direct", 0.0], rows["conv2d=sparse", 0.9]
    assert sparse["method"] == "block-16x1" and dense["method"] is None
    # Not with the border: of 3 rows of the window at 14 rows of the image, 2 are outside, and so of columns.
    assert sparse["flops"] == pytest.approx(0.1 * (40 / 42) ** 2 * dense["flops"], rel=0.02)
    assert sparse["latency_ms"]["median"] < dense["latency_ms"]["median"]
    assert "sparse is faster than direct from" in done.stdout
    assert "90% of zeros: 1 kernels bound by arithmetic" in done.stdout or "bound by memory" in done.stdout


def _row(strategy: str, sparsity: float, ms: float, **more: Any) -> dict[str, Any]:
    fields = {"model": "conv2d:a", "variant": "manual", "strategy": strategy, "sparsity": sparsity,
              "latency_ms": {"median": ms}, "bound": "arithmetic", "peak_fraction": 0.9}  # fmt: skip
    return {**empty_row(), **fields, **more}


def test_crossover_lies_between_measured_points_or_below_them() -> None:
    dense = [_row("conv2d=direct", 0.0, 1.0), _row("conv2d=winograd", 0.0, 0.5)]
    rows = [*dense, _row("conv2d=sparse", 0.4, 0.7), _row("conv2d=sparse", 0.8, 0.3)]
    assert sparsity_table.crossover(rows, 0.5) == pytest.approx(0.6)
    assert sparsity_table.crossover(rows, 1.0) == pytest.approx(0.1)
    assert sparsity_table.crossover(rows, 0.2) is None
    assert "best dense strategy from 60%" in sparsity_table.notes(rows)[0]
    lines = sparsity_table.summary(rows)
    assert lines[1].startswith("80% of zeros: 1 kernels bound by arithmetic, median 3.33x direct")
    assert "1.67x the best dense" in lines[1]


def test_of_two_sparse_kernels_the_faster_counts() -> None:
    scattered = {"op": "conv2d", "shape": "a", "method": "unstructured"}
    rows = [
        _row("conv2d=direct", 0.0, 1.0), _row("conv2d=sparse", 0.8, 0.9), _row("conv2d=unstructured", 0.8, 0.5),
        _row("conv2d=sparse", 0.99, 0.1), _row("conv2d=unstructured", 0.99, 0.2),
    ]  # fmt: skip
    rows = [{**row, **scattered} for row in rows]
    assert {share: row["latency_ms"]["median"] for share, row in sparsity_table.fastest(rows).items()} == {
        0.8: 0.5, 0.99: 0.1,
    }  # fmt: skip
    assert sparse_kernels.line(rows, (0.8, 0.99))[4:6] == ("2.00x 2.00x", "10.00x 10.00x b")
    assert "80% of zeros: 1 kernels bound by arithmetic, median 2.00x direct" in sparsity_table.summary(rows)[0]


@pytest.mark.slow
def test_single_weights_are_measured_beside_blocks(tmp_path: Path) -> None:
    found = tmp_path / "rows.json"
    arguments = ["--op", "gemm", "--shape", "1x64x48", "--sparsity", "0.9", "--method", "unstructured"]
    assert kernels.main([*arguments, "--variants", "manual", "--limit", "1", "--json", str(found)]) == 0
    rows = json.loads(found.read_text())["results"]
    assert [row["strategy"] for row in rows if row["sparsity"]] == ["dense=sparse", "dense=unstructured"]


def test_what_cannot_be_measured_is_said_in_a_line() -> None:
    for arguments, words in (
        (["--op", "softmax", "--sparsity", "0.5"], "softmax has no sparse kernel"),
        (["--op", "conv2d", "--sparsity", "0.5", "--ladder"], "leave --ladder"),
    ):
        with pytest.raises(TvmoptError, match=words):
            kernels.main(arguments)
    with pytest.raises(SystemExit) as stopped:
        kernels.main(["--op", "conv2d", "--sparsity", "1"])
    assert stopped.value.code == 2


def test_the_recipes_table_has_a_line_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        _row("conv2d=direct", 0.0, 1.0), _row("conv2d=winograd-f4", 0.0, 0.5), _row("conv2d=sparse", 0.5, 0.6),
        _row("conv2d=sparse", 0.9, 0.1, bound="memory"),
    ]  # fmt: skip
    rows = [{**row, "op": "conv2d", "shape": "a"} for row in rows]
    made = sparse_kernels.line(rows, (0.5, 0.9))
    assert made == (
        "conv2d a", "1000", "90%", "winograd-f4 500", "1.67x 0.83x", "10.00x 5.00x m90%", "18% 58%",
    )  # fmt: skip
    sparse_kernels.show([made], (0.5, 0.9), rows, markdown=True)
    shown = capsys.readouterr().out
    assert "| conv2d a | 1000 |" in shown and "1 bound by memory, median 90% of their roof" in shown


def test_the_recipes_layers_are_of_the_operators_form() -> None:
    for shape in sparse_kernels.RESNET50:
        assert kernels.wanted_kernels(["conv2d"], [shape]) == [("conv2d", shape)]
    assert len(set(sparse_kernels.RESNET50)) == 22
