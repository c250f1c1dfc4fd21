"""The choice of each convolution's strategy: what is asked for, what a log has measured, the cost rule."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tests.kernels.support import compiled
from tvmopt.graph.pipeline import lower_model
from tvmopt.graph.strategy import cost, decide, decide_dense, is_resident, ways
from tvmopt.machine import detect
from tvmopt.model import from_module
from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.dense import Dense
from tvmopt.runtime.verify import check


def conv(channels: int = 64, size: int = 56, out: int | None = None, kernel: int = 3, stride: int = 1) -> Conv2d:
    pad = kernel // 2
    out = out or channels
    return Conv2d(1, channels, out, (size, size), (kernel, kernel), (stride, stride), (pad,) * 4, (1, 1), 1, 16)  # type: ignore[arg-type]


def plan(chosen: Conv2d, *, resident: bool = False, **strategies: str) -> str:
    return decide(chosen, strategies, plain_input=False, resident=resident)


def test_winograd_where_arithmetic_binds_and_direct_where_weights_do() -> None:
    assert plan(conv(64, 56)) == "winograd-f4"
    # So many channels that the larger tile's weights cost more than it saves; and so few pixels that any tile's do.
    assert plan(conv(512, 7)) == "winograd-f2"
    assert plan(conv(2048, 3)) == "direct"
    assert plan(conv(512, 7), resident=True) == "winograd-f4"


def test_what_winograd_cannot_do_is_direct() -> None:
    for other in (conv(stride=2), conv(kernel=5), conv(kernel=1)):
        assert plan(other) == plan(other, conv2d="winograd") == plan(other, conv2d="winograd-f4") == "direct"
        assert "winograd-f4" not in ways(other, plain_input=False)


def test_sparse_where_enough_is_zero() -> None:
    whole = 64 * 9
    rated = {share: plan(dataclasses.replace(conv(), kept=round(share * whole))) for share in (0.1, 0.2, 0.9)}
    assert rated == {0.1: "sparse", 0.2: "sparse", 0.9: "winograd-f4"}
    wide = conv(256, 14, kernel=1)
    assert plan(dataclasses.replace(wide, kept=128)) == "sparse"
    assert plan(dataclasses.replace(wide, kept=250)) == "direct"
    assert "sparse" not in ways(wide, plain_input=False)


def test_unstructured_where_single_weights_are_left() -> None:
    wide = conv(512, 14)
    weights = 512 * 512 * 9
    assert plan(dataclasses.replace(wide, nonzeros=weights // 20)) == "unstructured"
    assert plan(dataclasses.replace(wide, nonzeros=weights // 2)) != "unstructured"
    assert "unstructured" not in ways(wide, plain_input=False)
    assert "unstructured" in ways(dataclasses.replace(conv(3, 56), nonzeros=9), plain_input=True)
    # More than a row of the image, and registers do not hold it.
    assert "unstructured" not in ways(dataclasses.replace(conv(64, 500), nonzeros=9), plain_input=False)


def dense(kept: int | None, rows: int = 1, nonzeros: int | None = None, **strategies: str) -> str:
    return decide_dense(Dense(rows, 1024, 1024, kept, nonzeros), strategies, 16)


def test_a_dense_layer_is_sparse_where_enough_is_zero() -> None:
    assert dense(100) == "sparse" and dense(1000) == "packed"
    assert dense(700) == "sparse" and dense(700, 32) == "packed"
    assert dense(None) == "packed" and dense(None, dense="sparse") == "sparse"
    few, many = 1024 * 1024 // 20, 1024 * 1024 // 2
    assert dense(None, nonzeros=few) == "unstructured" and dense(None, nonzeros=many) == "packed"
    assert dense(None, 32, few) == "unstructured" and dense(None, 32, many) == "packed"


def test_what_was_measured_of_a_dense_layer_holds_for_as_many_kept_blocks_only() -> None:
    measured = {
        "dense 1x1024x1024 kept 100": "packed", "dense 32x1024x1024 kept 900": "sparse",
        "dense 1x1024x1024 nonzeros 99": "packed",
    }  # fmt: skip
    assert dense(100, **measured) == "packed" and dense(101, **measured) == "sparse"
    assert dense(900, 32, **measured) == "sparse" and dense(901, 32, **measured) == "packed"
    assert dense(100, **measured, dense="sparse") == "sparse"
    assert dense(None, nonzeros=99, **measured) == "packed" and dense(None, nonzeros=98, **measured) == "unstructured"


def test_what_is_asked_for_comes_before_the_rule() -> None:
    chosen = conv(64, 56)
    assert plan(chosen, conv2d="direct") == "direct"
    assert plan(chosen, conv2d="gemm") == "gemm"
    assert plan(chosen, conv2d="winograd-f2") == "winograd-f2"
    assert plan(conv(512, 7), conv2d="winograd") == "winograd-f2"


def test_what_a_log_has_measured_comes_before_the_rule_but_not_before_what_is_asked_for() -> None:
    chosen = conv(64, 56)
    measured = {f"conv2d {chosen.geometry}": "gemm"}
    assert decide(chosen, measured, plain_input=False, resident=False) == "gemm"
    assert decide(chosen, {**measured, "conv2d": "direct"}, plain_input=False, resident=False) == "direct"
    assert decide(conv(64, 28), measured, plain_input=False, resident=False) == "winograd-f4"


def test_a_log_of_one_sparsity_says_nothing_of_another() -> None:
    at_90, at_50 = (dataclasses.replace(conv(64, 56), kept=kept) for kept in (58, 288))
    measured = {f"conv2d {at_90.geometry}": "sparse"}
    assert decide(at_90, measured, plain_input=False, resident=False) == "sparse"
    assert decide(at_50, measured, plain_input=False, resident=False) == plan(at_50) != "sparse"
    # And one of the dense network nothing of a pruned one.
    of_dense = {f"conv2d {conv(64, 56).geometry}": "direct"}
    assert decide(at_90, of_dense, plain_input=False, resident=False) == "sparse"


def test_costs_grow_with_what_is_computed_and_read() -> None:
    small, large = conv(64, 28), conv(64, 56)
    for way in ways(small, plain_input=False):
        assert cost(small, way, resident=True) < cost(small, way, resident=False) < cost(large, way, resident=False)


def test_geometries_differ_by_everything_that_makes_another_kernel() -> None:
    some = [conv(), conv(size=28), conv(out=32), conv(kernel=5), conv(stride=2)]
    assert len({item.geometry for item in some}) == len(some)


def test_weights_stay_in_half_of_the_last_cache() -> None:
    machine = detect()
    assert is_resident(machine.l3 // 2, machine) and not is_resident(machine.l3 // 2 + 1, machine)


@pytest.mark.parametrize("asked", [{}, {"conv2d": "direct"}, {"conv2d": "winograd-f2"}])
def test_a_lowering_can_be_repeated_from_what_it_says_of_itself(asked: dict[str, str]) -> None:
    module = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 8, 1))
    model = from_module(module, torch.randn(1, 16, 20, 20))
    first = lower_model(model, detect(), asked)
    assert len(first.strategies) == 3
    again = lower_model(model, detect(), first.strategies)
    assert [kernel.key for kernel in again.kernels] == [kernel.key for kernel in first.kernels]


def test_a_pruned_network_mixes_strategies_and_computes_the_same() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    with torch.no_grad():
        # Blocks of 16 outputs: one in ten is kept of the second convolution, all of the third.
        layers[2].weight.mul_((torch.rand(2, 32, 3, 3) < 0.1).repeat_interleave(16, 0))
    model = from_module(layers, torch.randn(1, 3, 20, 20))
    lowered = lower_model(model, detect())
    assert sorted(lowered.strategies.values())[1:] == ["sparse", "winograd-f4"]
    assert any(" kept " in geometry for geometry in lowered.decided)
    again = lower_model(model, detect(), lowered.strategies)
    assert [kernel.key for kernel in again.kernels] == [kernel.key for kernel in lowered.kernels]
    built, _ = compiled(model)
    with torch.no_grad():
        wanted = layers.double()(*[x.double() for x in model.example_inputs])
    assert check(built(*model.example_inputs), wanted, strategy=lowered.strategies, top1=False).ok


def test_what_an_offset_cannot_hold_is_not_sparse() -> None:
    """Of a 3x3 window an int32 has room for an input of 2^27 values, an offset naming its tap as well."""

    def sparse(side: int, **asked: str) -> str:
        conv = Conv2d(1, 128, 16, (side, side), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, 100)
        return decide(conv, {"conv2d": "plan", **asked}, plain_input=False, resident=True)

    assert sparse(1023) == "sparse" and sparse(1023, conv2d="sparse") == "sparse"
    assert sparse(1025) != "sparse" and sparse(1025, conv2d="sparse") == "direct"
