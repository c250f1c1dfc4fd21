"""Measuring by which strategy each convolution is fastest, and what a tuning log makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import detect
from tvmopt.model import Model, from_module
from tvmopt.registry import rules
from tvmopt.tuning import strategies
from tvmopt.variants import strategies_of


def network() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 1)
    )
    return from_module(module, torch.randn(1, 3, 12, 12), name="two")


def measured(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], **asked: str) -> dict[str, str]:
    """What comes of times as in `seconds`, by the end of a candidate's name; 1 s for those not there."""

    def times(contenders: Any, *_: Any) -> dict[str, float]:
        ends = {c.name: next((s for end, s in seconds.items() if c.name.endswith(end)), 1.0) for c in contenders}
        return {name: s for name, s in ends.items() if s > 0}

    monkeypatch.setattr(strategies, "_time", times)
    machine = detect()
    return strategies.measure_strategies(network(), machine, rules(machine.kind), asked, lambda _: None)


SECOND = "conv2d 1x16x12x12 16 3x3 stride 1x1 pad 1,1,1,1"


def test_every_way_of_every_convolution_is_really_timed() -> None:
    machine, notes = detect(), list[str]()
    found = strategies.measure_strategies(network(), machine, rules(machine.kind), {}, notes.append)
    assert len([name for name in found if name.startswith("conv2d ")]) == 3
    (line,) = [note for note in notes if note.startswith(f"{SECOND}: ")]
    assert all(f"{way} " in line for way in ("direct", "gemm", "winograd-f2", "winograd-f4"))
    # The same network comes of it again.
    assert lower_model(network(), machine, found).strategies == {k: v for k, v in found.items() if k != "conv2d"}


def test_the_fastest_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, {"16 3x3 stride 1x1 pad 1,1,1,1 by gemm": 0.5})[SECOND] == "gemm"


def test_what_is_hardly_faster_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    by_rule = lower_model(network(), detect()).strategies[SECOND]
    other = "direct" if by_rule != "direct" else "gemm"
    assert measured(monkeypatch, {f"by {other}": 0.97})[SECOND] == by_rule


def test_what_was_not_measured_cannot_win(monkeypatch: pytest.MonkeyPatch) -> None:
    by_rule = lower_model(network(), detect()).strategies[SECOND]
    assert measured(monkeypatch, {f"by {by_rule}": 0.0, "by gemm": 0.1})[SECOND] == by_rule


def test_nothing_is_measured_where_one_way_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, {}, conv2d="gemm") == {"conv2d": "gemm"}


def test_a_worker_that_dies_leaves_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmopt.tuning.process import WorkerDied

    class Dead:
        alive = False

        def __init__(self, *_: object) -> None:
            pass

        def ask(self, *_: object, **__: object) -> None:
            raise WorkerDied("the process ended with SIGSEGV")

        def close(self) -> None:
            pass

    monkeypatch.setattr(strategies, "Process", Dead)
    machine, notes = detect(), list[str]()
    found = strategies.measure_strategies(network(), machine, rules(machine.kind), {}, notes.append)
    assert found[SECOND] == lower_model(network(), machine).strategies[SECOND]
    assert any("SIGSEGV" in note for note in notes)


def test_auto_is_lowered_by_its_log_and_manual_by_the_rule(tmp_path: Path, manifest: Any) -> None:
    from dataclasses import replace

    replace(manifest, strategies={SECOND: "gemm"}).write(tmp_path)
    assert strategies_of("auto", tmp_path, {}) == {SECOND: "gemm"}
    assert strategies_of("manual", tmp_path, {}) == {}
    assert strategies_of("auto", tmp_path / "none", {"conv2d": "direct"}) == {"conv2d": "direct"}
