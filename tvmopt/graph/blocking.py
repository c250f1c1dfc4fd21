"""Phase 2: the blocked layout and the strategies, in one pass of our own.

Every value is known in the user's layout, in the blocked one, or in both; whoever needs the other form gets it made
once, at that place. Convolutions bring values into the blocked layout, operators that work on it keep them there,
anything else takes the user's layout and goes on as it was: a region this pass does not know costs two transforms,
never correctness. (TVM's ConvertLayout fills up no channels and crashes on transformers.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from tvmopt.graph import strategy
from tvmopt.graph.blocked_ops import HANDLERS
from tvmopt.graph.fold import rebuild
from tvmopt.machine import AnyMachine, Machine
from tvmopt.operators import blocking
from tvmopt.operators.sparse import Pattern
from tvmopt.operators.unstructured import Rows

if TYPE_CHECKING:
    from tvmopt.operators.conv2d import Conv2d
    from tvmopt.operators.dense import Dense

# relax's OpPatternKind.kOutEWiseFusable: element-wise operators that follow are fused into the kernel.
_OUT_ELEMENTWISE_FUSABLE = 4


@dataclass
class Value:
    """A tensor of the graph: its form in the user's layout, in the blocked one, and its number of channels."""

    plain: relax.Expr | None = None
    blocked: relax.Expr | None = None
    channels: int = 0


@dataclass(frozen=True)
class Decision:
    """How a convolution (or, by its `op`, a dense layer) was lowered, and how it could have been."""

    way: str
    possible: tuple[str, ...]
    op: str = "conv2d"


