"""Depthwise convolution in NHWC at boundary shapes."""

from __future__ import annotations

import random

import pytest
from tvmopt.schedules.cuda import LADDERS

from bench.ladder import Taken
from tests.cuda.cases import Case, convolutions
from tests.cuda.support import ARCHITECTURES, COMPILED, compiled, executed, needs_nvcc
from tests.kernels.covering import covering
from tvmopt.operators.conv2d_nhwc import conv2d_depthwise_nhwc

FACTORS = {
    "batch": [1, 3], "channels": [1, 3, 16, 17, 31, 32, 33, 96], "size": [7, 8, 13, 28], "kernel": [1, 3, 5],
    "stride": [1, 2], "padding": [0, 1, 2], "dilation": [1, 2],
}  # fmt: skip


def case(**row: int) -> Case:
    """A depthwise convolution of `channels`."""
    channels = row.pop("channels")
    return convolutions({**row, "in": channels, "out": channels}, operator=conv2d_depthwise_nhwc)


def cases() -> list[Case]:
    """Every pair of boundary values."""

    def valid(row: dict[str, int]) -> bool:
        fits = (row["kernel"] - 1) * row["dilation"] + 1 <= row["size"] + 2 * row["padding"]
        return fits and row["padding"] < row["kernel"]

    return [case(**row) for row in covering(FACTORS, 2, valid)]


MOBILE = {"batch": 1, "channels": 96, "size": 112, "kernel": 3, "stride": 1, "padding": 1, "dilation": 1}


def test_opencl_gives_pytorchs_results() -> None:
    for some in random.Random(0).sample(cases(), 6):
        executed(some)


@pytest.mark.slow
def test_opencl_every_pair_of_boundary_values() -> None:
    for some in cases():
        executed(some)


@pytest.mark.parametrize("index", range(len(LADDERS["depthwise"])), ids=[r.name for r in LADDERS["depthwise"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(case(**{**MOBILE, "size": 28}), choose=Taken(LADDERS["depthwise"], index))


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_instructions(arch: str) -> None:
    code = compiled(case(**MOBILE), arch)
    assert code.spilled == 0 and code.registers <= 128
    assert code.has("LDG.E.128") and code.has("STG.E.128") and code.has("FFMA")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_many_boundary_values_compile(arch: str) -> None:
    for some in random.Random(arch).sample(cases(), COMPILED):
        compiled(some, arch)
