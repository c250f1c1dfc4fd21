"""Phase 2 on a GPU: images as NHWC, where a pixel's channels lie side by side.

A warp's threads then read one contiguous run of channels, and a convolution is a matrix product over pixels without
a transposition: the layout of tensor cores' operands, and cuDNN's own choice for them. The pass is the CPU's
(blocking.py) with another form: "blocked" is NHWC here, and there is no fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from tvmopt.graph import strategy_gpu
from tvmopt.graph.blocking import Blocker, Decision, Value
from tvmopt.graph.fold import rebuild
from tvmopt.graph.nhwc_ops import HANDLERS
from tvmopt.machine import GpuMachine
from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.dense import Dense

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class ChannelsLast(Blocker):
    """The state of the pass over one function: every value as NCHW, as NHWC, or as both."""

    handlers = HANDLERS

    @property
    def block(self) -> int:
        """No channels are put together."""
        return 1

    def choose(self, conv: Conv2d, dtype: str) -> str:
        """The way `conv`, computing in `dtype`, is lowered (graph/strategy_gpu.py), which is noted."""
        assert isinstance(self.machine, GpuMachine)
        way = strategy_gpu.decide(conv, dtype, self.strategies, self.machine)
        self.decided[conv.geometry] = Decision(way, strategy_gpu.ways(conv, dtype))
        return way

    def choose_dense(self, layer: Dense, dtype: str) -> str:
        """The way `layer`, computing in `dtype`, is lowered, which is noted where there is more than one."""
        assert isinstance(self.machine, GpuMachine)
        way = strategy_gpu.decide_dense(layer, dtype, self.strategies, self.machine)
        if len(possible := strategy_gpu.ways_dense(layer, dtype)) > 1:
            self.decided[layer.geometry] = Decision(way, possible, "dense")
        return way

    def blocked(self, expr: relax.Expr) -> relax.Expr:
        """A four-dimensional argument as NHWC."""
        value = self.value(expr)
        if value.blocked is None:
            assert value.plain is not None
            value.channels = int(value.plain.ty.shape[1])
            value.blocked = self._turned(value.plain, TO_NHWC)
        return value.blocked

    def _unpack(self, data: relax.Expr, channels: int) -> relax.Expr:
        return self._turned(data, TO_NCHW)

    def _turned(self, data: relax.Expr, axes: tuple[int, ...]) -> relax.Expr:
        shape = [int(extent) for extent in data.ty.shape]
        # What has one channel or one pixel lies in memory as it did.
        if shape[axes[-1]] == 1 or sum(extent > 1 for extent in shape[1:]) <= 1:
            return self.builder.emit(relax.op.reshape(data, [shape[axis] for axis in axes]))
        return self.builder.emit(relax.op.permute_dims(data, list(axes)))


@tvm.transform.module_pass(opt_level=0, name="ChannelsLastLayout")
class ChannelsLastLayout:
    """Bring `main` into NHWC; `strategies` maps an operator to the strategy it is lowered by.

    `decided` is as BlockLayout's.
    """

    def __init__(self, machine: GpuMachine, strategies: Mapping[str, str]) -> None:
        self.machine = machine
        self.strategies = dict(strategies)
        self.decided: dict[str, Decision] = {}

    def transform_module(self, mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite `main`, which is one dataflow block after `CanonicalizeBindings`."""

        def make(builder: relax.BlockBuilder, params: dict[relax.Var, relax.Var]) -> tuple[Any, Any]:
            state = ChannelsLast(builder, self.machine, self.strategies, False, decided=self.decided)
            state.values.update({old: Value(plain=new) for old, new in params.items()})
            return state.visit, state.plain

        return rebuild(mod, make)
