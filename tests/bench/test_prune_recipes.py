"""The pruning recipes: knees by hand, what is worse than published, and a quick run on images made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import readme_pruning, results
from bench.recipes import Settings, cifar_resnet20, mnist_prune, mnist_units, resnet18_sparse
from bench.recipes.common import Cells
from bench.recipes.knee import flat_to, knee
from tests.test_data import write_idx
from tvmopt.errors import DataError
from tvmopt.options import BuildOptions

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def test_the_knee_is_where_the_curve_bends_most() -> None:
    scores = [0.98, 0.98, 0.975, 0.96, 0.4, 0.1]
    assert flat_to(SHARES, scores) == 0.5 and flat_to(SHARES, scores, 0.03) == 0.75
    assert knee(SHARES, scores) == 0.75
    assert knee(SHARES, [0.98, 0.98, 0.4, 0.3, 0.2, 0.1]) == 0.25
    # A curve that does not fall has its knee at the end.
    assert knee(SHARES, [0.9] * 6) == flat_to(SHARES, [0.9] * 6) == 1.0


def _cell(*top1: float) -> mnist_prune.Cell:
    return {"top1": list(top1), "bytes": 4000, "compressed_bytes": 1000, "zipped_bytes": 900}


def test_a_figure_below_the_published_one_is_told() -> None:
    good, bad = {("unstructured", 0.9): _cell(0.2, 0.99, 0.99)}, {("filter", 0.5): _cell(0.99, 0.99, 0.98)}
    assert mnist_prune.worse(good) == []
    assert mnist_prune.worse({**good, **bad}) == ["filter 50% epoch 2: 98.00 against 98.84"]
    # What the source does not have is not compared.
    assert mnist_prune.worse({("filter", 0.95): _cell(0.1, 0.1, 0.1)}) == []
    together = {("unstructured, all layers together", 0.99): _cell(0.11, 0.3748, 0.4622)}
    alone = {("unstructured", 0.99): _cell(0.1, 0.3, 0.5)}
    assert mnist_prune.unmet(good) == mnist_prune.unmet({**alone, **together}) == []
    assert mnist_prune.unmet(alone) == ["unstructured 99% before", "unstructured 99% epoch 1"]
    assert mnist_prune.unmet(bad) == ["filter 50% epoch 2"]
    low = {("filter", 0.5): _cell(0.9276, 0.99, 0.99)}
    assert mnist_prune.worse(low) == ["filter 50% before: 92.76 against 98.06"]
    assert mnist_prune.unmet(low) == ["filter 50% before"]
    assert mnist_prune.worse({**alone, **together}) == [
        "unstructured 99% before: 10.00 against 10.32", "unstructured 99% epoch 1: 30.00 against 37.47",
    ]  # fmt: skip
    line = mnist_prune.table(good, 4000)[1]
    assert line[:3] == ["unstructured 90%", "20.00% (18.01)", "99.00% (98.13)"] and line[5] == "4.0x"


def test_a_cell_is_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        assert Cells(tmp_path / "c.json").get("a", lambda: calls.append(1) or 7) == 7
    assert calls == [1]
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(DataError, match="remove it"):
        Cells(tmp_path / "c.json")


@pytest.mark.slow
def test_quick_runs_on_made_up_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx(tmp_path, count=60)
    out = tmp_path / "out.json"
    settings = Settings(BuildOptions(), True, str(tmp_path), json=out, work_dir=tmp_path / "work")
    assert mnist_prune.run(settings) == 0
    found = results.read(out)["environment"]["recipe"]
    assert found["dense"]["params"] == 1199882
    text = readme_pruning.mnist_cnn([out])
    assert "| unstructured 90% |" in text and "1,199,882 parameters, 4.58 MiB" in text
    cells = {(cell["method"], cell["sparsity"]): cell for cell in found["cells"]}
    methods = ("unstructured", "unstructured, all layers together", "filter")
    assert list(cells) == [(method, share) for method in methods for share in (0.5, 0.9)]
    assert all(cells[method, 0.9]["nonzero_params"] < 0.11 * 1199882 for method in methods[:2])
    # Half of both layers' filters, and half of what the dense layer reads.
    assert cells["filter", 0.5]["params"] == 16 * 10 + 32 * (16 * 9 + 1) + 128 * (32 * 144 + 1) + 1290
    capsys.readouterr()
    mnist_prune.run(settings)
    assert "epoch 2" not in capsys.readouterr().err, "the second run has all from the first"

    assert mnist_units.run(settings) == 0
    found = results.read(out)["environment"]["recipe"]
    assert len(found["top1"]["units"]) == 13 and set(found["knee"]) == {"weights", "units"}
    assert out.with_suffix(".png").stat().st_size > 5000
    assert "knee at" in readme_pruning.mnist_mlp([out])
    with pytest.raises(DataError, match="no result of the recipe mnist-prune"):
        readme_pruning.mnist_cnn([out])


@pytest.mark.slow
def test_resnet18_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.json"
    assert resnet18_sparse.run(Settings(BuildOptions(), True, json=file)) == 0
    said = capsys.readouterr().out
    rows = results.read(file)["results"]
    names = ("dense, direct", "dense, plan", "80% zeros")
    assert [row["model"] for row in rows] == [f"resnet18, {name}" for name in names]
    # Each was verified against PyTorch, and the zeros are neither stored nor multiplied by.
    assert all(row["error"] is None and 0 < row["max_abs_err"] < 1e-3 for row in rows)
    assert rows[2]["size_compressed_bytes"] < rows[1]["size_compressed_bytes"] / 3
    assert resnet18_sparse.verdicts(rows)[0] in said
    text = readme_pruning.resnet18([file])
    assert all(part in text for part in ("80% zeros", "bench.recipe resnet18-sparse", "2x wanted"))


def test_resnet18_verdicts_tell_what_is_less_than_wanted() -> None:
    def row(name: str, ms: float) -> dict[str, Any]:
        samples = [ms * (1 + 0.001 * (i % 3)) for i in range(30)]
        return {
            "model": f"resnet18, {name}", "latency_ms": {"median": ms}, "samples_ms": samples,
            "rounds": [i // 3 for i in range(30)], "unstable": False, "size_compressed_bytes": 1000, "size_bytes": 2000,
            "max_abs_err": 1e-6, "error": None,
        }  # fmt: skip

    rows = [row("dense, direct", 12.0), row("dense, plan", 9.0), row("80% zeros", 5.0), row("90% zeros", 5.0)]
    said = resnet18_sparse.verdicts(rows)
    assert said[0].startswith("80% zeros: 2.40x") and said[0].endswith(": as wanted")
    assert said[1].endswith(": less than wanted")
    failed = [*rows[:3], {**rows[3], "latency_ms": None}]
    assert len(resnet18_sparse.verdicts(failed)) == 1 and resnet18_sparse.lines(failed)[-1][1] == "failed"
    header, first, *_ = resnet18_sparse.lines(rows)
    assert dict(zip(header, first, strict=True))["file, bytes"] == "2,000"


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    for recipe, message in ((mnist_prune, "MNIST/raw"), (mnist_units, "MNIST/raw"), (cifar_resnet20, "resnet20-12fca")):
        with pytest.raises(DataError, match=message):
            recipe.run(Settings(BuildOptions(), True, str(tmp_path)))
