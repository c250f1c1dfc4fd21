"""Phase 1: constants evaluated and batch norms folded, with numpy.

TVM has passes for both (`FoldBatchnormToConv2D`, `FoldConstant`), but evaluates every constant by compiling a function
for it: half a minute for MobileNetV2, and a batch norm without a convolution before it stays four operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tvm
from tvm import relax

Constant = tvm.ir.GenericConst

# Larger results of broadcasting are not stored in the module.
_LARGEST_BROADCAST = 1 << 16


def _shape_of(call: relax.Call) -> tuple[int, ...]:
    return tuple(int(x) for x in call.ty.shape)


def _permute(call: relax.Call, x: np.ndarray) -> np.ndarray:
    axes = call.attrs.axes
    return np.transpose(x, None if axes is None else [int(a) for a in axes])


_EVALUATE: dict[str, Callable[..., np.ndarray]] = {
    "relax.permute_dims": _permute,
    "relax.reshape": lambda call, x, *_: x.reshape(_shape_of(call)),
    "relax.expand_dims": lambda call, x: x.reshape(_shape_of(call)),
    "relax.squeeze": lambda call, x: x.reshape(_shape_of(call)),
    "relax.astype": lambda call, x: x.astype(str(call.ty.dtype)),
    "relax.broadcast_to": lambda call, x, *_: np.broadcast_to(x, _shape_of(call)),
    "relax.add": lambda _, a, b: a + b,
    "relax.subtract": lambda _, a, b: a - b,
    "relax.multiply": lambda _, a, b: a * b,
    "relax.divide": lambda _, a, b: a / b,
    "relax.sqrt": lambda _, a: np.sqrt(a),
    "relax.negative": lambda _, a: -a,
}


def _constant(expr: Any) -> np.ndarray | None:
    return expr.value.numpy() if isinstance(expr, Constant) else None


def _arguments(expr: Any) -> Iterator[relax.Var]:
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.Tuple):
        for item in expr.fields:
            yield from _arguments(item)
    elif isinstance(expr, relax.Call):
        for item in expr.args:
            yield from _arguments(item)
    elif isinstance(expr, relax.TupleGetItem):
        yield from _arguments(expr.tuple_value)


class _Folder:
    """One sweep over `main`."""

    def __init__(self, builder: relax.BlockBuilder, uses: Counter[relax.Var]) -> None:
        self.builder = builder
        self.uses = uses
        # Old variable -> new expression; old variable -> the call it was bound to, arguments renewed.
        self.new: dict[relax.Var, Any] = {}
        self.calls: dict[relax.Var, relax.Call] = {}
        self.norms: dict[relax.Var, Any] = {}

    def renew(self, expr: Any) -> Any:
        """`expr` over the new function's variables."""
        if isinstance(expr, relax.Var):
            return self.new[expr]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.renew(item) for item in expr.fields])
        return expr

    def visit(self, binding: relax.Binding) -> None:
        """Emit one binding, or remember what it comes to."""
        expr, var = binding.value, binding.var
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            self._call(var, expr)
        elif isinstance(expr, relax.TupleGetItem):
            if expr.tuple_value in self.norms and int(expr.index) == 0:
                self.new[var] = self.norms[expr.tuple_value]
            else:
                source = self.renew(expr.tuple_value)
                self.new[var] = self.builder.emit(relax.TupleGetItem(source, expr.index))
        elif isinstance(expr, (relax.Var, Constant)):
            self.new[var] = self.renew(expr)
        else:
            self.new[var] = self.builder.emit(self.renew(expr))

    def _call(self, var: relax.Var, call: relax.Call) -> None:
        args = [self.renew(arg) for arg in call.args]
        value = self._evaluate(call, args)
        if value is not None:
            self.new[var] = relax.const(np.ascontiguousarray(value))
            return
        if call.op.name in ("relax.full", "relax.full_like"):
            fill = _constant(args[1])
            if fill is not None:
                self.new[var] = self._full(call, fill)
                return
        if call.op.name == "relax.nn.batch_norm":
            folded = self._batch_norm(call, args)
            if folded is not None:
                self.norms[var] = folded
                return
        renewed = relax.Call(call.op, args, call.attrs, call.ty_args)
        self.calls[var] = renewed
        self.new[var] = self.builder.emit(renewed)

    def _full(self, call: relax.Call, fill: np.ndarray) -> Any:
        """A tensor of one number. TVM's own evaluation of it fails where the number is infinite."""
        shape, number = _shape_of(call), fill.astype(str(call.ty.dtype))
        if int(np.prod(shape)) <= _LARGEST_BROADCAST:
            return relax.const(np.full(shape, number))
        return self.builder.emit(relax.op.broadcast_to(relax.const(number), relax.ShapeExpr(shape)))

    def _evaluate(self, call: relax.Call, args: list[Any]) -> np.ndarray | None:
        function = _EVALUATE.get(call.op.name)
        arrays = [_constant(arg) for arg in args if not isinstance(arg, relax.ShapeExpr)]
        if function is None or not arrays or any(array is None for array in arrays):
            return None
        if call.op.name == "relax.broadcast_to" and int(np.prod(_shape_of(call))) > _LARGEST_BROADCAST:
            return None
        result = function(call, *arrays)
        return np.asarray(result, dtype=str(call.ty.dtype)).reshape(_shape_of(call))

    def _batch_norm(self, call: relax.Call, args: list[Any]) -> Any | None:
        """x * scale + shift, folded into the convolution before it where that has no other user."""
        params = [_constant(arg) for arg in args[1:]]
        attrs = call.attrs
        if any(p is None for p in params) or int(attrs.axis) != 1 or bool(getattr(attrs, "training", False)):
            return None
        gamma, beta, mean, var = (p.astype(np.float64) for p in params if p is not None)
        scale = (gamma if attrs.scale else 1.0) / np.sqrt(var + float(attrs.epsilon))
        shift = (beta if attrs.center else 0.0) - mean * scale
        source, bias = call.args[0], np.zeros(1)
        conv = self.calls.get(source) if isinstance(source, relax.Var) and self.uses[source] == 1 else None
        if conv is not None and conv.op.name == "relax.add":
            # The convolution's own bias, added before.
            added = next((_constant(arg) for arg in conv.args if _constant(arg) is not None), None)
            inner = self._single_use_conv(conv)
            if added is None or added.size != scale.size or inner is None:
                conv = None
            else:
                conv, bias = inner, added.astype(np.float64).reshape(-1)
        if conv is None or conv.op.name != "relax.nn.conv2d" or _constant(conv.args[1]) is None:
            shape = (1, -1) + (1,) * (len(_shape_of_expr(args[0])) - 2)
            scaled = self.builder.emit(relax.op.multiply(args[0], _float32(scale.reshape(shape))))
            return self.builder.emit(relax.op.add(scaled, _float32(shift.reshape(shape))))
        weight = _constant(conv.args[1])
        assert weight is not None
        weight = weight.astype(np.float64) * scale.reshape(-1, 1, 1, 1)
        new = relax.Call(conv.op, [conv.args[0], _float32(weight)], conv.attrs, conv.ty_args)
        total = (shift + bias * scale).reshape(1, -1, 1, 1)
        return self.builder.emit(relax.op.add(self.builder.emit(new), _float32(total)))

    def _single_use_conv(self, add: relax.Call) -> relax.Call | None:
        for old, call in self.calls.items():
            if call.op.name == "relax.nn.conv2d" and any(self.new[old].same_as(arg) for arg in add.args):
                return call if self.uses[old] == 1 else None
        return None


