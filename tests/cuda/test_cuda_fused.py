"""A kernel as Relax fuses it, with 64-bit extents: the epilogue is computed where the sums leave the registers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax, tirx
from tvm.relax import transform
from tvm.s_tir import SBlock
from tvm.script import relax as R
from tvm_ffi import structural_walk

from bench.cuda_proof.cases.base import Arrays, Case, random
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc, scheduled
from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_nhwc import conv2d_implicit_gemm

SHAPES = [(2, 14, 14, 20), (3, 3, 20, 33), (33,), (2, 14, 14, 33)]


def fused(dtype: str) -> Case:
    """SiLU(convolution + bias) + residual."""
    conv = Conv2d(2, 20, 33, (14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 1)
    builder = relax.BlockBuilder()
    x, w, bias, residual = params = [
        relax.Var(name, R.Tensor(shape, dtype)) for name, shape in zip("xwbr", SHAPES, strict=True)
    ]
    with builder.function("main", params):
        with builder.dataflow():
            value = builder.emit_te(lambda a, b: conv2d_implicit_gemm(a, b, conv), x, w)
            value = builder.emit(relax.op.nn.silu(builder.emit(relax.op.add(value, bias))))
            value = builder.emit_output(relax.op.add(value, residual))
        builder.emit_func_output(value)
    passes = [transform.LegalizeOps(), transform.AnnotateTIROpPattern(), transform.FuseOps(), transform.FuseTIR()]
    module = tvm.transform.Sequential(passes)(builder.get())
    functions = [f for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc)]
    assert len(functions) == 1
    return Case(f"fused {dtype}", 180, functions[0], lambda: random(*SHAPES, dtype=dtype), _expected)


def _expected(inputs: Arrays) -> np.ndarray:
    x, w, bias, residual = (torch.from_numpy(a.astype("float64")) for a in inputs)
    out = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), bias, padding=1)
    return (torch.nn.functional.silu(out).permute(0, 2, 3, 1) + residual).numpy()


def test_opencl_gives_pytorchs_results() -> None:
    executed(fused("float32"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_epilogue_is_not_stored_between(dtype: str) -> None:
    blocks: list[SBlock] = []
    structural_walk(scheduled(fused(dtype)).schedule.mod["main"].body, (SBlock, blocks.append))
    assert {buffer.scope() for block in blocks for buffer in block.alloc_buffers}.isdisjoint({"global"})


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_half_precision_is_on_tensor_cores(arch: str) -> None:
    assert compiled(fused("float16"), arch).has("HMMA.16816.F32")
