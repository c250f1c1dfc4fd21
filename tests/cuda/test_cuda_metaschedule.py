"""MetaSchedule's spaces for GPUs: what they propose for products is bound to threads, or is on tensor cores."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import tirx
from tvm.s_tir import SBlock
from tvm_ffi import structural_walk

from bench.cuda_proof import check
from bench.cuda_proof.cases.base import Case
from bench.cuda_proof.cases.product import products
from bench.cuda_proof.device import assemble
from tests.cuda.support import has_pocl, needs_nvcc
from tvmopt.graph.gpu_default import unbound
from tvmopt.machine import named_gpu
from tvmopt.tuning import metaschedule

A100 = named_gpu("sm_80", cores=2)
# Rows that a tile of tensor cores divides, and one more.
ROWS = [256, 257]


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A population that is made in seconds."""
    for name, value in (("POPULATION", 8), ("GENERATIONS", 1), ("_FIRST_SAMPLES", 4)):
        monkeypatch.setattr(metaschedule, name, value)


def proposed(case: Case) -> list[metaschedule.Found]:
    """A batch of candidates, none of which has a block that no thread runs."""
    search = metaschedule.Evolution(case.kernel, A100, trials=4, batch=4)
    found = search.propose()
    search.close()
    assert found
    for one in found:
        assert not unbound(one.schedule.mod["main"])
        assert {"blockIdx", "threadIdx"} <= {tag.split(".")[0] for tag in bound_to(one.schedule.mod["main"])}
    return found


def bound_to(func: tirx.PrimFunc) -> set[str]:
    """The axes of the GPU that loops are bound to."""
    loops: list[tirx.For] = []
    structural_walk(func.body, (tirx.For, loops.append))
    return {str(loop.thread_binding.thread_tag) for loop in loops if loop.thread_binding is not None}


def buffers(func: tirx.PrimFunc) -> list[Any]:
    """What its blocks allocate."""
    blocks: list[SBlock] = []
    structural_walk(func.body, (SBlock, blocks.append))
    return [buffer for block in blocks for buffer in block.alloc_buffers]


def test_cuda_a_product_in_fp32_is_bound() -> None:
    for one in proposed(products(257, 128, 64)):
        assert "shared" in {buffer.scope() for buffer in buffers(one.schedule.mod["main"])}


def test_opencl_a_product_in_fp32_is_right() -> None:
    if not has_pocl():
        pytest.skip("no PoCL or no pyopencl")
    case = products(257, 128, 64)
    result = check.execute(case, proposed(case)[0])
    assert result.error <= result.allowed


# The intrinsics alone take a quarter of a minute.
@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
def test_cuda_half_precision_is_on_tensor_cores(rows: int) -> None:
    """Rows that no tile divides are filled up to one, in shared memory."""
    found = proposed(products(rows, 256, 128, dtype="float16"))
    for one in found:
        func = one.schedule.mod["main"]
        assert any(buffer.scope().startswith("wmma.accumulator") for buffer in buffers(func))
        (copied,) = [b for b in buffers(func) if b.scope() == "shared.dyn" and b.name.startswith("left")]
        assert int(copied.shape[1]) >= rows and int(copied.shape[1]) % 16 == 0
    for one in found:
        source = check.source(one, A100)
        assert not check.too_much_shared(source.static, source.dynamic, A100)
    assert assemble(source.text, source.arch).has("HMMA")