def _float32(array: np.ndarray) -> Any:
    return relax.const(np.ascontiguousarray(array.astype(np.float32)))


def _shape_of_expr(expr: Any) -> tuple[int, ...]:
    return tuple(int(x) for x in expr.ty.shape)


Visit = Callable[[Any], None]
Finish = Callable[[Any], Any]


def rebuild(
    mod: tvm.IRModule, make: Callable[[relax.BlockBuilder, dict[relax.Var, relax.Var]], tuple[Visit, Finish]]
) -> tvm.IRModule:
    """`mod` with `main` emitted anew, binding by binding.

    `make(builder, parameters)` returns two functions: one that is called with every binding of the old `main`, and one
    that turns the old result into the new. Functions with control flow are returned as they are.
    """
    old = mod["main"]
    if len(old.body.blocks) != 1 or not isinstance(old.body.blocks[0], relax.DataflowBlock):
        return mod
    builder = relax.BlockBuilder()
    params = [relax.Var(p.name, p.ty) for p in old.params]
    visit, finish = make(builder, dict(zip(old.params, params, strict=True)))
    with builder.function("main", params):
        with builder.dataflow():
            for binding in old.body.blocks[0].bindings:
                visit(binding)
            result = builder.emit_output(finish(old.body.body))
        builder.emit_func_output(result)
    new = builder.finalize()
    for var, func in mod.functions_items():
        if var.name_hint != "main":
            new[var] = func
    if old.attrs:
        new["main"] = new["main"].with_attrs(dict(old.attrs))
    return new


@tvm.transform.module_pass(opt_level=0, name="Fold")
class Fold:
    """Evaluate constants and fold batch norms of `main`."""

    def transform_module(self, mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Returns the folded module."""
        uses: Counter[relax.Var] = Counter()
        for block in mod["main"].body.blocks:
            for binding in block.bindings:
                uses.update(_arguments(binding.value))

        def make(builder: relax.BlockBuilder, params: dict[relax.Var, relax.Var]) -> tuple[Any, Any]:
            folder = _Folder(builder, uses)
            folder.new.update(params)
            return folder.visit, folder.renew

        return rebuild(mod, make)
