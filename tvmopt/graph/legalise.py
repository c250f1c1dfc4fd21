"""Phase 3: what each Relax operator that is left is computed by, where TVM's own lowering is not ours.

Functions without a vector instruction become arithmetic (operators/elementary.py), softmax and layer norm are written
by rows that stay in a core's cache (operators/rows.py). What only gives a tensor another shape stays as it is: it is
no kernel, and fused into one it would be a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax

from tvmopt.operators import elementary
from tvmopt.operators.rows import layer_norm, softmax

Legalise = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

# relax's OpPatternKind.kOpaque: nothing is fused into the kernel, as its rows take several passes.
_OPAQUE = 8


def legalise(lanes: int) -> tvm.transform.Pass:
    """The pass; `lanes` is the number of fp32 lanes of a SIMD register."""
    ways: dict[str, Legalise] = {
        f"relax.{name}": _elementwise(getattr(elementary, name.removeprefix("nn.")), f"relax.{name}")
        for name in ("exp", "tanh", "erf", "sigmoid", "nn.silu", "nn.gelu", "nn.gelu_tanh")
    }
    ways["relax.nn.softmax"] = _softmax(lanes)
    ways["relax.nn.layer_norm"] = _layer_norm(lanes)
    return relax.transform.LegalizeOps(ways, skip_ops=["relax.reshape"])


def _is_float32(call: relax.Call) -> bool:
    return str(call.args[0].ty.dtype) == "float32"


def _default(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """TVM's own way."""
    return call.op.get_attr("FLegalize")(builder, call)


def _elementwise(function: Callable[..., object], _name: str) -> Legalise:
    def way(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        if not _is_float32(call):
            return _default(builder, call)
        return builder.call_te(function, call.args[0], primfunc_name_hint=function.__name__)

    return way


def _last_axis(call: relax.Call, axis: int) -> bool:
    return axis % len(call.args[0].ty.shape) == len(call.args[0].ty.shape) - 1


def _softmax(lanes: int) -> Legalise:
    def way(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        if not _is_float32(call) or not _last_axis(call, int(call.attrs.axis)):
            return _default(builder, call)
        return builder.call_te(
            softmax, call.args[0], lanes=lanes, primfunc_name_hint="softmax", primfunc_attrs={"op_pattern": _OPAQUE}
        )

    return way


def _layer_norm(lanes: int) -> Legalise:
    def way(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        axes = [int(axis) for axis in call.attrs.axes]
        if not _is_float32(call) or len(axes) != 1 or not _last_axis(call, axes[0]):
            return _default(builder, call)
        return builder.call_te(
            layer_norm, *call.args[:3], lanes=lanes, epsilon=float(call.attrs.epsilon),
            primfunc_name_hint="layer_norm", primfunc_attrs={"op_pattern": _OPAQUE},
        )  # fmt: skip

    return way
