"""Element-wise chains at boundary sizes."""

from __future__ import annotations

import pytest
from tvmopt.schedules.cuda import LADDERS

from bench.cuda_proof.cases.base import HALF
from bench.cuda_proof.cases.elementwise import boundary, chain, wide
from bench.ladder import Taken
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc


def test_opencl_gives_numpys_results() -> None:
    for case in boundary():
        executed(case)


@pytest.mark.parametrize("index", range(len(LADDERS["elementwise"])), ids=[r.name for r in LADDERS["elementwise"]])
def test_opencl_runs_every_rung(index: int) -> None:
    executed(chain(3, 5, 64), choose=Taken(LADDERS["elementwise"], index))


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_instructions(arch: str) -> None:
    code = compiled(chain(8, 56, 56, 64), arch)
    assert code.spilled == 0 and code.registers <= 32
    assert code.has("LDG.E.128") and code.has("STG.E.128")


@needs_nvcc
@pytest.mark.parametrize("dtype", HALF)
def test_cuda_half_precision(dtype: str) -> None:
    """128 bits a thread; 64 where what is computed in between is fp32."""
    assert compiled(chain(8, 56, 56, 64, dtype=dtype), "sm_90").has("LDG.E.128")
    assert compiled(wide(2048, dtype=dtype), "sm_90").has("LDG.E.64")
