"""Global pooling of NHWC images at boundary shapes, with what Relax fuses behind it."""

from __future__ import annotations

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
from .pool import pool


def case(kind: str, batch: int, height: int, width: int, channels: int) -> Case:
    """The mean over an image ("mean"), or the image times the sigmoid of it ("gate"); its largest values ("max")."""
    shape = (batch, height, width, channels)
    builder, op = relax.BlockBuilder(), relax.op
    data = relax.Var("data", R.Tensor(shape, "float32"))
    with builder.function("main", [data]):
        with builder.dataflow():
            reduce = op.max if kind == "max" else op.mean
            value = builder.emit(reduce(data, axis=[1, 2], keepdims=True))
            if kind == "gate":
                value = builder.emit(op.multiply(data, builder.emit(op.sigmoid(value))))
            out = builder.emit_output(value)
        builder.emit_func_output(out)
    passes = [transform.LegalizeOps(), transform.AnnotateTIROpPattern(), transform.FuseOps(), transform.FuseTIR()]
    module = tvm.transform.Sequential(passes)(builder.get())
    functions = [f for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc)]
    assert len(functions) == 1
    label = f"{kind} {'x'.join(map(str, shape))}"
    return Case(label, height * width, functions[0], partial(random, shape), partial(_expected, kind=kind))


def narrow(kind: str, batch: int, height: int, width: int, channels: int, dtype: str) -> Case:
    """The mean or the gate in half precision: sums and sigmoid in fp32, between casts."""
    shape = (batch, height, width, channels)
    data = te.placeholder(shape, dtype, "data")
    mean = topi.sum(topi.cast(data, "float32"), [1, 2], keepdims=True) / te.const(height * width, "float32")
    gate = topi.multiply(data, topi.cast(topi.sigmoid(mean), dtype))
    func = te.create_prim_func([data, gate if kind == "gate" else topi.cast(mean, dtype)])
    label = f"{kind} {'x'.join(map(str, shape))} {dtype}"
    inputs = partial(random, shape, dtype=dtype)
    return Case(label, height * width, func, inputs, partial(_expected, kind=kind))


def _expected(inputs: Arrays, kind: str) -> np.ndarray:
    image = torch.from_numpy(inputs[0].astype("float64"))
    reduced = image.amax((1, 2), keepdim=True) if kind == "max" else image.mean((1, 2), keepdim=True)
    return (image * torch.sigmoid(reduced) if kind == "gate" else reduced).numpy()


SHAPES: dict[str, list[Any]] = {
    "kind": ["mean", "gate", "max"],
    "batch": [1, 3],
    "height": [1, 7, 8, 13],
    "width": [2, 7, 32],
    "channels": [3, 17, 31, 32, 33, 197, 1000, 2048],
}


def typical() -> list[Case]:
    """Global pooling at the end of networks, and what squeezes and excites."""
    return [
        case("mean", 1, 7, 7, 2048), case("mean", 3, 13, 2, 33), case("max", 1, 8, 7, 3), case("gate", 3, 7, 7, 31),
        case("gate", 1, 8, 8, 64), case("mean", 3, 1, 32, 1000),
        # More taps than a window has that is unrolled.
        pool("avg", (1, 13, 13, 40), 13, 1, 0),
        *(narrow(kind, 1, 8, 8, 64, dtype) for kind in ("mean", "gate") for dtype in HALF),
    ]  # fmt: skip


def boundary() -> list[Case]:
    """Every pair of boundary values, and some in half precision."""
    rows = covering(SHAPES, 2, lambda _: True)
    half = [row for row in rows if row["kind"] != "max"][::4]
    return [case(**row) for row in rows] + [narrow(**row, dtype=HALF[i % 2]) for i, row in enumerate(half)]
