"""The choice of each convolution's strategy on a GPU: what is asked for, what a log has measured, the cost rule."""

from __future__ import annotations

import dataclasses

import pytest

from tvmopt.graph.strategy_gpu import decide, decide_dense, product_seconds, seconds, ways
from tvmopt.machine import named_gpu
from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.dense import Dense

A100, H100 = named_gpu("sm_80"), named_gpu("sm_90")


def conv(
    channels: int = 256, size: int = 14, batch: int = 32, kernel: int = 3, stride: int = 1, dilation: int = 1,
    groups: int = 1,
) -> Conv2d:  # fmt: skip
    pad = kernel // 2
    return Conv2d(
        batch, channels, channels, (size, size), (kernel, kernel), (stride, stride), (pad,) * 4, (dilation,) * 2,
        groups, 1,
    )  # fmt: skip


def plan(chosen: Conv2d, dtype: str = "float32", **strategies: str) -> str:
    return decide(chosen, dtype, strategies, H100)


def test_winograd_where_arithmetic_binds_and_direct_where_bytes_or_launches_do() -> None:
    assert plan(conv()) == "winograd-f4"
    assert plan(conv(channels=16, size=112)) == "direct"
    assert plan(conv(batch=1)) == "direct"
    # So few pixels that the larger tile is mostly fill, and its weights take the time.
    assert decide(conv(channels=512, size=7, batch=1), "float32", {}, A100) == "winograd-f2"


def test_the_cost_is_arithmetic_bytes_and_launches() -> None:
    assert seconds(conv(batch=64), "direct", H100) > 1.9 * seconds(conv(), "direct", H100)
    # F(4x4) multiplies 1.78 times less than F(2x2), at tiles that 16 pixels divide.
    large = conv(channels=1024, size=16, batch=64)
    assert 1.5 < seconds(large, "winograd-f2", H100) / seconds(large, "winograd-f4", H100) < 1.78
    assert seconds(conv(), "winograd-f4", A100) > seconds(conv(), "winograd-f4", H100)


@pytest.mark.parametrize(
    "other", [conv(stride=2), conv(dilation=2), conv(groups=4), conv(kernel=5), conv(kernel=1), conv(channels=8)]
)
def test_what_winograd_cannot_do_is_direct(other: Conv2d) -> None:
    assert ways(other, "float32") == ("direct",)
    assert plan(other) == plan(other, conv2d="winograd") == plan(other, conv2d="winograd-f4") == "direct"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_direct(dtype: str) -> None:
    assert plan(conv(), dtype) == plan(conv(), dtype, conv2d="winograd") == "direct"


def test_what_is_asked_for_comes_before_the_rule() -> None:
    small = conv(batch=1)
    assert plan(small, conv2d="winograd-f2") == "winograd-f2"
    assert plan(small, conv2d="winograd") == "winograd-f4"
    # The implicit product is both ways of the CPU's.
    assert plan(conv(), conv2d="direct") == plan(conv(), conv2d="gemm") == "direct"


def test_what_a_log_has_measured_comes_before_the_rule() -> None:
    chosen = conv()
    measured = {f"conv2d {chosen.geometry}": "winograd-f2"}
    assert decide(chosen, "float32", measured, H100) == "winograd-f2"
    assert decide(chosen, "float32", {**measured, "conv2d": "direct"}, H100) == "direct"


def pruned(zeros: float, **sizes: int) -> Conv2d:
    """A 1x1 convolution of 1024 to 1024 channels of which this share is zero in whole blocks."""
    chosen = conv(channels=1024, kernel=1, **sizes)
    return dataclasses.replace(chosen, kept=round((1 - zeros) * chosen.in_channels))


def test_cuda_sparse_where_it_is_clearly_ahead() -> None:
    assert [plan(pruned(zeros)) for zeros in (0.1, 0.5, 0.8, 0.9)] == ["direct", "direct", "sparse", "sparse"]
    assert plan(pruned(0.9, stride=2)) == "sparse"
    # One image's few pixels: the steps a thread takes one after the other bind, and a dense product has none.
    assert plan(pruned(0.9, batch=1, size=7)) == "direct"
    assert seconds(pruned(0.9), "sparse", H100) < seconds(pruned(0.8), "sparse", H100)


def test_cuda_sparse_is_for_pruned_1x1_convolutions_in_fp32() -> None:
    assert ways(pruned(0.9), "float32") == ("direct", "sparse")
    assert ways(pruned(0.9), "float16") == ways(conv(kernel=1), "float32") == ("direct",)
    padded = dataclasses.replace(pruned(0.9), padding=(1, 1, 1, 1))
    for other in (conv(), conv(kernel=1, groups=4), padded):
        assert plan(other, conv2d="sparse") == "direct"
    assert plan(pruned(0.9), "float16", conv2d="sparse") == "direct"
    # What is asked for is taken where it fits, zeros or none, as on a CPU.
    assert plan(conv(kernel=1), conv2d="sparse") == plan(pruned(0.1), conv2d="sparse") == "sparse"
    for way in ("winograd", "direct", "gemm"):
        assert plan(pruned(0.9), conv2d=way) == "direct"


def test_cuda_what_a_log_has_measured_of_a_pruned_convolution() -> None:
    sparse, dense = pruned(0.5), pruned(0.9)
    measured = {f"conv2d {sparse.geometry}": "sparse", f"conv2d {dense.geometry}": "direct"}
    assert [decide(one, "float32", measured, H100) for one in (sparse, dense)] == ["sparse", "direct"]


def dense(kept: int | None, rows: int = 1024, dtype: str = "float32", **strategies: str) -> str:
    return decide_dense(Dense(rows, 1024, 1024, kept), dtype, strategies, H100)


def test_cuda_dense_layers() -> None:
    assert dense(100) == "sparse" and dense(900) == dense(None) == "packed"
    assert dense(100, rows=1) == "packed"
    assert dense(None, dense="sparse") == "sparse" and dense(100, dense="packed") == "packed"
    assert dense(100, dtype="bfloat16") == dense(100, dtype="float16", dense="sparse") == "packed"


def test_cuda_what_a_log_has_measured_of_a_dense_layer() -> None:
    assert dense(100, rows=1, **{"dense 1x1024x1024 kept 100": "sparse"}) == "sparse"
    measured = {"dense 1024x1024x1024 kept 100": "packed"}
    assert dense(100, **measured) == "packed" and dense(101, **measured) == "sparse"
    assert dense(100, **measured, dense="sparse") == "sparse"
    assert dense(900, dtype="float16", **{"dense 1024x1024x1024 kept 900": "sparse"}) == "packed"


def test_cuda_sparse_costs_its_steps_its_operations_and_what_it_turns() -> None:
    few, many = Dense(1, 4096, 1024, 400), Dense(8192, 4096, 1024, 400)
    for one in (few, many):
        wider = dataclasses.replace(one, kept=800)
        assert 1.4 < product_seconds(wider, "sparse", H100) / product_seconds(one, "sparse", H100) < 2.0
    assert product_seconds(many, "sparse", H100) > 2 * product_seconds(few, "sparse", H100)
