"""The product on tensor cores, which nothing but a GPU executes: its machine code at boundary shapes."""

from __future__ import annotations

import random

import pytest
from tvmopt.schedules.cuda import LADDERS
from tvmopt.schedules.cuda.fragments import element, place

from bench.cuda_proof.cases.product import convolutions, products
from bench.cuda_proof.cases.tensor_core import DTYPES, boundary
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, COMPILED, compiled, needs_nvcc


def test_cuda_fragment_places() -> None:
    assert len({place(i, j) for i in range(16) for j in range(16)}) == 256
    assert all(element(*place(i, j)) == (i, j) for i in range(16) for j in range(16))
    # "Matrix Fragments for mma.m16n8k16": thread 5 holds columns 2 and 3 of row 1, and of row 9.
    assert [place(1, 2), place(1, 3), place(9, 2)] == [(5, 0), (5, 1), (5, 2)]


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_instructions(dtype: str, arch: str) -> None:
    code = compiled(products(1024, 1024, 1024, dtype=dtype), arch)
    assert code.spilled == 0 and code.registers <= 255
    for instruction in ("HMMA.16816.F32", "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128"):
        assert code.has(instruction), instruction


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_convolution(arch: str) -> None:
    row = dict(batch=1, out=64, size=28, kernel=3, stride=1, padding=1, dilation=1, groups=1) | {"in": 64}
    code = compiled(convolutions(row, "float16"), arch)
    assert code.has("HMMA.16816.F32") and code.has("LDGSTS.E.BYPASS.128")


@needs_nvcc
def test_cuda_boundary_shapes_compile() -> None:
    for case in random.Random(0).sample(boundary(), 2):
        assert compiled(case, "sm_90").has("HMMA")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_many_boundary_values_compile(arch: str) -> None:
    for case in random.Random(arch).sample(boundary(), COMPILED):
        assert compiled(case, arch).has("HMMA")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(LADDERS["tensor_core"])), ids=[r.name for r in LADDERS["tensor_core"]])
def test_cuda_every_rung_compiles(index: int) -> None:
    assert compiled(products(257, 192, 128, dtype="float16"), "sm_80", Taken(LADDERS["tensor_core"], index)).has("HMMA")