@dataclass
class Blocker:
    """The state of the pass over one function."""

    handlers: ClassVar[Mapping[str, Any]] = HANDLERS

    builder: relax.BlockBuilder
    machine: AnyMachine
    strategies: Mapping[str, str]
    resident: bool
    values: dict[relax.Var, Value] = field(default_factory=dict)
    packed_weights: dict[object, relax.Expr] = field(default_factory=dict)
    # What the old function's variables are bound to.
    calls: dict[relax.Var, relax.Call] = field(default_factory=dict)
    decided: dict[str, Decision] = field(default_factory=dict)

    @property
    def block(self) -> int:
        """Channels in a block: the fp32 lanes of a SIMD register."""
        assert isinstance(self.machine, Machine)
        return self.machine.lanes

    def decide(self, conv: Conv2d, *, plain_input: bool) -> str:
        """The way `conv` is lowered (graph/strategy.py), which is noted."""
        way = strategy.decide(conv, self.strategies, plain_input=plain_input, resident=self.resident)
        self.decided[conv.geometry] = Decision(way, strategy.ways(conv, plain_input=plain_input))
        return way

    def decide_dense(self, layer: Dense) -> str:
        """The way `layer` is lowered, which is noted where there is more than one."""
        way = strategy.decide_dense(layer, self.strategies, self.block)
        if len(possible := strategy.ways_dense(layer)) > 1:
            self.decided[layer.geometry] = Decision(way, possible, "dense")
        return way

    def value(self, expr: relax.Expr) -> Value:
        """The forms of an argument."""
        if isinstance(expr, relax.Var):
            return self.values[expr]
        return Value(plain=expr)

    def plain(self, expr: relax.Expr) -> relax.Expr:
        """An argument in the user's layout, recursively for tuples."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.plain(item) for item in expr.fields])
        if not isinstance(expr, relax.Var):
            return expr
        value = self.values[expr]
        if value.plain is None:
            assert value.blocked is not None
            value.plain = self._unpack(value.blocked, value.channels)
        return value.plain

    def blocked(self, expr: relax.Expr) -> relax.Expr:
        """A four-dimensional argument in the blocked layout."""
        value = self.value(expr)
        if value.blocked is None:
            assert value.plain is not None
            value.channels = int(value.plain.ty.shape[1])
            value.blocked = self.te(blocking.pack, value.plain, block=self.block)
        return value.blocked

    def te(
        self,
        function: Callable[..., object],
        *tensors: relax.Expr,
        attrs: dict[str, object] | None = None,
        **kwargs: object,
    ) -> relax.Expr:
        """Emit a call of an operator written in TE, as a TensorIR function of its own."""
        bound = functools.partial(function, **kwargs)
        return self.builder.emit_te(bound, *tensors, primfunc_name_hint=function.__name__, primfunc_attrs=attrs)

    def anchor(self, function: Callable[..., object], *tensors: relax.Expr, **kwargs: object) -> relax.Expr:
        """Emit an anchor: element-wise operators after it are fused into it."""
        return self.te(function, *tensors, attrs={"op_pattern": _OUT_ELEMENTWISE_FUSABLE}, **kwargs)

    def weight(self, key: object, make: Callable[[], np.ndarray]) -> relax.Expr:
        """A constant made from a weight, shared by all its users."""
        if key not in self.packed_weights:
            self.packed_weights[key] = relax.const(make())
        return self.packed_weights[key]

    def pattern(self, key: object, make: Callable[[], Pattern]) -> tuple[relax.Expr, relax.Expr]:
        """The values and the offsets of a sparse weight, shared by all its users."""
        if (key, "values") not in self.packed_weights:
            made = make()
            self.packed_weights[key, "values"] = relax.const(made.values)
            self.packed_weights[key, "offsets"] = relax.const(made.offsets)
        return self.packed_weights[key, "values"], self.packed_weights[key, "offsets"]

    def rows(self, key: object, make: Callable[[], Rows]) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
        """The values, offsets and ranges of an unstructured weight, shared by all its users."""
        if (key, "values") not in self.packed_weights:
            made = make()
            for name in ("values", "offsets", "ranges"):
                self.packed_weights[key, name] = relax.const(getattr(made, name))
        values, offsets, ranges = (self.packed_weights[key, name] for name in ("values", "offsets", "ranges"))
        return values, offsets, ranges

    def _unpack(self, data: relax.Expr, channels: int) -> relax.Expr:
        n, outer, h, w, block = (int(x) for x in data.ty.shape)
        if h == w == 1:  # one pixel: the blocks already stand in the order of the channels
            flat = self.builder.emit(relax.op.reshape(data, (n, outer * block, 1, 1)))
            if outer * block == channels:
                return flat
            return self.builder.emit(relax.op.strided_slice(flat, [1], [0], [channels]))
        return self.te(blocking.unpack, data, channels=channels)

    def visit(self, binding: relax.Binding) -> None:
        """Emit one binding of the old function into the new one."""
        expr = binding.value
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            self.calls[binding.var] = expr
            handler = self.handlers.get(expr.op.name)
            value = handler(self, expr) if handler is not None else None
            if value is None:
                args = [self.plain(arg) for arg in expr.args]
                call = relax.Call(expr.op, args, expr.attrs, expr.ty_args)
                value = Value(plain=self.builder.emit(call))
        elif isinstance(expr, relax.TupleGetItem):
            value = Value(plain=self.builder.emit(relax.TupleGetItem(self.plain(expr.tuple_value), expr.index)))
        else:
            value = Value(plain=self.builder.emit(self.plain(expr)))
        self.values[binding.var] = value


@tvm.transform.module_pass(opt_level=0, name="BlockLayout")
class BlockLayout:
    """Bring `main` into the blocked layout of `machine`, whose blocks are as wide as its SIMD registers.

    `strategies` says by what way each operator is lowered (graph/strategy.py); `decided`, after the pass has run, what
    became of each convolution, and of each dense layer that has zeros to skip, by its geometry.
    """

    def __init__(self, machine: Machine, strategies: Mapping[str, str]) -> None:
        self.machine = machine
        self.strategies = dict(strategies)
        self.decided: dict[str, Decision] = {}

    def transform_module(self, mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite `main`, which is one dataflow block after `CanonicalizeBindings`."""
        resident = strategy.is_resident(_constant_bytes(mod["main"]), self.machine)

        def make(builder: relax.BlockBuilder, params: dict[relax.Var, relax.Var]) -> tuple[Any, Any]:
            blocker = Blocker(builder, self.machine, self.strategies, resident, decided=self.decided)
            blocker.values.update({old: Value(plain=new) for old, new in params.items()})
            return blocker.visit, blocker.plain

        return rebuild(mod, make)


def _constant_bytes(function: relax.Function) -> int:
    """The size of all constants of a function."""
    found: dict[relax.Expr, int] = {}
    for block in function.body.blocks:
        for binding in block.bindings:
            for argument in getattr(binding.value, "args", ()):
                if isinstance(argument, tvm.ir.expr.GenericConst):
                    array = argument.value
                    found[argument] = int(np.prod(array.shape)) * tvm.DataType(str(array.dtype)).bits // 8
    return sum(found.values())
