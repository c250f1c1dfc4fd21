"""What a kernel must compute in tuning: its inputs, and the function that says what is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import tvm

# Unscheduled, on one thread of a CPU, a product of two 4096 x 4096 matrices takes minutes, in every worker; one of this
# many operations takes some seconds.
LARGE_FLOPS = 4e9


def is_large(func: tvm.tirx.PrimFunc) -> bool:
    """Whether a CPU is too slow to say what is right of a GPU's kernel."""
    from tvmopt.graph.kernels import describe

    return describe(func)[1] > LARGE_FLOPS


def plainly(module: tvm.IRModule) -> tvm.IRModule:
    """An unscheduled kernel as a GPU runs it with the least that could be wrong: a thread for every output."""
    import tvm

    from tvmopt.graph.gpu_default import schedule_plainly

    named = module["main"].with_attr("global_symbol", "main")
    return tvm.IRModule({"main": schedule_plainly(named)})


def inputs(func: Any, seed: int, positive: bool) -> list[Any]:
    """Random arguments for every parameter: normal floats, integers that are valid as offsets, indices and masks.

    `positive` floats lie in 0.5 to 1.5, for kernels that take roots or logarithms of what they are given.
    """
    import numpy as np
    import tvm

    from tvmopt.graph.kernels import random_integers

    generator = np.random.default_rng(seed)
    arguments = []
    for param in func.params:
        shape = [int(size) for size in param.shape]
        dtype = str(param.dtype)
        if not dtype.startswith(("float", "bfloat")):
            array: np.ndarray = random_integers(func, shape, generator)
        elif positive:
            array = generator.uniform(0.5, 1.5, shape)
        else:
            array = generator.standard_normal(shape, dtype=np.float32)
        empty = tvm.runtime.empty(shape, dtype, tvm.cpu())
        arguments.append(empty.copyfrom(array.astype(empty.numpy().dtype)))
    return arguments


def wide(array: np.ndarray) -> np.ndarray:
    """In fp64 where it is of floats; a copy."""
    return array.astype("float64") if "float" in array.dtype.name else array.copy()


def finite(arrays: list[np.ndarray]) -> bool:
    """Whether there is neither infinity nor NaN in them."""
    import numpy as np

    return all(np.isfinite(array).all() for array in arrays)
