"""How each operator is carried over into NHWC on a GPU; one that is not here stays in the user's layout.

A handler takes the state of the pass and the call, emits the new form and returns the value, or `None` to decline.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tvmopt.graph.blocked_ops import _constant, _four, _is_blocked, _pair, _shape, _value, sparse_anchor, unary
from tvmopt.graph.strategy import DIRECT, SPARSE, TILES
from tvmopt.operators.conv2d import Conv2d
from tvmopt.operators.conv2d_nhwc import (
    conv2d_depthwise_nhwc,
    conv2d_implicit_gemm,
    pack_depthwise_nhwc_weight,
    pack_nhwc_weight,
)
from tvmopt.operators.conv2d_sparse_nhwc import (
    SPARSE_BLOCK,
    conv2d_sparse_nhwc,
    fits_sparse_nhwc,
    pack_sparse_nhwc_weight,
)
from tvmopt.operators.conv2d_winograd_nhwc import conv2d_winograd_nhwc, pack_winograd_nhwc_weight
from tvmopt.operators.dense import Dense
from tvmopt.operators.dense_sparse import dense_sparse, pack_sparse_dense_weight
from tvmopt.operators.gemm import batch_gemm, gemm
from tvmopt.operators.sparse import most_kept

if TYPE_CHECKING:
    from tvmopt.graph.blocking import Blocker, Value
    from tvmopt.graph.nhwc import ChannelsLast

    Handler = Callable[[ChannelsLast, relax.Call], Value | None]


_FLOATS = ("float32", "float16", "bfloat16")


def conv2d(state: ChannelsLast, call: relax.Call) -> Value | None:
    """A convolution with constant weights, of any number of groups, by its strategy; summed in fp32."""
    data, weight = call.args
    attrs = call.attrs
    kernel = _constant(weight)
    if kernel is None or attrs.data_layout != "NCHW" or attrs.kernel_layout != "OIHW":
        return None
    if str(data.ty.dtype) not in _FLOATS:
        return None
    batch, channels, height, width = _shape(data)
    conv = Conv2d(
        batch, channels, kernel.shape[0], (height, width), _pair(kernel.shape[2:]), _pair(attrs.strides),
        _four(attrs.padding), _pair(attrs.dilation), int(attrs.groups), state.block,
    )  # fmt: skip
    if fits_sparse_nhwc(conv, str(data.ty.dtype)):
        conv = dataclasses.replace(conv, kept=most_kept(kernel, SPARSE_BLOCK))
    way = DIRECT if conv.is_depthwise else state.choose(conv, str(data.ty.dtype))
    if way == SPARSE:
        out = sparse_anchor(
            state, weight, lambda: pack_sparse_nhwc_weight(kernel), conv2d_sparse_nhwc, state.blocked(data), conv=conv
        )
        return _value(out, conv.out_channels)
    # A dense kernel computes the zeros, and is the one of the same layer without them.
    conv = dataclasses.replace(conv, kept=None)
    if way in TILES:
        m = TILES[way]
        packed = state.weight((weight, way), lambda: pack_winograd_nhwc_weight(kernel, m))
        out = state.anchor(
            conv2d_winograd_nhwc, state.blocked(data), packed, conv=conv, m=m, out_dtype=str(call.ty.dtype)
        )
        return _value(out, conv.out_channels)
    function = conv2d_depthwise_nhwc if conv.is_depthwise else conv2d_implicit_gemm
    pack = pack_depthwise_nhwc_weight if conv.is_depthwise else pack_nhwc_weight
    packed = state.weight((weight, function.__name__), lambda: pack(kernel))
    out = state.anchor(function, state.blocked(data), packed, conv=conv, out_dtype=str(call.ty.dtype))
    return _value(out, conv.out_channels)


def matmul(state: ChannelsLast, call: relax.Call) -> Value | None:
    """A product with a matrix, by its strategy where that is constant, or of two stacks of equal leading dimensions."""
    left, right = call.args
    if len(_shape(left)) < 2 or str(left.ty.dtype) not in _FLOATS:
        return None
    weight = _constant(right)
    if weight is not None and weight.ndim == 2:
        depth, columns = weight.shape
        layer = Dense(math.prod(_shape(left)[:-1]), depth, columns, most_kept(weight.T, SPARSE_BLOCK))
        if state.choose_dense(layer, str(weight.dtype)) == SPARSE:
            out = sparse_anchor(
                state, right, lambda: pack_sparse_dense_weight(weight, SPARSE_BLOCK), dense_sparse, state.plain(left),
                columns=columns, geometry=layer.geometry,
            )  # fmt: skip
            return _value(None, 0, out)
    if len(_shape(right)) == 2:
        function = gemm
    elif len(_shape(left)) > 2 and _shape(left)[:-2] == _shape(right)[:-2]:
        function = batch_gemm
    else:
        return None
    out = state.anchor(function, state.plain(left), state.plain(right), out_dtype=str(call.ty.dtype))
    return _value(None, 0, out)


def _operand(state: Blocker, expr: relax.Expr, shape: tuple[int, ...]) -> relax.Expr | None:
    """The other operand of a binary operator as NHWC, or None where it cannot be brought there."""
    array = _constant(expr)
    if array is not None:
        if array.size == 1:
            return relax.const(array.reshape(()), str(expr.ty.dtype))
        full = array.reshape((1,) * (4 - array.ndim) + array.shape)
        return relax.const(np.ascontiguousarray(full.transpose(0, 2, 3, 1)), str(expr.ty.dtype))
    own = _shape(expr)
    return state.blocked(expr) if isinstance(expr, relax.Var) and len(own) == 4 and own[1] == shape[1] else None


def binary(state: Blocker, call: relax.Call) -> Value | None:
    """An element-wise operator of two tensors, at least one of them NHWC."""
    left, right = call.args
    shape = _shape(call)
    if len(shape) != 4 or not (_is_blocked(state, left) or _is_blocked(state, right)):
        return None
    args = [_operand(state, left, shape), _operand(state, right, shape)]
    if any(arg is None for arg in args):
        return None
    return _value(state.builder.emit(relax.Call(call.op, args, call.attrs, call.ty_args)), shape[1])


def pool2d(state: Blocker, call: relax.Call) -> Value | None:
    """Max and average pooling."""
    data = call.args[0]
    attrs = call.attrs
    if not _is_blocked(state, data) or attrs.layout != "NCHW":
        return None
    function = {"relax.nn.max_pool2d": relax.op.nn.max_pool2d, "relax.nn.avg_pool2d": relax.op.nn.avg_pool2d}
    out = function[call.op.name](
        state.blocked(data), tuple(attrs.pool_size), tuple(attrs.strides), tuple(attrs.padding),
        tuple(attrs.dilation), bool(attrs.ceil_mode), bool(attrs.count_include_pad), "NHWC", "NHWC",
    )  # fmt: skip
    return _value(state.builder.emit(out), state.value(data).channels)


def adaptive_avg_pool2d(state: Blocker, call: relax.Call) -> Value | None:
    """Average pooling to a given size."""
    data = call.args[0]
    if not _is_blocked(state, data) or call.attrs.layout != "NCHW":
        return None
    size = tuple(int(x) for x in call.attrs.output_size) if call.attrs.output_size is not None else None
    out = relax.op.nn.adaptive_avg_pool2d(state.blocked(data), size, "NHWC", "NHWC")
    return _value(state.builder.emit(out), state.value(data).channels)


def mean(state: Blocker, call: relax.Call) -> Value | None:
    """The mean over the image: global average pooling."""
    data = call.args[0]
    axes = call.attrs.axis
    if not _is_blocked(state, data) or axes is None or sorted(int(a) % 4 for a in axes) != [2, 3]:
        return None
    channels = state.value(data).channels
    out = state.builder.emit(relax.op.mean(state.blocked(data), axis=[1, 2], keepdims=True))
    if call.attrs.keepdims:
        return _value(out, channels)
    return _value(None, 0, state.builder.emit(relax.op.reshape(out, _shape(call))))


def concat(state: Blocker, call: relax.Call) -> Value | None:
    """Concatenation along the channels, where at least one part is NHWC."""
    if not isinstance(call.args[0], relax.Tuple) or len(_shape(call)) != 4:
        return None
    parts = list(call.args[0].fields)
    if call.attrs.axis is None or int(call.attrs.axis) not in (1, -3):
        return None
    if not any(_is_blocked(state, part) for part in parts):
        return None
    out = relax.op.concat([state.blocked(part) for part in parts], axis=3)
    return _value(state.builder.emit(out), _shape(call)[1])


def cast(state: Blocker, call: relax.Call) -> Value | None:
    """Another dtype."""
    if not _is_blocked(state, call.args[0]):
        return None
    value = state.value(call.args[0])
    return _value(state.builder.emit(relax.op.astype(value.blocked, str(call.ty.dtype))), value.channels)


_UNARY = (
    "nn.relu", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.silu", "nn.relu6", "clip", "sigmoid", "tanh",
    "abs", "negative", "erf", "exp", "log", "sqrt", "rsqrt", "square",
)  # fmt: skip

HANDLERS: dict[str, Handler] = {
    "relax.nn.conv2d": conv2d,
    "relax.matmul": matmul,
    "relax.nn.max_pool2d": pool2d,
    "relax.nn.avg_pool2d": pool2d,
    "relax.nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
    "relax.mean": mean,
    "relax.concat": concat,
    "relax.astype": cast,
    **{f"relax.{name}": unary() for name in _UNARY},
    **{f"relax.{name}": binary for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum")},
}
