"""The report's page: what is in it, that it needs nothing else, and the errors of the commands that write it."""

from __future__ import annotations

import html
import importlib.util
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command
from bench import results
from bench.report import __main__ as report_command
from bench.report import accuracy, page, roofline, runs, sparse, style, tables, tuning
from tests.bench.conftest import CURVE, failed_row, make_profile, make_row
from tvmopt.options import run

ROOT = Path(__file__).resolve().parents[2]
SAVED = sorted((ROOT / "bench" / "results").glob("**/*.json"))
Document = dict[str, Any]


def figures(text: str) -> list[dict[str, Any]]:
    """All charts of a page."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    return [json.loads(chart) for chart in found]


def sections(*documents: Document) -> dict[str, runs.Section]:
    found = runs.runs_of([(f"{n}.json", document) for n, document in enumerate(documents)])
    return {section.key: section for section in page.sections(found)}


def test_the_page_says_what_was_measured_where_and_when(document: Document) -> None:
    text = html.unescape(page.render([("run.json", document)]))
    assert "fastest peer onnxruntime 0.3045 ms; auto" in text
    assert "2026-11-20 22:20 UTC" in text and "some-host-123456 (Some CPU)" in text
    assert "012345678, with changes that are not committed" in text
    assert "0.25 before, 0.5 after" in text
    assert "<th scope=\"row\">caches l1</th><td>32 KiB</td>" in text
    for key in ("results", "latency", "accuracy", "sparsity", "roofline", "kernels", "tuning", "environment"):
        assert f'<section id="{key}">' in text and f'href="#{key}"' in text
    # Latency, accuracy over latency and sparsity, time over that, roofline, kernels, tuning over candidates and time.
    assert len(figures(text)) == 8


def test_what_a_file_says_is_text_and_no_markup(make_document: Callable[..., Document]) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [
        make_row("auto", 1.0, model=evil, profile=[{**line, "kernel": evil} for line in make_profile(1)]),
        {**failed_row("peer:torch", evil), "model": evil},
    ]
    text = page.render([(evil, make_document(rows, host=evil, cpu="`" + evil))])
    assert "alert(1)" in text
    assert "<script>alert" not in text and "<img" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    # In charts it is escaped again, because plotly takes some HTML.
    for figure in figures(text):
        assert "<script" not in json.dumps(figure)
    assert len(figures(text)) == 4


def test_nothing_is_loaded_from_anywhere(document: Document) -> None:
    text = page.render([("run.json", document)])
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "default-src 'none'" in own
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", own)
    assert "@import" not in own and "url(" not in own


def test_a_contender_has_one_colour_and_every_colour_a_dark_one(document: Document) -> None:
    found: dict[str, set[str]] = {}
    for section in sections(document).values():
        for chart in section.charts:
            for colour in re.findall(r'"(#[0-9a-f]{6})"', json.dumps(chart.figure)):
                assert colour in style.exchange()
            for trace in chart.figure["data"]:
                if "name" in trace and "marker" in trace and trace["name"] != "Pareto front":
                    found.setdefault(trace["name"].split(",")[0], set()).add(trace["marker"].get("color", ""))
    assert found["auto"] - {""} == {style.colour("auto")}
    assert found["manual"] - {""} == {style.colour("manual")}
    assert len({style.colour(v) for v in ("original", "manual", "auto", "peer:torch", "peer:openvino")}) == 5


def test_latency_bars_have_intervals_marks_and_a_logarithmic_axis(document: Document) -> None:
    (chart,) = sections(document)["latency"].charts
    bars, texts = chart.figure["data"]
    pruned = ["auto, 50% magnitude", "auto, 90% magnitude"]
    assert list(bars["y"]) == ["original", "manual", "auto", "onnxruntime", *pruned]
    row = document["results"][0]
    assert bars["x"][0] == row["latency_ms"]["median"]
    assert bars["error_x"]["array"][0] == pytest.approx(row["ci95"][1] - bars["x"][0])
    assert bars["marker"]["pattern"]["shape"] == ["/", "", "", "", "", ""]
    assert texts["text"][0].endswith(" !") and not texts["text"][1].endswith("!")
    assert chart.figure["layout"]["xaxis"]["type"] == "log"
    assert chart.notes == ["openvino failed: cannot <b>load</b> the model"]
    near = {**document, "results": document["results"][1:4]}
    axis = sections(near)["latency"].charts[0].figure["layout"]["xaxis"]
    assert "type" not in axis and axis["range"][0] == 0


def test_short_logarithmic_axes_have_whole_numbers_at_their_ticks() -> None:
    axis = style.log_axis("ms", 150, 900)
    shown = [text for value, text in zip(axis["tickvals"], axis["ticktext"], strict=True) if 150 <= value <= 900]
    assert shown == ["200", "500"]
    assert style.log_axis("ms", 1, 900)["dtick"] == 1


def test_the_front_is_what_nobody_beats() -> None:
    points = [(1.0, 90.0), (2.0, 95.0), (3.0, 94.0), (1.0, 90.0), (0.5, 80.0), (2.0, 90.0)]
    assert accuracy.pareto(points) == [4, 0, 3, 1]


def test_the_front_is_drawn_and_sparsities_are_a_line(document: Document) -> None:
    found = sections(document)
    front = found["accuracy"].charts[0].figure["data"][0]
    assert front["name"] == "Pareto front" and list(front["y"]) == [90.0, 97.0, 98.0]
    lines = {trace["name"]: list(trace["x"]) for trace in found["sparsity"].charts[0].figure["data"]}
    assert lines["auto"] == [0, 50, 90] and lines["manual"] == [0]


def test_each_way_of_pruning_is_a_line_from_the_whole_model(make_document: Callable[..., Document]) -> None:
    rows = [make_row("auto", 1.0), make_row("peer:torch", 2.0)]
    rows += [make_row("auto", 0.9, sparsity=0.5, method=method) for method in ("magnitude", "random")]
    (chart,) = sections(make_document(rows))["sparsity"].charts
    lines = {trace["name"]: (list(trace["x"]), trace["line"]["dash"]) for trace in chart.figure["data"]}
    assert lines == {
        "auto, magnitude": ([0, 50], "solid"), "auto, random": ([0, 50], "dash"), "torch": ([0], "solid"),
    }  # fmt: skip


def test_a_pruned_model_has_a_line_of_its_time_over_sparsity(make_document: Callable[..., Document]) -> None:
    pruned = [make_row("auto", ms, sparsity=share, method="block") for share, ms in ((0.5, 1.5), (0.9, 1.0))]
    rows = [make_row("auto", 2.0), *pruned]
    (chart,) = sections(make_document(rows))["zeros"].charts
    (line,) = chart.figure["data"]
    assert list(line["x"]) == [0, 50, 90]
    assert list(line["y"]) == pytest.approx([row["latency_ms"]["median"] for row in rows])


def test_a_layer_has_the_share_of_zeros_from_which_it_is_faster() -> None:
    def kernel(strategy: str, ms: float, sparsity: float = 0.0) -> dict[str, Any]:
        return make_row("manual", ms, model="conv2d:a", strategy=f"conv2d={strategy}", sparsity=sparsity)

    rows = [kernel("direct", 1.0), kernel("winograd", 0.5), kernel("sparse", 0.9, 0.3), kernel("sparse", 0.4, 0.8)]
    (found,) = sparse.crossovers(rows).values()
    # 0.9 at 30%, 0.4 at 80%: down to 0.5 at 70%; up to 1.0 at 20%.
    assert found["direct"] == pytest.approx(0.2)
    assert found["the best dense strategy"] == pytest.approx(0.7)


def test_a_file_without_results_makes_a_page_that_says_so(make_document: Callable[..., Document]) -> None:
    text = page.render([("empty.json", make_document([]))])
    assert "There are no results" in text and not figures(text) and "plotly.js" not in text
    only_failed = sections(make_document([failed_row("auto", "no memory")]))
    assert only_failed["latency"].missing[1] == "auto failed: no memory"
    assert all(section.missing for section in only_failed.values())


def test_the_roofline_has_ceilings_and_only_kernels_that_compute(document: Document) -> None:
    (chart,) = sections(document)["roofline"].charts
    traces = {trace.get("name") or trace["hovertext"]: trace for trace in chart.figure["data"]}
    auto = traces["auto"]
    assert list(auto["x"]) == [pytest.approx(20.0), pytest.approx(6 / 13)]
    assert list(auto["y"]) == [pytest.approx(120.0), pytest.approx(30.0)]
    assert all(word in auto["hovertext"][0] for word in ("fused_conv2d_direct_add_relu", "1x8", "5 us x 2", "95.8%"))
    peak, slope = traces["peak 300 GFLOP/s"], traces["16 KiB: 240 GB/s"]
    assert list(peak["y"]) == [300, 300] and slope["y"][1] == pytest.approx(300)
    assert slope["y"][0] == pytest.approx(slope["x"][0] * 240)
    assert chart.notes[1] == "3 kernels without arithmetic (copies, reshapes) cannot be drawn here."
    labels = chart.figure["layout"]["annotations"]
    assert min(auto["x"]) > 10 ** max(label["x"] for label in labels if label["xanchor"] == "left")


def test_ceilings_are_the_best_any_process_measured() -> None:
    rows = [
        {"roof": {"gflops": 200.0, "bandwidths": [[16384, 1.0], [32768, 9.0]]}},
        {"roof": {"gflops": 300.0, "bandwidths": [[16384, 2.0]]}}, {"peak_gflops": 250.0}, {},
    ]  # fmt: skip
    assert roofline.roof_of(rows) == (300.0, {16384: 2.0, 32768: 9.0})


def test_single_kernels_are_on_a_roofline_too() -> None:
    (file,) = [path for path in SAVED if path.name == "20261120-1.json"]
    (chart,) = sections(results.read(file))["roofline"].charts
    markers = [trace for trace in chart.figure["data"] if trace["mode"] == "markers"]
    assert [trace["name"] for trace in markers] == ["conv2d:1x64x56x56,64,3,1,1", "gemm:1024x1024x1024"]
    assert chart.notes == ["Bandwidths are not in this result."]


def test_kernels_are_stacked_without_a_gap(document: Document) -> None:
    (chart,) = sections(document)["kernels"].charts
    for bar in chart.figure["data"]:
        ends = [base + width for base, width in zip(bar["base"], bar["x"], strict=True)]
        assert bar["base"][0] == 0 and ends[-1] == pytest.approx(100)
        assert list(bar["base"][1:]) == pytest.approx(ends[:-1])
    text = page.render([("run.json", document)])
    assert "auto, kernel by kernel" in text and "most is to be won in fused_conv2d_direct_add_relu" in text


def test_tuning_curves_step_down_to_the_best() -> None:
    steps = tuning.over_trials(CURVE)
    assert steps == {"conv": [(0, 1), (3, 0.9), (9, 0.6), (40, 0.6)], "dense": [(0, 1), (40, 1)]}
    whole = tuning.total(steps, {"conv": 3e-6, "dense": 1e-6})
    assert whole == [(0, 1), (3, pytest.approx(0.925)), (9, pytest.approx(0.7)), (40, pytest.approx(0.7))]
    timed = tuning.over_time(CURVE)
    assert timed is not None and timed["conv"][-2:] == [(7.5, 0.6), (30, 0.6)]
    # Candidates of one batch have one time: the better of them counts.
    assert tuning.total({"a": [(0, 1), (5, 0.9), (5, 0.7)]}, {"a": 1.0})[-1] == (5, 0.7)
    assert tuning.over_time({**CURVE, "elapsed_s": None}) is None


def test_a_chart_without_data_is_a_sentence_with_a_command_that_exists(make_document: Callable[..., Document]) -> None:
    plain = make_row("manual", 1.0, accuracy=None)
    curve = {**CURVE, "elapsed_s": None}
    found = sections(make_document([plain]))
    timeless = sections(make_document([make_row("auto", 1.0, tuning_curve=curve)]))
    missing = [text for key, section in (*found.items(), *timeless.items()) for text in section.missing]
    assert found["latency"].missing == [] and len(timeless["tuning"].charts) == 1
    assert all(found[key].missing and not found[key].charts for key in found if key != "latency")
    assert "Only sparsity 0% was measured" in found["sparsity"].missing[0]
    commands = sorted({name for text in missing for name in re.findall(r"`([^`]*)`", text)})
    assert len(commands) >= 5
    for line in commands:
        words = line.replace(" D ", " digits ").split()
        assert words[:2] == ["python", "-m"], line
        done = subprocess.run(
            [sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, line
        assert all(word in done.stdout for word in words if word.startswith("--")), line


def test_rows_sort_by_numbers_and_name_their_setting(document: Document) -> None:
    (found,) = runs.runs_of([("a.json", document)])
    header, lines = tables.header([found]), tables.lines([found])
    assert header[:4] == ["model", "setting", "contender", "median ms"]
    assert [line.kind for line in lines] == ["ours"] * 3 + ["peers"] * 2 + ["ours"] * 2
    assert [cell.text for cell in lines[5].cells[:3]] == ["digits_cnn", "50% magnitude", "auto"]
    assert lines[0].cells[3].value == document["results"][0]["latency_ms"]["median"]
    assert lines[4].error and lines[4].cells[3].value is None
    assert tables.shared([found]) == ["batch 1", "float32", "2 threads"]


def test_several_files_are_told_apart(document: Document) -> None:
    text = page.render([("monday.json", document), ("friday.json", document)])
    assert "Run 1" in text and "monday.json" in text and "run 2, digits_cnn" in text
    assert len(figures(text)) == 16


def test_a_date_is_of_the_document_or_of_its_file_name() -> None:
    assert runs.date_of("x.json", {"date": "2026-11-20T22:20:29+00:00"}) == "2026-11-20 22:20 UTC"
    assert runs.date_of("dir/20261120T193602Z-d20d6bd40.json", {}) == "2026-11-20 19:36 UTC"
    assert runs.date_of("x.json", {}) == "date unknown"


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)
def test_saved_results_make_a_page(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert run(report_command.main, [str(path), "-o", str(out)]) == 0
    charts = figures(out.read_text())
    # Some recipes measure no latency.
    assert bool(charts) == bool(results.read(path)["results"])
    for figure in charts:
        numbers = [x for trace in figure["data"] for x in trace["x"]]
        assert numbers and all(math.isfinite(x) for x in numbers)


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def said(main: Callable[..., int], *arguments: str) -> tuple[int, str]:
        status = run(main, list(arguments))
        text = capsys.readouterr().err
        assert text.count("\n") == 1, text
        return status, text

    saved, out = str(SAVED[0]), str(tmp_path / "page.html")
    assert said(report_command.main, str(tmp_path / "none.json"), "-o", out) == (
        1, f"tvmopt: cannot read {tmp_path / 'none.json'}: No such file or directory\n",
    )  # fmt: skip
    assert said(report_command.main, saved, "-o", str(tmp_path))[0] == 1
    broken = json.loads(SAVED[0].read_text())
    broken["results"][0]["profile"] = [{"kernel": "no more"}]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    assert "result 0: profile is not list with kernel, op" in said(
        report_command.main, str(tmp_path / "broken.json"), "-o", out
    )[1]  # fmt: skip
    # Before anything is measured: these end at once.
    status, text = said(command.main, "--report", f"{SAVED[0]}/page.html")
    assert (status, "--report" in text and "cannot be written" in text) == (1, True)
    here = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plotly" else here(name))
    for main, arguments in ((command.main, ["--report", out]), (report_command.main, [saved, "-o", out])):
        status, text = said(main, *arguments)
        assert status == 2 and 'plotly not installed (pip install "tvmopt[report]")' in text
    assert not Path(out).exists()


@pytest.mark.slow
def test_the_bench_writes_one_with_kernels_in_it(tmp_path: Path) -> None:
    out, page_file = tmp_path / "out.json", tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--variants", "manual", "--peers", "none", "--quick", "--dataset", "none",
         "--json", str(out), "--report", str(page_file)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"report: {page_file}" in done.stderr
    (row,) = json.loads(out.read_text())["results"]
    assert row["roof"]["gflops"] > 0 and row["profile"] and row["tuning_curve"] is None
    titles = [figure["layout"]["xaxis"]["title"]["text"] for figure in figures(page_file.read_text())]
    assert titles[1:] == ["operations a byte", "share of the kernels' sum"]
