"""Elementary functions as arithmetic, a register of values at a time.

LLVM has no vector form of exp, tanh or erf: it calls the C library once a lane, which in an epilogue takes longer than
the convolution before it (SiLU behind a 1x1 convolution of 16 channels: ten times as long). Here they are polynomials
(exp: a minimax polynomial after the range is reduced by powers of two, as in Cephes' expf; tanh, erf: rational minimax
approximations as in Eigen), with an error of at most 3e-7 of the largest value, which is 2 units in the last place.
"""

from __future__ import annotations

import math

from tvm import te, tirx, topi

# e^r = 1 + r + r^2 (c[0] + c[1] r + ...) for |r| <= ln(2) / 2: the best coefficients there, to 4e-9 of the value.
_EXP = (0.49999994, 0.1666652, 0.041668393, 0.008368781, 0.0013814467)

# Between these the power of two in e^x is a normal number of fp32's, and the shift of its exponent does not overflow.
_LOWEST, _HIGHEST = -87.3, 88.0


def _of(data: te.Tensor, value: float) -> te.PrimExpr:
    return tirx.const(value, data.dtype)


def exp(data: te.Tensor) -> te.Tensor:
    """e to the power of `data`, which is taken as -87.3 below that and as 88 above."""
    return te.compute(data.shape, lambda *i: _power(tirx.min(data(*i), _of(data, _HIGHEST))), name="exp")


def exp_of_negative(data: te.Tensor) -> te.Tensor:
    """e to the power of `data`, none of which is over 0, and which is taken as -87.3 below that."""
    return te.compute(data.shape, lambda *i: _power(data(*i)), name="exp")


def _power(value: te.PrimExpr) -> te.PrimExpr:
    """e^value for a value of at most 88: e^(value - n ln(2)), to whose exponent the integer n is added.

    n is the integer nearest to value / ln(2). 13 instructions; TVM's `fast_exp` takes 18.
    """

    def of(number: float) -> te.PrimExpr:
        return tirx.const(number, "float32")

    value = tirx.max(value, of(_LOWEST))
    nearest = tirx.nearbyint(value * of(1 / math.log(2)))
    rest = value - nearest * of(math.log(2))
    total = of(_EXP[-1])
    for coefficient in (*reversed(_EXP[:-1]), 1.0, 1.0):
        total = total * rest + of(coefficient)
    exponent = tirx.Cast("int32", nearest) << tirx.const(23, "int32")
    return tirx.reinterpret("float32", tirx.reinterpret("int32", total) + exponent)


def tanh(data: te.Tensor) -> te.Tensor:
    """Hyperbolic tangent."""
    return topi.fast_tanh(data)


def erf(data: te.Tensor) -> te.Tensor:
    """The error function."""
    return topi.fast_erf(data)


def sigmoid(data: te.Tensor) -> te.Tensor:
    """1 / (1 + exp(-x))."""
    power = exp(te.compute(data.shape, lambda *i: -data(*i), name="negated"))
    return te.compute(data.shape, lambda *i: _of(data, 1.0) / (_of(data, 1.0) + power(*i)), name="sigmoid")


def silu(data: te.Tensor) -> te.Tensor:
    """x * sigmoid(x)."""
    gate = sigmoid(data)
    return te.compute(data.shape, lambda *i: data(*i) * gate(*i), name="silu")


def gelu(data: te.Tensor) -> te.Tensor:
    """x times the normal distribution's share below x."""
    part = erf(te.compute(data.shape, lambda *i: data(*i) * _of(data, math.sqrt(0.5)), name="scaled"))
    return te.compute(data.shape, lambda *i: data(*i) * (_of(data, 0.5) + part(*i) * _of(data, 0.5)), name="gelu")


def gelu_tanh(data: te.Tensor) -> te.Tensor:
    """GELU's approximation by a hyperbolic tangent."""

    def scaled(*i: te.Var) -> te.PrimExpr:
        x = data(*i)
        return _of(data, math.sqrt(2 / math.pi)) * (x + _of(data, 0.044715) * x * x * x)

    inner = te.compute(data.shape, scaled, name="scaled")
    part = tanh(inner)
    return te.compute(data.shape, lambda *i: data(*i) * (_of(data, 0.5) + part(*i) * _of(data, 0.5)), name="gelu_tanh")
