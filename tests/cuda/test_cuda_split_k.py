"""Products of few rows and a long depth, split among the threads of a block."""

from __future__ import annotations

from typing import Any

import pytest
from tvmopt.schedules.cuda import LADDERS

from bench.ladder import Taken
from tests.cuda.cases import Case, convolutions, products
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc, scheduled
from tests.kernels.covering import covering
from tvmopt.registry import Recorder


def image(size: int, channels: int, out: int, kernel: int = 1, batch: int = 1, stride: int = 1) -> Case:
    """A convolution at the end of a network: few pixels, many channels."""
    geometry = {"stride": stride, "padding": kernel // 2, "dilation": 1, "groups": 1}
    return convolutions({"batch": batch, "in": channels, "out": out, "size": size, "kernel": kernel} | geometry)


CLASSIFIER = products(1, 1000, 2048)
LAST_LAYER = image(7, 2048, 512)
FEW = [
    CLASSIFIER, LAST_LAYER, products(3, 33, 512), products(17, 31, 1000), products(8, 2, 4096), products(32, 10, 64),
    image(7, 64, 33, kernel=3), image(8, 128, 40, batch=2, stride=2),
]  # fmt: skip
SHAPES: dict[str, list[Any]] = {
    "rows": [1, 2, 3, 7, 8, 9, 17],
    "columns": [1, 7, 8, 9, 31, 32, 33, 100, 1000],
    "depth": [64, 68, 120, 128, 1000, 2048, 4100],
}


@pytest.mark.parametrize("one", FEW, ids=lambda case: case.label)
def test_opencl_gives_pytorchs_results(one: Case) -> None:
    assert scheduled(one).rule.name == "split_k"
    executed(one)


@pytest.mark.slow
def test_opencl_every_pair_of_boundary_values() -> None:
    for row in covering(SHAPES, 2, lambda _: True):
        executed(products(**row))


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


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("one", [CLASSIFIER, LAST_LAYER], ids=["classifier", "convolution"])
def test_cuda_instructions(one: Case, arch: str) -> None:
    """Sums are in registers, and one kernel adds the shares up."""
    code = compiled(one, arch)
    assert code.spilled == 0 and code.registers <= 64 and not code.has("LDL") and not code.has("STL")
    assert code.has("FFMA") and code.has("BAR.SYNC") and not code.has("RED") and not code.has("ATOMG")
