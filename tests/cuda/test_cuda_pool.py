"""Pooling in NHWC at boundary shapes."""

from __future__ import annotations

import pytest
from tvmopt.schedules.cuda import LADDERS

from bench.cuda_proof.cases.pool import boundary, pool
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc


def test_opencl_gives_pytorchs_results() -> None:
    for case in boundary():
        executed(case)


@pytest.mark.parametrize("index", range(len(LADDERS["pool"])), ids=[rung.name for rung in LADDERS["pool"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(pool("max", (1, 28, 28, 64), 3, 2, 1), choose=Taken(LADDERS["pool"], index))


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_instructions(arch: str) -> None:
    code = compiled(pool("max", (1, 112, 112, 64), 3, 2, 1), arch)
    assert code.spilled == 0 and code.has("LDG.E.128") and code.has("STG.E.128")


@needs_nvcc
@pytest.mark.parametrize("kind, dtype, load", [("max", "float16", "LDG.E.128"), ("avg", "bfloat16", "LDG.E.64")])
def test_cuda_half_precision(kind: str, dtype: str, load: str) -> None:
    """128 bits a load; 64 for averages, whose border is a constant of fp32: TVM makes vectors of 4 of such only."""
    code = compiled(pool(kind, (1, 112, 112, 64), 3, 2, 1, dtype), "sm_90")
    assert code.spilled == 0 and code.has(load)
