"""The report's charts of a pruned network's layers, and its size beside that of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench import table
from bench.report import layers, runs, sparse
from bench.report.layers import Point
from tests.bench.conftest import failed_row, make_profile, make_row

WIDE, NARROW, NEVER = "1x256x14x14 256 3x3 stride 1x1 pad 1,1,1,1", "1x64x48", "1x48x16"


def kernel(layer: str | None, op: str, us: float, calls: int = 1) -> dict[str, Any]:
    return {**make_profile(1)[0], "layer": layer, "op": op, "seconds": us * 1e-6, "calls": calls}


def rows(method: str = "block-16x1") -> list[dict[str, Any]]:
    """A layer that is sparse from 80%, one from 50%, one never, and a kernel that is no layer."""

    def row(share: float, *lines: dict[str, Any]) -> dict[str, Any]:
        own = [*lines, kernel(NEVER, "dense", 1.0), kernel(None, "pool2d", 2.0)]
        return make_row("manual", 1.0, sparsity=share, method=method if share else None, profile=own)

    return [
        row(0.8, kernel(WIDE, "conv2d_sparse", 40.0), kernel(NARROW, "dense_sparse", 1.0)),
        row(0.0, kernel(WIDE, "conv2d_winograd", 90.0, 3), kernel(WIDE, "conv2d_winograd", 130.0),
            kernel(NARROW, "dense", 4.0)),
        row(0.5, kernel(WIDE, "conv2d_winograd", 101.0), kernel(NARROW, "dense_sparse", 2.0)),
    ]  # fmt: skip


def test_layers_are_set_beside_themselves_without_zeros() -> None:
    found = layers.layers(rows())
    assert list(found) == [WIDE, NARROW]
    # The same convolution with two epilogues, one of them called three times.
    assert found[WIDE][0] == Point(0.0, pytest.approx(100e-6), False)
    assert [(p.sparsity, p.skips) for p in found[WIDE]] == [(0.0, False), (0.5, False), (0.8, True)]
    assert {name: layers.crossover(points) for name, points in found.items()} == {WIDE: 0.8, NARROW: 0.5}
    assert layers.layers(rows()[:1]) == {}, "nothing is without zeros"


def test_a_layer_must_stay_faster() -> None:
    dense = Point(0.0, 2.0, False)
    assert layers.crossover([dense, Point(0.5, 1.0, True), Point(0.8, 2.1, True), Point(0.9, 1.0, True)]) == 0.9
    assert layers.crossover([dense, Point(0.5, 2.1, True)]) is None
    # Faster because the machine was: it does not skip zeros.
    assert layers.crossover([dense, Point(0.5, 1.9, False)]) is None


def test_the_report_draws_time_over_sparsity_and_from_how_many_zeros_on(
    make_document: Callable[..., dict[str, Any]],
) -> None:
    groups = runs.groups_of(runs.runs_of([("a.json", make_document(rows()))]))
    latency, over, dots = sparse.section(groups, "python -m bench").charts
    first, _ = over.figure["data"]
    assert list(first["x"]) == [0.0, 50.0, 80.0] and list(first["y"]) == pytest.approx([100.0, 101.0, 40.0])
    assert list(first["marker"]["symbol"]) == ["circle-open", "circle-open", "circle"]
    assert "2.50x as fast as without" in first["hovertext"][2] and WIDE in first["hovertext"][2]
    assert "layer by layer" in over.title and dots.title.endswith("from how many zeros on")
    (marks,) = dots.figure["data"]
    assert dict(zip(marks["y"], marks["x"], strict=True)) == {WIDE: 80.0, NARROW: 50.0}
    assert len(latency.figure["data"]) == 1
    both = [*rows(), *(row for row in rows("block-16x4") if row["sparsity"])]
    (group,) = runs.groups_of(runs.runs_of([("a.json", make_document(both))]))
    assert list(layers.profiled(group)) == ["manual, block-16x1", "manual, block-16x4"]


def test_rows_of_older_files_have_no_layers(make_document: Callable[..., dict[str, Any]]) -> None:
    old = [{**row, "profile": make_profile(1)} for row in rows()]
    (group,) = runs.groups_of(runs.runs_of([("a.json", make_document(old))]))
    assert layers.profiled(group) == {} and len(sparse.section([group], "python -m bench").charts) == 1


def test_a_pruned_network_shows_its_file_and_its_parameters_without_zeros() -> None:
    pruned = {"sparsity": 0.8, "method": "block-16x1"}
    mine = make_row("manual", 1.0, **pruned, size_bytes=11_703_186, size_compressed_bytes=12_489_536)
    text = table.markdown([mine, {**failed_row("auto", "no"), **pruned}])
    header, _, first, second = (line for line in text.splitlines() if line.startswith("|"))
    assert header.endswith("| size MB | sparse MB |") and first.endswith("| 11.70 | 12.49 |")
    assert second.count("|") == header.count("|")
    assert "of ours the exported file" in text
    assert "sparse MB" not in table.markdown([make_row("manual", 1.0)])
