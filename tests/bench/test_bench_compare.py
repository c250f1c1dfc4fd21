"""Result files and their comparison."""

from __future__ import annotations

import csv
import json
import re
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


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """A baseline, the same again, and one with a slower and a missing contender, and one twice."""
    base = [row("manual", 1.0, 1), row("auto", 0.8, 2), row("peer:torch", 2.0, 3)]
    same = [row("manual", 1.0, 4), row("auto", 0.8, 5), row("peer:torch", 2.0, 6)]
    last = [row("manual", 1.1, 7), row("peer:torch", 2.0, 8), row("peer:torch", 4.0, 9), row("peer:new", 1.0)]
    saved = [save(tmp_path / "a.json", base), save(tmp_path / "b.json", same)]
    return [*saved, save(tmp_path / "c.json", last, kernel="6")]


def test_three_files_each_further_one_with_the_first(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(three) == 0
    first, second = capsys.readouterr().out.split("- old: ")[1:]
    assert first.startswith(three[0]) and second.startswith(three[0])
    assert f"new: {three[1]}" in first and first.count("no difference") == 3 and "differs" not in first
    # What differs stands above the table, and nothing is dropped or merged silently.
    assert second.index("differs: kernel: None -> 6") < second.index("| model")
    cells = [[cell.strip() for cell in line.split("|")] for line in second.splitlines() if "| m " in line]
    verdicts = {line[2]: line[-2] for line in cells}
    assert verdicts == {
        "manual": "slower", "auto": "only in old", "peer:torch": "2 times in new", "peer:new": "only in new",
    }  # fmt: skip
    # The repeated one is in no mean.
    assert re.search(r"geometric mean of new/old: all (1\.\d+) \(of 1\), ours \1 \(of 1\)$", second, re.MULTILINE)


def test_columns_that_tell_contenders_apart_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("manual", 1.0, 1), row("manual", 1.0, 2, batch=8)]
    files = [save(tmp_path / "a.json", rows), save(tmp_path / "b.json", rows)]
    assert compare.main(files) == 0
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| model"))
    assert [cell.strip() for cell in header.split("|")[1:5]] == ["model", "contender", "batch", "old ms"]


def test_csv_has_a_line_a_contender_and_comparison(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([*three, "--format", "csv", "--fail-above", "5%"]) == 1
    said = capsys.readouterr()
    rows = list(csv.DictReader(said.out.splitlines()))
    assert [Path(r["new"]).name for r in rows] == ["b.json"] * 3 + ["c.json"] * 4
    slower = rows[3]
    assert (slower["variant"], slower["verdict"], slower["fails"]) == ("manual", "slower", "True")
    assert 1 < float(slower["low"]) < float(slower["ratio"]) < float(slower["high"])
    assert rows[4]["verdict"] == "2 times in new" and rows[4]["ratio"] == rows[4]["new_ms"] == ""
    # Beside a format for programs, people are told on standard error.
    assert said.err.startswith("fails: m manual: slower") and said.err.count("\n") == 1


def test_json_has_a_schema_and_no_nan(three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "changes.json"
    assert compare.main([*three, "-o", str(output)]) == 0
    assert capsys.readouterr().out == ""
    # parse_constant sees NaN and Infinity, which are no JSON.
    made = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert made["schema_version"] == 1 and made["baseline"] == three[0]
    assert [one["file"] for one in made["comparisons"]] == three[1:]
    last = made["comparisons"][1]
    assert last["differences"] == [{"name": "kernel", "old": None, "new": "6"}]
    assert last["lines"][0]["verdict"] == "slower" and last["lines"][0]["p"] < 0.05
    assert {line["verdict"] for line in last["not_compared"]} == {"only in old", "only in new", "2 times in new"}
    assert last["geometric_mean"]["ours"] == pytest.approx(last["lines"][0]["ratio"])
    assert last["geometric_mean"]["peers"] is None


def test_all_failed_has_no_mean(tmp_path: Path) -> None:
    rows = [row("manual", 1.0, error="it broke", latency_ms=None, samples_ms=[], rounds=[])]
    files = [save(tmp_path / "a.json", rows), save(tmp_path / "b.json", rows)]
    for form in ("markdown", "csv", "json"):
        output = tmp_path / "out"
        # What failed before already is no change.
        assert compare.main([*files, "-o", str(output), "--format", form, "--fail-above", "5%"]) == 0
        assert "failed in old and new" in output.read_text() and "nan" not in output.read_text().lower()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["A"], 2, "one file given"),
        (["A", "B", "-o", "out.txt"], 2, "give --format"),
        (["A", "B", "-o", "A"], 2, "one of the files compared"),
        (["A", "B", "-o", "A/out.md"], 1, "cannot write"),
        (["A", "B", "C", "no.json"], 1, "cannot read"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], status: int, message: str, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = [re.sub(r"^[ABC](?=$|/)", lambda found: three["ABC".index(found[0])], text) for text in arguments]
    before = Path(three[0]).read_text()
    assert run(compare.main, named) == status
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert Path(three[0]).read_text() == before


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.json", [row("manual", 1.0)]), save(tmp_path / "b.json", [row("auto", 1.0)])]
    with pytest.raises(DataError, match="no contender in common"):
        compare.main(files)
