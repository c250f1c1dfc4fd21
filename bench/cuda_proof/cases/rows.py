"""Softmax, layer norm and reductions over the last axes: rows below, at and above a warp, a block and what it holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax, te, tirx, topi
from tvm.relax import transform
from tvm.script import relax as R

from ...covering import covering
from .base import HALF, Arrays, Case, random

Emit = Callable[[relax.BlockBuilder, list[relax.Var]], relax.Expr]


def fused(label: str, shapes: list[tuple[int, ...]], depth: int, emit: Emit, expected: Any) -> Case:
    """What Relax makes of `emit`, as one kernel."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"p{i}", R.Tensor(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", params):
        with builder.dataflow():
            value = builder.emit_output(emit(builder, params))
        builder.emit_func_output(value)
    passes = [transform.LegalizeOps(), transform.AnnotateTIROpPattern(), transform.FuseOps(), transform.FuseTIR()]
    module = tvm.transform.Sequential(passes)(builder.get())
    functions = [f for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc)]
    assert len(functions) == 1, label

    def wanted(inputs: Arrays) -> np.ndarray:
        return expected(*(torch.from_numpy(x.astype("float64")) for x in inputs)).numpy()

    return Case(label, depth, functions[0], partial(random, *shapes), wanted)


def _halved(data: te.Tensor) -> te.Tensor:
    return topi.nn.softmax(te.compute(data.shape, lambda *i: data(*i) * te.const(0.5, data.dtype), name="half"))


def case(kind: str, lead: tuple[int, ...], length: int) -> Case:
    """A `kind` of kernel over the last axis of (*lead, length)."""
    shape = (*lead, length)
    label = f"{kind} {'x'.join(map(str, shape))}"
    op, functional = relax.op, torch.nn.functional
    one: dict[str, tuple[Emit, Any]] = {
        "softmax": (lambda b, p: op.nn.softmax(p[0]), lambda x: torch.softmax(x, -1)),
        "log_softmax": (lambda b, p: op.nn.log_softmax(p[0]), lambda x: torch.log_softmax(x, -1)),
        "mean": (lambda b, p: op.mean(p[0], -1), lambda x: x.mean(-1)),
        "sum": (lambda b, p: op.sum(p[0], -1, keepdims=True), lambda x: x.sum(-1, keepdim=True)),
        "max": (lambda b, p: op.max(p[0], -1), lambda x: x.amax(-1)),
        # What comes before is computed once, and kept as the row.
        "halved": (lambda b, p: b.emit_te(_halved, p[0]), lambda x: torch.softmax(x / 2, -1)),
    }  # fmt: skip
    if kind == "layer_norm":
        emit: Emit = lambda b, p: op.nn.layer_norm(*p, axes=[-1])  # noqa: E731
        expected = lambda x, g, b: functional.layer_norm(x, (length,), g, b)  # noqa: E731
        return fused(label, [shape, (length,), (length,)], length, emit, expected)
    if kind == "layer_norm_2d":
        # Over an image and its channels: two axes are one row.
        whole = (*lead, 3, length)
        emit = lambda b, p: op.nn.layer_norm(*p, axes=[-2, -1])  # noqa: E731
        expected = lambda x, g, b: functional.layer_norm(x, (3, length), g, b)  # noqa: E731
        return fused(label, [whole, (3, length), (3, length)], 3 * length, emit, expected)
    return fused(label, [shape], length, *one[kind])


def narrow(kind: str, lead: tuple[int, ...], length: int, dtype: str) -> Case:
    """A softmax or mean of half precision: in fp32 between the casts of what is read and of the result."""
    shape = (*lead, length)
    read = te.placeholder(shape, dtype, "X")
    wide = topi.cast(read, "float32")
    softmax = kind == "softmax"
    result = topi.nn.softmax(wide) if softmax else topi.sum(wide, -1) / te.const(length, "float32")

    def expected(inputs: Arrays) -> np.ndarray:
        data = torch.from_numpy(inputs[0].astype("float64"))
        return (torch.softmax(data, -1) if softmax else data.mean(-1)).numpy()

    func = te.create_prim_func([read, topi.cast(result, dtype)])
    label = f"{kind} {'x'.join(map(str, shape))} {dtype}"
    return Case(label, length, func, partial(random, shape, dtype=dtype), expected)


KINDS = ["softmax", "log_softmax", "layer_norm", "layer_norm_2d", "mean", "sum", "max", "halved"]
SHAPES: dict[str, list[Any]] = {
    "kind": KINDS,
    "lead": [(1,), (3,), (129,), (2, 5), (2, 3, 67)],
    "length": [2, 3, 17, 31, 32, 33, 197, 768, 1000, 1024, 4097],
}


def cases(strength: int) -> list[Case]:
    """Kernels in which every `strength` boundary values occur together."""
    return [case(**row) for row in covering(SHAPES, strength, lambda _: True)]


def typical() -> list[Case]:
    """All kinds, short and long."""
    return [
        case("softmax", (3,), 3), case("softmax", (129,), 17), case("softmax", (2, 3, 67), 197),
        case("softmax", (1,), 4097), case("log_softmax", (1,), 1000), case("layer_norm", (2, 197), 768),
        case("layer_norm", (129,), 33),
        case("layer_norm_2d", (3,), 31), case("mean", (2, 5), 32), case("sum", (129,), 1000), case("max", (3,), 31),
        case("halved", (2, 5), 1024),
        *(narrow(kind, (2, 8, 128), 1024, dtype) for kind in ("softmax", "mean") for dtype in HALF),
    ]  # fmt: skip


def boundary() -> list[Case]:
    """Every pair of boundary values, and some in half precision."""
    shapes: dict[str, list[Any]] = {"kind": ["softmax", "mean"], "lead": [(1,), (129,)], "length": [3, 17, 197, 768]}
    return cases(2) + [narrow(**row, dtype=HALF[i % 2]) for i, row in enumerate(covering(shapes, 2, lambda _: True))]
