"""Result files and their comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import compare, results, statistics
from tvmopt.errors import DataError, OutputError, TvmoptError
from tvmopt.options import run


def row(variant: str, median: float, seed: int = 0, **changed: Any) -> dict[str, Any]:
    """A result with twelve rounds of three samples."""
    samples = [float(x) for x in np.random.default_rng(seed).normal(median, median * 0.003, 36)]
    made: dict[str, Any] = {name: None for name in results.FIELDS}
    made |= {
        "model": "m", "variant": variant, "target": "llvm", "dtype": "float32", "batch": 1, "sparsity": 0.0,
        "threads": 2, "strategy": "default", "unstable": False, "cold": False, "samples_ms": samples,
        "rounds": [i // 3 for i in range(36)], "latency_ms": statistics.summary(samples),
    }  # fmt: skip
    return made | changed


def save(path: Path, rows: list[dict[str, Any]], **environment: Any) -> str:
    results.write(results.document({"host": "h", "cpu": "c", **environment}, rows), path)
    return str(path)


def test_a_document_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    save(path, [row("manual", 1.0, max_abs_err=float("inf"))])
    assert results.read(path)["results"][0]["max_abs_err"] is None
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("schema_version"), "schema_version"),
        (lambda d: d.update(schema_version=2), "schema_version 2"),
        (lambda d: d["results"][0].pop("flops"), "lacks flops"),
        (lambda d: d["results"][0].update(batch="1"), "batch is a str"),
        (lambda d: d["results"][0].update(threads=True), "threads is a bool"),
        (lambda d: d["results"][0]["rounds"].pop(), "rounds"),
        (lambda d: d["results"][0]["latency_ms"].pop("p99"), "lacks p99"),
        (lambda d: d["results"][0].update(latency_ms=None), "neither"),
        (lambda d: d.update(results={}), "needs"),
    ],
)
def test_a_broken_document_is_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "a.json"
    save(path, [row("manual", 1.0)])
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message) as caught:
        results.read(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        results.read(tmp_path / "none.json")
    (tmp_path / "text").write_text("no json")
    with pytest.raises(DataError, match="not JSON"):
        results.read(tmp_path / "text")
    with pytest.raises(OutputError, match="cannot write"):
        save(tmp_path / "text" / "a.json", [row("manual", 1.0)])


def test_faster_slower_same_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = [row("original", 2.0, 1), row("manual", 1.0, 2), row("auto", 1.0, 3), row("peer:torch", 1.0, 4)]
    failed = row("peer:torch", 1.0, 5, error="it broke", latency_ms=None, samples_ms=[], rounds=[])
    new = [row("original", 2.0, 6), row("manual", 1.1, 7), row("auto", 0.8, 8), failed, row("peer:new", 1.0)]
    files = [save(tmp_path / "old.json", old, kernel="5"), save(tmp_path / "new.json", new, kernel="6")]
    verdicts = [line.verdict for line in compare.compare(*(results.read(Path(f)) for f in files))]
    assert verdicts == ["no difference", "slower", "faster", "failed in new"]
    assert compare.main(files) == 0
    said = capsys.readouterr().out
    assert "kernel: 5 -> 6" in said
    assert "geometric mean" in said
    assert compare.main([*files, "--fail-above", "5%"]) == 1
    assert "fails: m manual: slower" in capsys.readouterr().out


def test_fail_above_needs_the_interval_and_not_the_ratio(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.json", [row("manual", 1.0, 1)]), save(tmp_path / "b.json", [row("manual", 1.05, 2)])]
    assert compare.main([*files, "--fail-above", "3%"]) == 1
    assert compare.main([*files, "--fail-above", "5%"]) == 0


def test_too_few_rounds_say_nothing() -> None:
    few = {"rounds": [0] * 36}
    lines = compare.compare({"results": [row("auto", 1.0, **few)]}, {"results": [row("auto", 2.0, **few)]})
    assert lines[0].verdict == "too few rounds"


def test_without_files_the_last_two_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "results_root", lambda: tmp_path)
    with pytest.raises(TvmoptError, match="0 saved runs"):
        compare.main([])
    from bench import environment
    from tvmopt.machine import detect

    host = environment.host_name(detect())
    for name, median in (("20250101T000000Z-a", 9.0), ("20250102T000000Z-b", 1.0), ("20250103T000000Z-c", 1.2)):
        save(tmp_path / host / f"{name}.json", [row("manual", median)])
    assert compare.main(["--fail-above", "5%"]) == 1


def test_one_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(compare.main, ["only.json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
