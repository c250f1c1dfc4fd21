"""Phase 1 of a network in half precision: fp16 or bf16 values between kernels, products summed in fp32.

Made from the fp32 import (TVM's PyTorch frontend fixes fp32 where a layer has a bias). TVM's own ToMixedPrecision knows
fp16 only, and leaves either the sums in fp16 or fp32 values in memory between kernels. Here convolutions and matrix
products read the narrow dtype, sum in fp32 and are cast at once, which fuses into them; operators that lose too much
in a narrow dtype (sums, means, normalisation, exponentials) are computed in fp32 between two casts; everything else
stays narrow. Inputs and outputs of the network keep their dtypes.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import tvm
from tvm import relax

from tvmopt.graph.fold import rebuild

NUMPY = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
_PRODUCTS = ("relax.nn.conv2d", "relax.matmul")
# Their results in a narrow dtype: of all else that computes with fractions, fp32.
_NARROW = (
    "add", "subtract", "multiply", "maximum", "minimum", "negative", "abs", "clip", "reshape", "permute_dims",
    "squeeze", "expand_dims", "flatten", "concat", "split", "strided_slice", "broadcast_to", "repeat", "take",
    "pad", "roll", "nn.relu", "nn.relu6", "nn.leakyrelu", "nn.max_pool2d", "nn.pad", "where",
)  # fmt: skip
_WIDE = "float32"


class _Narrower:
    """One sweep over `main`, every fp32 value of which is narrow in the new function."""

    def __init__(self, builder: relax.BlockBuilder, params: dict[relax.Var, relax.Var], dtype: str) -> None:
        self.builder = builder
        self.dtype = dtype
        # Old variable -> the tuple it stands for, of old expressions.
        self.tuples: dict[relax.Var, relax.Tuple] = {}
        # Old variable -> dtype ("" for no fp32 tensor) -> new expression.
        self.forms: dict[relax.Var, dict[str, Any]] = {
            old: {_WIDE if _is_wide(new.ty) else "": new} for old, new in params.items()
        }

    def get(self, expr: Any, dtype: str) -> Any:
        """`expr` over the new variables, its fp32 tensors in `dtype`."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.get(item, dtype) for item in expr.fields])
        if isinstance(expr, tvm.ir.GenericConst):
            if dtype == _WIDE or not _is_wide(expr.ty):
                return expr
            return relax.const(np.asarray(expr.value.numpy()).astype(NUMPY[dtype]), dtype)
        if not isinstance(expr, relax.Var):
            return expr
        if expr in self.tuples:
            return self.get(self.tuples[expr], dtype)
        forms = self.forms[expr]
        if "" in forms:
            return forms[""]
        if dtype not in forms:
            forms[dtype] = self.builder.emit(relax.op.astype(next(iter(forms.values())), dtype))
        return forms[dtype]

    def visit(self, binding: relax.Binding) -> None:
        """Emit one binding."""
        expr = binding.value
        name = expr.op.name if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) else ""
        if isinstance(expr, relax.Tuple):
            self.tuples[binding.var] = expr
        elif isinstance(expr, relax.Var) and expr in self.tuples:
            self.tuples[binding.var] = self.tuples[expr]
        elif not name:
            self.forms[binding.var] = self._plain(expr)
        elif name in _PRODUCTS and all(_is_wide(arg.ty) for arg in expr.args):
            value = self.builder.emit(_product(expr, [self.get(arg, self.dtype) for arg in expr.args]))
            self.forms[binding.var] = {self.dtype: self.builder.emit(relax.op.astype(value, self.dtype))}
        else:
            narrow = name.removeprefix("relax.") in _NARROW
            args = [self.get(arg, self.dtype if narrow else _WIDE) for arg in expr.args]
            value = self.builder.emit(relax.Call(expr.op, args, expr.attrs, expr.ty_args if not narrow else None))
            # A tuple's fp32 parts are what they were computed as; its users ask again, part by part.
            self.forms[binding.var] = self._form(value)

    def _plain(self, expr: Any) -> dict[str, Any]:
        if isinstance(expr, relax.Var):
            return self.forms[expr]
        if isinstance(expr, relax.TupleGetItem):
            if expr.tuple_value in self.tuples:
                return self._form(self.get(self.tuples[expr.tuple_value].fields[expr.index], self.dtype))
            (source,) = self.forms[expr.tuple_value].values()
            return self._form(self.builder.emit(relax.TupleGetItem(source, expr.index)))
        return self._form(self.builder.emit(self.get(expr, self.dtype)))

    def _form(self, value: Any) -> dict[str, Any]:
        dtype = str(getattr(value.ty, "dtype", ""))
        return {dtype if dtype in (_WIDE, self.dtype) else "": value}

    def result(self, expr: Any) -> Any:
        """What `main` returns, in the dtypes it always had."""
        return self.get(expr, _WIDE)


def _is_wide(annotation: Any) -> bool:
    return str(getattr(annotation, "dtype", "")) == _WIDE


def _product(call: relax.Call, args: list[Any]) -> relax.Call:
    """The same product of narrow arguments, summed in fp32."""
    if call.op.name == "relax.matmul":
        return relax.op.matmul(*args, out_dtype=_WIDE)
    a = call.attrs
    return relax.op.nn.conv2d(
        *args, strides=list(a.strides), padding=list(a.padding), dilation=list(a.dilation), groups=int(a.groups),
        data_layout=a.data_layout, kernel_layout=a.kernel_layout, out_layout=a.out_layout, out_dtype=_WIDE,
    )  # fmt: skip


@tvm.transform.module_pass(opt_level=0, name="NarrowPrecision")
class NarrowPrecision:
    """Compute `main`, an fp32 network, in `dtype` ("float16" or "bfloat16")."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def transform_module(self, mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite `main`, which is one dataflow block."""

        def make(builder: relax.BlockBuilder, params: dict[relax.Var, relax.Var]) -> tuple[Any, Any]:
            narrower = _Narrower(builder, params, self.dtype)
            return narrower.visit, narrower.result

        return rebuild(mod, make)
