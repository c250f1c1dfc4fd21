"""Elementary functions as arithmetic, a register of values at a time.

LLVM has no vector form of exp, tanh or erf: it calls the C library once a lane, which in an epilogue takes longer than
the convolution before it (SiLU behind a 1x1 convolution of 16 channels: ten times as long). Here they are polynomials
(exp: Cephes' expf after the range is reduced by powers of two; tanh, erf: rational minimax approximations as in
Eigen), with an error of at most 3e-7 of the largest value, which is 2 units in the last place.
"""

from __future__ import annotations

import math

from tvm import te, tirx, topi


def _of(data: te.Tensor, value: float) -> te.PrimExpr:
    return tirx.const(value, data.dtype)


def exp(data: te.Tensor) -> te.Tensor:
    """e to the power of `data`, which is taken as -88 below that and as 88 above."""
    return topi.fast_exp(data)


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
