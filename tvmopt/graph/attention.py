"""Products of matrices in the graph: with constant weights, of two computed tensors, and attention, which is two.

softmax(Q K^T) V is recognised where nothing stands between the products but the softmax: what masks or scales the
scores keeps it three kernels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvm import relax

from tvmopt.operators import attention
from tvmopt.operators.dense import batch_matmul, crop

if TYPE_CHECKING:
    from tvmopt.graph.blocking import Blocker

# relax's OpPatternKind: injective operators before and after are fused with it; nothing is.
_INJECTIVE, _OPAQUE = 2, 8


def _shape(expr: relax.Expr) -> tuple[int, ...]:
    return tuple(int(x) for x in expr.ty.shape)


def product(state: Blocker, call: relax.Call) -> relax.Expr | None:
    """The product of two computed tensors of the same leading axes, in the user's layout; None for any other."""
    left, right = call.args
    if len(_shape(left)) < 3 or _shape(left)[:-2] != _shape(right)[:-2]:
        return None
    scores = _scores(state, call)
    if scores is None:
        return state.anchor(batch_matmul, state.plain(left), state.plain(right), lanes=state.block)
    query, keys = (state.plain(arg) for arg in scores.args)
    *_, rows, depth = _shape(query)
    length, width = _shape(keys)[-1], _shape(right)[-1]

    def injective(function: Any, data: relax.Expr, **kwargs: object) -> relax.Expr:
        return state.te(function, data, attrs={"op_pattern": _INJECTIVE}, **kwargs)

    out = state.te(
        attention.attention,
        injective(attention.fill_rows, query),
        injective(attention.panels, keys, lanes=state.block, fill_depth=False),
        injective(attention.panels, state.plain(right), lanes=state.block, fill_depth=True),
        attrs={"op_pattern": _OPAQUE},
        length=length,
        flops=2 * math.prod(_shape(query)[:-2]) * rows * length * (depth + width),
    )
    return injective(crop, out, shape=_shape(call))


def _scores(state: Blocker, call: relax.Call) -> relax.Call | None:
    """The product inside the softmax on the left, which has no other use for the kernel to take over."""
    softmax = state.calls.get(call.args[0]) if isinstance(call.args[0], relax.Var) else None
    if softmax is None or softmax.op.name != "relax.nn.softmax":
        return None
    rank = len(_shape(softmax))
    scores = state.calls.get(softmax.args[0]) if isinstance(softmax.args[0], relax.Var) else None
    if scores is None or scores.op.name != "relax.matmul" or int(softmax.attrs.axis) % rank != rank - 1:
        return None
    same = _shape(scores.args[0])[:-2] == _shape(scores.args[1])[:-2] == _shape(call.args[1])[:-2]
    constant = any(not isinstance(arg, relax.Var) for arg in scores.args)
    return None if constant or not same or str(scores.ty.dtype) != "float32" else scores
