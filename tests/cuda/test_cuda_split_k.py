"""Products of few rows and a long depth, split among the threads of a block."""

from __future__ import annotations

import random

import pytest
from tvmopt.schedules.cuda import LADDERS

from bench.cuda_proof.cases.base import Case
from bench.cuda_proof.cases.product import convolutions, products
from bench.cuda_proof.cases.split_k import boundary, image, typical
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc, scheduled
from tvmopt.machine import named_gpu
from tvmopt.registry import Recorder, rules
from tvmopt.tuning.template import Space


@pytest.mark.parametrize("one", typical(), ids=lambda case: case.label)
def test_opencl_gives_pytorchs_results(one: Case) -> None:
    assert scheduled(one).rule.name == "split_k"
    executed(one)


@pytest.mark.slow
def test_opencl_every_pair_of_boundary_values() -> None:
    for one in boundary():
        executed(one)


@pytest.mark.parametrize("index", range(len(LADDERS["split_k"])), ids=[rung.name for rung in LADDERS["split_k"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(products(49, 200, 256), choose=Taken(LADDERS["split_k"], index))


def test_opencl_other_choices() -> None:
    for given in ({"rows": 7, "across": 32, "shares": 4}, {"rows": 1, "across": 16, "shares": 32}):
        executed(products(14, 100, 1024), choose=Recorder(given))


def test_cuda_tiles_where_they_fill_the_gpu() -> None:
    """A large product, a short depth, a depth of unequal parts, tensor cores, several groups."""
    groups = {"batch": 1, "in": 512, "out": 512, "size": 7, "kernel": 1, "stride": 1, "padding": 0, "dilation": 1}
    tiles = [
        products(2048, 2048, 2048), products(1, 1000, 32), products(1, 1000, 2047),
        convolutions(groups | {"groups": 4}), products(1, 1000, 2048, dtype="float16"), image(56, 64, 64, kernel=3),
    ]  # fmt: skip
    assert "split_k" not in {scheduled(one).rule.name for one in tiles}


# By the estimate one is split and one is tiles.
EITHER = [products(3, 33, 512), products(192, 1000, 64)]


@pytest.mark.parametrize("one, rule, way", [(EITHER[0], "split_k", "tiles"), (EITHER[1], "product", "shares")])
def test_opencl_search_may_take_the_other_way(one: Case, rule: str, way: str) -> None:
    assert scheduled(one).rule.name == scheduled(one, choose=Recorder({"way": way})).rule.name == rule
    executed(one, choose=Recorder({"way": way}))


@pytest.mark.parametrize("one", EITHER, ids=lambda case: case.label)
def test_cuda_both_ways_are_one_space(one: Case) -> None:
    space = Space(one.kernel, named_gpu("sm_80"), rules("cuda"))
    drawn = [space.sample(random.Random(seed)) for seed in range(12)]
    points = [point for point in drawn if point is not None]
    assert {point.values["way"] for point in points} == {"tiles", "shares"}
    for point in points:
        assert ("across" in point.values) == (point.values["way"] == "shares")
        again = space.at(point.values)
        assert again is not None and again.candidate == point.candidate


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("one", typical()[:2], ids=["classifier", "convolution"])
def test_cuda_instructions(one: Case, arch: str) -> None:
    """Sums are in registers, and one kernel adds the shares up."""
    code = compiled(one, arch)
    assert code.spilled == 0 and code.registers <= 64 and not code.has("LDL") and not code.has("STL")
    assert code.has("FFMA") and code.has("BAR.SYNC") and not code.has("RED") and not code.has("ATOMG")
