"""A kernel at a boundary shape, with its inputs and what PyTorch computes in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  (bfloat16 as numpy's)
import numpy as np
from tvm import te, tirx

from tvmopt.graph.kernels import Kernel, bytes_moved, describe

Arrays = list[np.ndarray]

HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Case:
    """A kernel, how many terms its sums have, its inputs by seed, and the result they should have.

    `roundings`: how often a result in half precision is rounded, as behind the sum and behind the bias.
    """

    label: str
    depth: int
    func: tirx.PrimFunc
    inputs: Callable[[], Arrays]
    expected: Callable[[Arrays], np.ndarray]
    roundings: int = 2

    @property
    def kernel(self) -> Kernel:
        """As rules see it."""
        op, flops = describe(self.func)
        return Kernel(self.label, self.func, op, 1, flops, bytes_moved(self.func))


def random(*shapes: tuple[int, ...], dtype: str = "float32") -> Arrays:
    """Normal random numbers, the same at every call."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def biased(out: te.Tensor, bias: te.Tensor) -> te.Tensor:
    """The epilogue of all cases: a bias for each column, and ReLU."""
    zero = te.const(0, out.dtype)
    return te.compute(out.shape, lambda *i: te.max(out(*i) + bias[i[-1]], zero), name="epilogue")
