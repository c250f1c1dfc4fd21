"""Phase 1: what only gives a tensor another shape is moved out of the way, and what torch.export adds to attention.

A reshape costs nothing as long as it stands by itself; between an operator and its epilogue it keeps them apart. So
operators that move only axes of length 1 become reshapes, reshapes of reshapes become one, and an element-wise operator
behind a reshape is put before it. A scaled dot product comes with a guard for rows that are masked as a whole; where
nothing is masked it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmopt.graph.fold import rebuild

_UNARY = frozenset(
    f"relax.{name}"
    for name in (
        "nn.relu", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.silu", "nn.relu6", "clip", "sigmoid", "tanh", "abs",
        "negative", "erf", "exp", "sqrt", "rsqrt", "square",
    )
)  # fmt: skip
_BINARY = frozenset(f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"))


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(x) for x in expr.ty.shape)


def _constant(expr: Any) -> np.ndarray | None:
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


class _Views:
    """One sweep over `main`."""

    def __init__(self, builder: relax.BlockBuilder, new: dict[relax.Var, Any]) -> None:
        self.builder = builder
        self.new = new
        self.calls: dict[relax.Var, relax.Call] = {}

    def renew(self, expr: Any) -> Any:
        """An expression over the new variables."""
        if isinstance(expr, relax.Var):
            return self.new[expr]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.renew(item) for item in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self.renew(expr.tuple_value), expr.index)
        return expr

    def visit(self, binding: Any) -> None:
        """Emit one binding."""
        expr = binding.value
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            call = relax.Call(expr.op, [self.renew(arg) for arg in expr.args], expr.attrs, expr.ty_args)
            self.new[binding.var] = self.call(call, expr)
        else:
            renewed = self.renew(expr)
            plain = isinstance(renewed, (relax.Var, tvm.ir.GenericConst))
            self.new[binding.var] = renewed if plain else self.builder.emit(renewed)

    def emit(self, call: relax.Call) -> Any:
        """Emit a call, and remember what its variable stands for."""
        var = self.builder.emit(call)
        self.calls[var] = call
        return var

    def definition(self, expr: Any, name: str) -> relax.Call | None:
        """The call of operator `name` that `expr` is bound to."""
        call = self.calls.get(expr) if isinstance(expr, relax.Var) else None
        return call if call is not None and call.op.name == name else None

    def reshape(self, expr: Any, shape: tuple[int, ...]) -> Any:
        """`expr` in another shape: nothing where it has it, one reshape where it is one already."""
        inner = self.definition(expr, "relax.reshape")
        source = inner.args[0] if inner is not None else expr
        if _shape(source) == shape:
            return source
        return self.emit(relax.op.reshape(source, shape))

    def call(self, call: relax.Call, old: relax.Call) -> Any:
        """The new form of a call; `old` has its type."""
        name = call.op.name
        if not _is_static(old) or not call.args or not _is_static(call.args[0]):
            return self.emit(call)
        if name in _VIEWS and _VIEWS[name](call, old):
            return self.reshape(call.args[0], _shape(old))
        if name == "relax.take":
            return self._take(call, old)
        if name == "relax.where":
            return self._guard(call)
        if name in _UNARY or (name == "relax.nn.softmax" and _keeps_rows(self, call)):
            source = self.definition(call.args[0], "relax.reshape")
            if source is not None:
                moved = relax.Call(call.op, [source.args[0], *call.args[1:]], _last(call, source), call.ty_args)
                return self.reshape(self.emit(moved), _shape(old))
        if name in _BINARY:
            return self._binary(call, old)
        return self.emit(call)

    def _take(self, call: relax.Call, old: relax.Call) -> Any:
        """One index of an axis, known now: a slice."""
        index = _constant(call.args[1])
        if index is None or index.size != 1 or call.attrs.axis is None:
            return self.emit(call)
        axis = int(call.attrs.axis) % len(_shape(call.args[0]))
        at = int(index) % _shape(call.args[0])[axis]
        piece = self.emit(relax.op.strided_slice(call.args[0], [axis], [at], [at + 1]))
        return self.reshape(piece, _shape(old))

    def _binary(self, call: relax.Call, old: relax.Call) -> Any:
        """f(reshape(x), y) -> reshape(f(x, y')), where y has the same elements or is the same for every row."""
        for side in (0, 1):
            source = self.definition(call.args[side], "relax.reshape")
            if source is None or _shape(call.args[side]) != _shape(old):
                continue
            shape, other = _shape(source.args[0]), call.args[1 - side]
            if _shape(other) == _shape(old):
                moved = self.reshape(other, shape)
            else:
                array = _constant(other)
                if array is None or (array.size != 1 and not (shape[-1] == _shape(old)[-1] == array.size)):
                    continue
                if array.size > 1 and array.shape[-1] != array.size:
                    continue
                moved = (
                    other
                    if array.ndim <= 1
                    else relax.const(array.reshape(-1) if array.size > 1 else array.reshape(()))
                )
            args = [source.args[0], moved] if side == 0 else [moved, source.args[0]]
            return self.reshape(self.emit(relax.Call(call.op, args, call.attrs, call.ty_args)), _shape(old))
        return self.emit(call)

    def _guard(self, call: relax.Call) -> Any:
        """where(no score of the row is above -inf, 0, softmax(scores)) -> softmax(scores), of scores without a mask."""
        softmax = self._through_views(call.args[2], "relax.nn.softmax")
        condition = call.args[0]
        for step in ("relax.logical_not", "relax.astype", "relax.max", "relax.astype", "relax.logical_not"):
            found = self._through_views(condition, step)
            if found is None:
                return self.emit(call)
            condition = found.args[0]
        equal = self._through_views(condition, "relax.equal")
        lowest = _constant(equal.args[1]) if equal is not None else None
        if softmax is None or equal is None or lowest is None:
            return self.emit(call)
        scores = self._through_views(softmax.args[0], "relax.matmul")
        compared = self._through_views(equal.args[0], "relax.matmul")
        # A product of finite numbers is not -inf; a mask would have been added to it.
        if scores is None or compared is not scores or not np.isneginf(lowest).all():
            return self.emit(call)
        return call.args[2]

    def _through_views(self, expr: Any, name: str) -> relax.Call | None:
        view = self.definition(expr, "relax.reshape")
        return self.definition(view.args[0] if view is not None else expr, name)


def _is_static(expr: Any) -> bool:
    shape = getattr(getattr(expr, "ty", None), "shape", None)
    return shape is not None and all(isinstance(x, tvm.tirx.IntImm) for x in shape)


def _moves_nothing(call: relax.Call, _old: relax.Call) -> bool:
    """Whether a permutation keeps the order of all axes longer than 1."""
    shape = _shape(call.args[0])
    axes = (
        [int(a) % len(shape) for a in call.attrs.axes] if call.attrs.axes is not None else list(range(len(shape)))[::-1]
    )
    long = [axis for axis in axes if shape[axis] > 1]
    return long == sorted(long)


_VIEWS: dict[str, Callable[[relax.Call, relax.Call], bool]] = {
    "relax.reshape": lambda _call, _old: True,
    "relax.expand_dims": lambda _call, _old: True,
    "relax.squeeze": lambda _call, _old: True,
    "relax.flatten": lambda _call, _old: True,
    "relax.permute_dims": _moves_nothing,
    "relax.broadcast_to": lambda call, old: _shape(call.args[0]) == _shape(old),
}


def _keeps_rows(views: _Views, call: relax.Call) -> bool:
    """Whether a softmax over the last axis stands behind a reshape that keeps that axis."""
    source = views.definition(call.args[0], "relax.reshape")
    shape = _shape(call.args[0])
    return (
        source is not None
        and int(call.attrs.axis) % len(shape) == len(shape) - 1
        and (_shape(source.args[0])[-1] == shape[-1])
    )


def _last(call: relax.Call, source: relax.Call) -> Any:
    """The attributes of an operator before the reshape: a softmax's axis is the last one there too."""
    if call.op.name != "relax.nn.softmax":
        return call.attrs
    return relax.op.nn.softmax(source.args[0], axis=-1).attrs


@tvm.transform.module_pass(opt_level=0, name="MoveViews")
class MoveViews:
    """Move reshapes of `main` behind element-wise operators, and make one of several."""

    def transform_module(self, mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Returns the rewritten module."""

        def make(builder: relax.BlockBuilder, params: dict[relax.Var, relax.Var]) -> tuple[Any, Any]:
            views = _Views(builder, dict(params))
            return views.visit, views.renew

        return rebuild(mod, make)
