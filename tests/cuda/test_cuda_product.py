"""The product on the fp32 units: matrix products and convolutions at boundary shapes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tvmopt.schedules.cuda import LADDERS

from bench.cuda_proof import check
from bench.cuda_proof.cases.base import Case
from bench.cuda_proof.cases.product import convolution_cases, convolutions, product_cases, products
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, COMPILED, compiled, executed, needs_nvcc, scheduled
from tvmopt.machine import named_gpu
from tvmopt.tuning.log import structural_hash

CASES = {"product": product_cases, "convolution": convolution_cases}
LARGE = products(2048, 2048, 2048)
IMAGE = convolutions(
    {"batch": 1, "in": 64, "out": 64, "size": 56, "kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1}
)


def some(kind: str, count: int) -> list[Case]:
    """A seeded few of the pairs of boundary values."""
    return random.Random(0).sample(CASES[kind](2), count)


@pytest.mark.parametrize("kind", CASES)
def test_opencl_gives_pytorchs_results(kind: str) -> None:
    for case in some(kind, 6):
        executed(case)


def test_opencl_groups_do_not_write_into_each_other() -> None:
    # A tile is wider than a group, and blocks run in any order: one run in five showed it.
    row = dict(batch=1, out=64, size=7, kernel=5, stride=2, padding=1, dilation=1, groups=4) | {"in": 32}
    for _ in range(10):
        executed(convolutions(row))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_opencl_every_pair_of_boundary_values(kind: str) -> None:
    for case in CASES[kind](2):
        executed(case)


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("case", [LARGE, IMAGE], ids=["gemm", "conv2d"])
def test_cuda_instructions(case: Case, arch: str) -> None:
    code = compiled(case, arch)
    # 2 blocks of 256 threads have an SM's 65536 registers.
    assert code.registers <= 128 and code.spilled == 0
    for instruction in ("LDGSTS.E.BYPASS.128", "LDS.128", "STG.E.128", "FFMA"):
        assert code.has(instruction), instruction


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_boundary_shapes_compile(arch: str) -> None:
    for kind in CASES:
        for case in some(kind, 2):
            compiled(case, arch)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_many_boundary_values_compile(arch: str) -> None:
    for kind in CASES:
        for case in random.Random(arch).sample(CASES[kind](2), COMPILED):
            compiled(case, arch)


@pytest.mark.parametrize("index", range(len(LADDERS["product"])), ids=[rung.name for rung in LADDERS["product"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(products(129, 100, 67), choose=Taken(LADDERS["product"], index))


def test_cuda_every_rung_is_another_schedule() -> None:
    """The first has a warp's results below each other, in the second they are side by side."""
    made = [scheduled(LARGE, choose=Taken(LADDERS["product"], i)) for i in range(len(LADDERS["product"]))]
    assert len({structural_hash(one.schedule.mod) for one in made}) == len(made)
    texts = [check.source(one, named_gpu("sm_80")).text for one in made[:2]]
    assert ["threadIdx.x) * 2048" in text for text in texts] == [True, False]


def test_opencl_other_choices() -> None:
    # What search may choose: a few tiles far from the rule's own.
    for given in ({"warps_down": 1, "warps_across": 1}, {"rows": 8, "vectors": 2, "depth": 8, "stages": 4}):
        executed(products(150, 140, 67), choose=_chosen(given))


def _chosen(given: dict[str, Any]) -> Any:
    from tvmopt.registry import Recorder

    return Recorder(given)
