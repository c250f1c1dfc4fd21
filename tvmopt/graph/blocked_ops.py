"""How each operator is carried over into the blocked layout; one that is not here stays in the user's.

A handler takes the state of the pass and the call, emits the new form and returns the value, or `None` to decline.
Fill channels hold unspecified but finite values: an operator that could make infinities or NaNs of them (which a
later multiplication by a zero weight would not remove) is only taken over where there is no fill.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tvm
from tvm import relax

from tvmopt.graph import attention, strategy, unstructured
from tvmopt.operators import blocking, conv2d_sparse, conv2d_unstructured
from tvmopt.operators import conv2d_winograd as winograd
from tvmopt.operators.conv2d import Conv2d, pack_depthwise_weight, pack_weight
from tvmopt.operators.conv2d_depthwise import conv2d_depthwise
from tvmopt.operators.conv2d_direct import conv2d_direct
from tvmopt.operators.conv2d_gemm import conv2d_gemm, pack_gemm_weight
from tvmopt.operators.dense import Dense, dense, pack_dense_weight
from tvmopt.operators.dense_sparse import dense_sparse, pack_sparse_dense_weight
from tvmopt.operators.sparse import most_kept
from tvmopt.operators.unstructured import scattered

if TYPE_CHECKING:
    from tvmopt.graph.blocking import Blocker, Value
    from tvmopt.operators.sparse import Pattern

    Handler = Callable[[Blocker, relax.Call], Value | None]


def _value(blocked: relax.Expr | None, channels: int, plain: relax.Expr | None = None) -> Value:
    from tvmopt.graph.blocking import Value

    return Value(plain=plain, blocked=blocked, channels=channels)


def _shape(expr: relax.Expr) -> tuple[int, ...]:
    return tuple(int(x) for x in expr.ty.shape)


def _constant(expr: relax.Expr) -> np.ndarray | None:
    return expr.value.numpy() if isinstance(expr, tvm.ir.expr.GenericConst) else None


def _is_float32(*exprs: relax.Expr) -> bool:
    return all(str(expr.ty.dtype) == "float32" for expr in exprs)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = (int(x) for x in values)
    return first, second


def _four(values: Sequence[int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = (int(x) for x in values)
    return top, left, bottom, right


def conv2d(state: Blocker, call: relax.Call) -> Value | None:
    """A convolution with constant weights, by its strategy; padding and channels of any number."""
    data, weight = call.args
    attrs = call.attrs
    kernel = _constant(weight)
    if kernel is None or attrs.data_layout != "NCHW" or attrs.kernel_layout != "OIHW" or not _is_float32(data, weight):
        return None
    batch, channels, height, width = _shape(data)
    conv = Conv2d(
        batch, channels, kernel.shape[0], (height, width), _pair(kernel.shape[2:]), _pair(attrs.strides),
        _four(attrs.padding), _pair(attrs.dilation), int(attrs.groups), state.block,
    )  # fmt: skip
    if conv.is_depthwise:
        packed = state.weight((weight, "depthwise"), lambda: pack_depthwise_weight(kernel, conv))
        out = state.anchor(conv2d_depthwise, state.blocked(data), packed, conv=conv)
        return _value(out, conv.out_channels)
    # A 3-channel image is not filled up to a block: it is brought into the layout by the padding stage.
    plain_input = state.value(data).blocked is None and channels < state.block and conv.groups == 1
    if conv.groups == 1:
        conv = dataclasses.replace(conv, nonzeros=scattered(kernel, state.block))
        if not plain_input and (conv.nonzeros is None or not conv2d_unstructured.fits(conv)):
            conv = dataclasses.replace(conv, kept=most_kept(kernel, state.block), nonzeros=None)
    way = state.decide(conv, plain_input=plain_input)
    if way == strategy.UNSTRUCTURED:
        return _value(None, 0, unstructured.convolution(state, state.plain(data), weight, kernel, conv))
    source = state.plain(data) if plain_input else state.blocked(data)
    # A dense kernel computes the zeros, and is the one of the same layer without them: it shares its records.
    whole = dataclasses.replace(conv, kept=None, nonzeros=None)
    if way in strategy.TILES:
        m = strategy.TILES[way]
        packed = state.weight(
            (weight, way), lambda: winograd.pack_winograd_weight(pack_weight(kernel, conv, plain_input=False), m)
        )
        return _value(state.anchor(winograd.conv2d_winograd, source, packed, conv=whole, m=m), conv.out_channels)
    if way == strategy.SPARSE:
        out = sparse_anchor(
            state, weight, lambda: conv2d_sparse.pack_sparse_weight(kernel, conv), conv2d_sparse.conv2d_sparse, source,
            conv=conv,
        )  # fmt: skip
        return _value(out, conv.out_channels)

    def make() -> np.ndarray:
        packed = pack_weight(kernel, conv, plain_input=plain_input)
        return pack_gemm_weight(packed) if way == strategy.GEMM else packed

    function = conv2d_gemm if way == strategy.GEMM else conv2d_direct
    packed = state.weight((weight, function.__name__, plain_input), make)
    out = state.anchor(function, source, packed, conv=whole, plain_input=plain_input)
    return _value(out, conv.out_channels)


def sparse_anchor(
    state: Blocker, weight: relax.Expr, make: Callable[[], Pattern], function: Callable[..., object],
    data: relax.Expr, **kwargs: object,
) -> relax.Expr:  # fmt: skip
    """An anchor that takes, beside `data`, the values and the offsets of the pattern `make` gives."""
    # Offsets depend on the sizes of the input, too.
    pattern = state.pattern((weight, function.__name__, *kwargs.values()), make)
    return state.anchor(function, data, *pattern, **kwargs)


def matmul(state: Blocker, call: relax.Call) -> Value | None:
    """A product with constant weights becomes a packed `dense`; one of two computed tensors a `batch_matmul`."""
    left, right = call.args
    if not _is_float32(left, right) or len(_shape(left)) < 2:
        return None
    weight = _constant(right)
    if weight is not None and weight.ndim == 2:
        return _value(None, 0, _dense(state, left, right, weight))
    out = attention.product(state, call) if weight is None else None
    return _value(None, 0, out) if out is not None else None


def _dense(state: Blocker, left: relax.Expr, right: relax.Expr, weight: np.ndarray) -> relax.Expr:
    """The product of `left` (..., K) and `right`, whose values are `weight` (K, N), by its strategy."""
    depth, columns = weight.shape
    nonzeros = scattered(weight.T, state.block)
    kept = most_kept(weight.T, state.block) if nonzeros is None else None
    layer = Dense(math.prod(_shape(left)[:-1]), depth, columns, kept, nonzeros)
    way, data = state.decide_dense(layer), state.plain(left)
    if way == strategy.SPARSE:
        return sparse_anchor(
            state, right, lambda: pack_sparse_dense_weight(weight, state.block), dense_sparse, data, columns=columns,
            geometry=layer.geometry,
        )  # fmt: skip
    if way == strategy.UNSTRUCTURED:
        return unstructured.product(state, data, right, weight, layer)
    packed = state.weight((right, "dense"), lambda: pack_dense_weight(weight, state.block))
    return state.anchor(dense, data, packed, columns=columns)


def _is_blocked(state: Blocker, expr: relax.Expr) -> bool:
    return isinstance(expr, relax.Var) and state.value(expr).blocked is not None


def unary(*, keeps_fill_finite: bool = True) -> Handler:
    """An element-wise operator of one tensor, applied to the blocked form as it is."""

    def handle(state: Blocker, call: relax.Call) -> Value | None:
        if not _is_blocked(state, call.args[0]):
            return None
        value = state.value(call.args[0])
        if not keeps_fill_finite and value.channels % state.block:
            return None
        args = [value.blocked, *call.args[1:]]
        return _value(state.builder.emit(relax.Call(call.op, args, call.attrs, call.ty_args)), value.channels)

    return handle


def _operand(state: Blocker, expr: relax.Expr, shape: tuple[int, ...], fill: float) -> relax.Expr | None:
    """The other operand of a binary operator in the blocked layout, or None where it cannot be brought there.

    `shape` is the result's (N, C, H, W); scalars stay, constants are packed here with `fill` in the fill channels.
    """
    own = _shape(expr)
    array = _constant(expr)
    if array is not None:
        if array.size == 1:
            return relax.const(array.reshape(()))
        full = (1,) * (4 - len(own)) + own
        if len(full) != 4 or full[1] not in (1, shape[1]):
            return None
        if full[1] == 1:
            return relax.const(array.reshape(full[0], 1, *full[2:], 1))
        outer = blocking.blocks(full[1], state.block)
        filled = np.full((full[0], outer * state.block, *full[2:]), fill, array.dtype)
        filled[:, : full[1]] = array.reshape(full)
        packed = filled.reshape(full[0], outer, state.block, *full[2:]).transpose(0, 1, 3, 4, 2)
        return relax.const(np.ascontiguousarray(packed))
    if isinstance(expr, relax.Var) and len(own) == 4 and own[1] == shape[1]:
        return state.blocked(expr)
    return None


def binary(*, divides: bool = False) -> Handler:
    """An element-wise operator of two tensors, at least one of them blocked."""

    def handle(state: Blocker, call: relax.Call) -> Value | None:
        left, right = call.args
        shape = _shape(call)
        if len(shape) != 4 or not (_is_blocked(state, left) or _is_blocked(state, right)):
            return None
        if divides and shape[1] % state.block and _constant(right) is None:
            return None
        args = [_operand(state, left, shape, 0.0), _operand(state, right, shape, 1.0 if divides else 0.0)]
        if any(arg is None for arg in args):
            return None
        return _value(state.builder.emit(relax.Call(call.op, args, call.attrs, call.ty_args)), shape[1])

    return handle


def pool2d(state: Blocker, call: relax.Call) -> Value | None:
    """Max and average pooling, window by window, on blocks."""
    data = call.args[0]
    attrs = call.attrs
    if not _is_blocked(state, data) or attrs.layout != "NCHW":
        return None
    layout = f"NCHW{state.block}c"
    function = {"relax.nn.max_pool2d": relax.op.nn.max_pool2d, "relax.nn.avg_pool2d": relax.op.nn.avg_pool2d}
    out = function[call.op.name](
        state.blocked(data), tuple(attrs.pool_size), tuple(attrs.strides), tuple(attrs.padding),
        tuple(attrs.dilation), bool(attrs.ceil_mode), bool(attrs.count_include_pad), layout, layout,
    )  # fmt: skip
    return _value(state.builder.emit(out), state.value(data).channels)


def adaptive_avg_pool2d(state: Blocker, call: relax.Call) -> Value | None:
    """Average pooling to a given size."""
    data = call.args[0]
    if not _is_blocked(state, data) or call.attrs.layout != "NCHW":
        return None
    layout = f"NCHW{state.block}c"
    size = tuple(int(x) for x in call.attrs.output_size) if call.attrs.output_size is not None else None
    out = relax.op.nn.adaptive_avg_pool2d(state.blocked(data), size, layout, layout)
    return _value(state.builder.emit(out), state.value(data).channels)


def mean(state: Blocker, call: relax.Call) -> Value | None:
    """The mean over the image: global average pooling."""
    data = call.args[0]
    axes = call.attrs.axis
    if not _is_blocked(state, data) or axes is None or sorted(int(a) % 4 for a in axes) != [2, 3]:
        return None
    channels = state.value(data).channels
    out = state.builder.emit(relax.op.mean(state.blocked(data), axis=[2, 3], keepdims=True))
    value = _value(out, channels)
    if call.attrs.keepdims:
        return value
    whole = state._unpack(out, channels)
    return _value(None, 0, state.builder.emit(relax.op.reshape(whole, _shape(call))))


def concat(state: Blocker, call: relax.Call) -> Value | None:
    """Concatenation along the channels, where at least one part is blocked."""
    if not isinstance(call.args[0], relax.Tuple) or len(_shape(call)) != 4:
        return None
    parts = list(call.args[0].fields)
    if call.attrs.axis is None or int(call.attrs.axis) not in (1, -3):
        return None
    if not any(_is_blocked(state, part) for part in parts) or not _is_float32(*parts):
        return None
    channels = [_shape(part)[1] for part in parts]
    if len(parts) == 1:
        return _value(state.blocked(parts[0]), channels[0])
    out = state.te(blocking.concat, *[state.blocked(part) for part in parts], channels=channels)
    return _value(out, sum(channels))


_FINITE_UNARY = (
    "nn.relu", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.silu", "nn.relu6", "clip", "sigmoid", "tanh",
    "abs", "negative", "erf",
)  # fmt: skip
_RISKY_UNARY = ("exp", "log", "sqrt", "rsqrt", "square")

HANDLERS: dict[str, Handler] = {
    "relax.nn.conv2d": conv2d,
    "relax.matmul": matmul,
    "relax.nn.max_pool2d": pool2d,
    "relax.nn.avg_pool2d": pool2d,
    "relax.nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
    "relax.mean": mean,
    "relax.concat": concat,
    **{f"relax.{name}": unary() for name in _FINITE_UNARY},
    **{f"relax.{name}": unary(keeps_fill_finite=False) for name in _RISKY_UNARY},
    **{f"relax.{name}": binary() for name in ("add", "subtract", "multiply", "maximum", "minimum")},
    "relax.divide": binary(divides=True),
}
