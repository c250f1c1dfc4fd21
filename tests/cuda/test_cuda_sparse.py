"""Block-sparse products, and 1x1 convolutions over pixels, at boundary shapes."""

from __future__ import annotations

import dataclasses

import pytest
from tvmopt.schedules.cuda import LADDERS

from bench.cuda_proof.cases.sparse import STRIDED, boundary, case, strided
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc

CASES = boundary()


def test_opencl_gives_the_masked_products_results() -> None:
    for one in CASES[::5]:
        executed(one)


def test_opencl_a_stride_takes_every_so_many_pixels() -> None:
    for sizes in STRIDED:
        executed(strided(*sizes))


@pytest.mark.slow
def test_opencl_every_pair_of_boundary_values() -> None:
    for one in CASES:
        executed(one)


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_instructions(arch: str) -> None:
    """Weights and a thread's rows come 4 at a time, and nothing is spilled."""
    code = compiled(case((8, 56, 56), 64, 256, "some"), arch)
    assert code.registers <= 128
    for instruction in ("LDG.E.128.CONSTANT", "STG.E.128", "FFMA", "LDS", "STS"):
        assert code.has(instruction), instruction


@pytest.mark.parametrize("index", range(len(LADDERS["sparse"])), ids=[rung.name for rung in LADDERS["sparse"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(case((132,), 67, 100, "some"), choose=Taken(LADDERS["sparse"], index))


def test_opencl_other_choices() -> None:
    from tvmopt.registry import Recorder

    many = case((4, 12, 11), 33, 48, "some")
    for rows in (1, 2, 4):
        executed(dataclasses.replace(many), choose=Recorder({"rows": rows}))
