"""What a rule does is kept as a trace: each must survive the log's JSON and give the same program again."""

from __future__ import annotations

import json

import pytest
import torch
import tvm
from torch import nn
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.s_tir.meta_schedule.database import TuningRecord, Workload
from tvm_ffi import structural_equal

from tests.kernels.support import side_by_side
from tests.kernels.test_others import Apply
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import detect
from tvmopt.registry import Recorder, apply_rule, rules

# Layers and inputs that take every rule, and every way through one.
LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(3, 17, 7, 2, 3), (1, 3, 29, 29)),
    (nn.Conv2d(32, 32, 3, padding=1), (3, 32, 14, 14)),
    (nn.Conv2d(64, 32, 3, 2, 1, groups=2), (1, 64, 17, 17)),
    (nn.Conv2d(48, 33, 1), (1, 48, 13, 13)),
    (nn.Conv2d(24, 24, 3, padding=1, groups=24), (1, 24, 15, 15)),
    (nn.Linear(100, 10), (1, 100)),
    (nn.Linear(33, 17), (57, 33)),
    (nn.Linear(1024, 32), (128, 1024)),
    (nn.Linear(1024, 33), (131, 1024)),
    (nn.Linear(2500, 32), (128, 2500)),
    (Apply(lambda x: torch.matmul(x * 0.5, (x + 1.0).transpose(-1, -2))), (2, 3, 16, 31)),
    (nn.Sequential(nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), (1, 3, 18, 18)),
    (nn.Softmax(-1), (65, 100)),
    (nn.LayerNorm(96), (50, 96)),
]


@pytest.mark.parametrize(
    "strategy", ["direct", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sparse", "gemm", "winograd"))]
)
def test_every_trace_survives_the_log(strategy: str) -> None:
    machine = detect()
    model = side_by_side([layer for layer, _ in LAYERS], [shape for _, shape in LAYERS])
    taken, alternatives = set(), 0
    strategies = {"conv2d": strategy, "dense": "sparse" if strategy == "sparse" else "packed"}
    for kernel in lower_model(model, machine, strategies).kernels:
        asked = Recorder()
        apply_rule(kernel, machine, rules(machine.kind), asked)
        # The defaults, and every other way a word (and not a number) or an end of a range can decide.
        others = [{name: value} for name, values in asked.candidates.items() for value in {values[0], values[-1]}]
        for choices in [{}, *others]:
            scheduled = apply_rule(kernel, machine, rules(machine.kind), Recorder(choices))
            assert scheduled is not None, kernel.name
            taken.add(scheduled.rule.name)
            alternatives += bool(choices)
            text = _through_json(kernel.func, scheduled.schedule)
            again = Schedule(tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")}))
            tvm.s_tir.schedule.Trace.apply_json_to_schedule(text, again)
            assert structural_equal(again.mod["main"], scheduled.schedule.mod["main"]), (kernel.name, choices)
    anchors = {
        "direct": {"conv2d_direct", "conv2d_pointwise", "dense"},
        "sparse": {"conv2d_sparse", "conv2d_sparse_pointwise", "dense_sparse"},
    }.get(strategy, {f"conv2d_{strategy}", "dense"})
    assert taken >= {*anchors, "conv2d_depthwise", "batch_matmul", "fallback"}
    assert alternatives > 50


def _through_json(func: tvm.tirx.PrimFunc, schedule: Schedule) -> list[object]:
    """The trace as the log writes and reads it."""
    workload = Workload(tvm.IRModule({"main": func}))
    record = TuningRecord(schedule.trace, workload, [1.0], detect().target(), ArgInfo.from_prim_func(func))
    trace, *_ = json.loads(json.dumps(record.as_json()))
    return list(trace)
