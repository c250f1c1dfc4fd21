"""Block-sparse products, and 1x1 convolutions over pixels, at boundary shapes."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
from tvm import te
from tvmopt.schedules.cuda import LADDERS

from bench.ladder import Taken
from tests.cuda.cases import Arrays, Case, biased
from tests.cuda.support import ARCHITECTURES, compiled, executed, needs_nvcc
from tests.kernels.covering import covering
from tvmopt.operators.dense_sparse import dense_sparse, pack_sparse_dense_weight

SHAPES: dict[str, list[Any]] = {
    # One below, at and one above a warp and a block; pixels of an image; a single sample.
    "lead": [(1,), (2,), (31,), (32,), (33,), (129,), (2, 7, 9), (1, 24, 24)],
    "depth": [1, 3, 32, 33, 67],
    "columns": [1, 15, 16, 17, 48, 100],
    "kept": ["some", "quads", "all", "none"],
}


def case(lead: tuple[int, ...], depth: int, columns: int, kept: str) -> Case:
    """(*lead, depth) times a matrix of which `kept` blocks of 16 columns are not zero, with bias and ReLU."""
    generator = np.random.default_rng(0)
    panels = -(-columns // 16)
    rows = -(-depth // 4) if kept == "quads" else depth
    share = {"all": 1.0, "none": 0.0}.get(kept, 0.3)
    blocks = generator.random((rows, panels)) < share
    mask = blocks.repeat(16, axis=1)[:, :columns].repeat(4 if kept == "quads" else 1, axis=0)[:depth]
    weight = (generator.standard_normal((depth, columns)) * mask).astype(np.float32)
    pattern = pack_sparse_dense_weight(weight, 16)
    data, bias = te.placeholder((*lead, depth), name="X"), te.placeholder((columns,), name="B")
    values = te.placeholder(pattern.values.shape, name="V")
    offsets = te.placeholder(pattern.offsets.shape, "int32", name="O")
    out = biased(dense_sparse(data, values, offsets, columns=columns), bias)
    func = te.create_prim_func([data, values, offsets, bias, out], index_dtype_override="int64")

    def inputs() -> Arrays:
        random = np.random.default_rng(1)
        x, b = (random.standard_normal(shape).astype(np.float32) for shape in ((*lead, depth), (columns,)))
        return [x, pattern.values, pattern.offsets, b]

    label = f"{'x'.join(map(str, lead))} {depth} {columns} {kept}"
    return Case(label, depth, func, inputs, partial(_product, weight=weight))


def _product(inputs: Arrays, weight: np.ndarray) -> np.ndarray:
    return np.maximum(inputs[0].astype("float64") @ weight.astype("float64") + inputs[3], 0)


CASES = [case(**row) for row in covering(SHAPES, 2, lambda _: True)]


def test_opencl_gives_the_masked_products_results() -> None:
    for one in CASES[::5]:
        executed(one)


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
