"""Depthwise convolution in NHWC at boundary shapes."""

from __future__ import annotations

import random

import pytest
from tvmopt.schedules.cuda import LADDERS

from bench.cuda_proof.cases.base import HALF
from bench.cuda_proof.cases.depthwise import MOBILE, boundary, case
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, COMPILED, compiled, executed, needs_nvcc


def test_opencl_gives_pytorchs_results() -> None:
    for some in random.Random(0).sample(boundary(), 6):
        executed(some)


@pytest.mark.slow
def test_opencl_every_pair_of_boundary_values() -> None:
    for some in boundary():
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
@pytest.mark.parametrize("dtype", HALF)
def test_cuda_half_precision_is_loaded_by_128_bits(dtype: str) -> None:
    """8 channels a thread, whose sums are in fp32 registers."""
    code = compiled(case(dtype, **MOBILE), "sm_90")
    assert code.spilled == 0 and code.registers <= 128 and not code.has("LDL")
    assert code.has("LDG.E.128") and code.has("STG.E.128") and code.has("FFMA") and not code.has("LDG.E.64")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_many_boundary_values_compile(arch: str) -> None:
    for some in random.Random(arch).sample(boundary(), COMPILED):
        compiled(some, arch)
