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
from tvmopt.operators.sparse import without_kept
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


def pruned(share: float, **more: Any) -> Model:
    """`network` with a dense layer of 64 inputs behind it; of its blocks the share `share` is zero."""
    from tvmopt.compress.pruning import prune

    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    ]  # fmt: skip
    module, inputs = nn.Sequential(*layers), torch.randn(1, 3, 12, 12)
    if share:
        prune(module, "block", share, (inputs,))
    return from_module(module, inputs, name="pruned")


def planned(monkeypatch: pytest.MonkeyPatch, model: Model, seconds: Any, **before: str) -> dict[str, str]:
    """The strategies that come of `seconds`, a function of a candidate's name."""
    monkeypatch.setattr(strategies, "_time", lambda contenders, *_: {c.name: seconds(c.name) for c in contenders})
    machine = detect()
    return strategies.measure_strategies(model, machine, rules(machine.kind), before, lambda _: None)


DENSE_90, DENSE_50 = "dense 1x64x32 kept 6", "dense 1x64x32 kept 32"


@pytest.mark.slow
def test_a_dense_layer_takes_what_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned(0.9)
    for slow, fast in (("sparse", "packed"), ("packed", "sparse")):
        found = planned(monkeypatch, model, lambda name, slow=slow: 2.0 if name.endswith(slow) else 1.0)
        assert found[DENSE_90] == fast
        ops = [kernel.op for kernel in lower_model(model, detect(), found).kernels]
        # The last layer has no blocks to prune.
        assert (ops.count("dense_sparse"), ops.count("dense")) == ((1, 1) if fast == "sparse" else (0, 2))


@pytest.mark.slow
def test_where_sparse_is_slower_everywhere_a_pruned_network_has_the_kernels_of_its_dense_self(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seconds(name: str) -> float:
        return {"sparse": 9.0, "winograd-f4": 3.0}.get(name.rpartition(" ")[2], 1.0)

    whole, same = pruned(0.0), pruned(0.9)
    kernels = [
        [kernel.key for kernel in lower_model(model, detect(), planned(monkeypatch, model, seconds)).kernels]
        for model in (whole, same)
    ]
    assert kernels[0] == kernels[1]
    # By the rule, which has measured nothing, they differ.
    assert [kernel.key for kernel in lower_model(same, detect()).kernels] != kernels[0]


def test_a_layer_is_told_by_its_sizes_however_it_is_computed() -> None:
    whole, sparse = (lower_model(pruned(share), detect()).kernels for share in (0.0, 0.9))
    named = [[k.geometry for k in kernels if k.geometry is not None] for kernels in (whole, sparse)]
    assert len(named[0]) == 5 and "1x64x32" in named[0] and "1x64x32 kept 6" in named[1]
    assert [without_kept(geometry) for geometry in named[1]] == named[0]


@pytest.mark.slow
def test_a_network_pruned_anew_is_measured_anew_where_it_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = list[str]()

    def seconds(name: str) -> float:
        timed.append(name)
        return 1.0 if name.endswith("sparse") else 2.0

    at_90 = planned(monkeypatch, pruned(0.9), seconds)
    assert set(at_90) >= {DENSE_90} and DENSE_50 not in at_90
    timed.clear()
    assert planned(monkeypatch, pruned(0.9), seconds, **at_90) == at_90 and not timed
    both = planned(monkeypatch, pruned(0.5), lambda name: seconds(name) + 4 * name.endswith("sparse"), **at_90)
    assert both[DENSE_90] == "sparse" and both[DENSE_50] == "packed" and "1x64x32 kept 32 by sparse" in timed
    # Of what is not pruned all was known.
    assert not [name for name in timed if name.startswith("1x3x12x12")]
    # So the record of 90% forces nothing upon 50%.
    ops = {kernel.op for kernel in lower_model(pruned(0.5), detect(), both).kernels}
    assert not [op for op in ops if "sparse" in op]


@pytest.mark.slow
def test_every_way_of_a_pruned_network_is_really_timed() -> None:
    machine, notes, model = detect(), list[str](), pruned(0.9)
    found = strategies.measure_strategies(model, machine, rules(machine.kind), {}, notes.append)
    (line,) = [note for note in notes if note.startswith(f"{DENSE_90}: ")]
    assert "packed " in line and "sparse " in line
    (line,) = [note for note in notes if note.startswith("conv2d 1x16x12x12 32 3x3 stride 1x1 pad 1,1,1,1 kept ")]
    assert all(f"{way} " in line for way in ("direct", "winograd-f4", "sparse"))
    assert lower_model(model, machine, found).strategies == found


def test_a_sparse_kernel_is_timed_over_the_whole_input() -> None:
    """With the same offset for all blocks it would read one line of the cache, and seem faster than it is."""
    import numpy as np
    import tvm

    from tvmopt.registry import apply_rule
    from tvmopt.tuning.strategy_worker import StrategyWorker

    machine = detect()
    (kernel,) = [k for k in lower_model(pruned(0.9), machine).kernels if k.op == "dense_sparse"]
    scheduled = apply_rule(kernel, machine, rules(machine.kind))
    assert scheduled is not None
    worker = StrategyWorker()
    worker.add("one", tvm.ir.save_json(scheduled.schedule.mod), dict(machine.target().export()), (1, 2), 0)
    (arguments,) = worker._kernels["one"][1]
    (offsets,) = [array for array in (argument.numpy() for argument in arguments) if array.dtype == np.int32]
    assert offsets.min() >= 0 and offsets.max() < 64 and all(len(set(row)) == 6 for row in offsets)


@pytest.mark.slow
def test_a_log_keeps_what_it_knew_of_another_sparsity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where a file is pruned anew under its name: the weights' shapes are the same, and so is the log."""
    from tests.tuning.conftest import Silent
    from tvmopt import tune
    from tvmopt.options import BuildOptions
    from tvmopt.tuning.network import Compared

    def times(contenders: Any, *_: Any) -> dict[str, float]:
        return {c.name: 1.0 if c.name.endswith("sparse") else 2.0 for c in contenders}

    monkeypatch.setattr(strategies, "_time", times)
    # Nothing is faster than manual's, so its plan is kept at the end: not at the price of the strategies.
    monkeypatch.setattr(tune, "_compare", lambda *_: Compared(1.0, 1.0, 1.0))
    options = BuildOptions(log_dir=tmp_path)
    at_90, at_50 = (
        tune.tune(pruned(share), trials=1, options=options, report=Silent()) for share in (0.9, 0.5)
    )  # fmt: skip
    assert at_90.path == at_50.path
    assert DENSE_90 in at_90.manifest.strategies and DENSE_50 not in at_90.manifest.strategies
    assert {DENSE_90, DENSE_50} <= set(at_50.manifest.strategies)
    assert at_90.manifest.strategies.items() <= at_50.manifest.strategies.items()
