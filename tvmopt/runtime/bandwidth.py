"""The machine's roof for bytes: how many a second all cores move, by how many there are and what part is written.

Each cache has its own rate, and so has memory. "STREAM" (McCalpin, 1995) is this for memory.

A kernel that reads its weights once is bound by reading, one that adds two tensors by reading and writing: on a core
whose cache takes a store beside its loads the second moves half as many bytes again. Both are measured, and a kernel
is set beside the mixture that its own bytes are.

Which pages the system gave an array decides how much of it meets in one set of a cache: around the size of L2 one
array takes a third longer than the next of the same size. So the best of several arrays counts; what a larger set
reaches a smaller one reaches, too; and a size that is asked for again is measured again, since the first time may
have been disturbed.
"""

from __future__ import annotations

import math
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tvm

    from tvmopt.machine import Machine

# Sets are measured from 16 KiB to 256 MiB in steps of a quarter of a doubling: around a cache's size the rate falls by
# a third within one doubling.
_SMALLEST_SET, _LARGEST_SET = 1 << 14, 1 << 28
_STEPS_A_DOUBLING = 4
# Bytes moved in a sample at least, samples of an array, and arrays.
_MOVED = 1 << 24
_SAMPLES, _ARRAYS = 6, 4
# Of three vectors that adding moves one is written.
ADD_WRITES = 1 / 3
# Vectors read at a time: as many additions in flight.
_IN_FLIGHT = 8


class Bandwidth:
    """Bytes a second of all cores, measured when asked for."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._reading: dict[int, float] = {}
        self._adding: dict[int, float] = {}

    @property
    def known(self) -> tuple[tuple[int, float], ...]:
        """What was measured so far of reading: working set in bytes, bytes a second, the smallest first."""
        return tuple((size, _at_least(self._reading, size)) for size in sorted(self._reading))

    def __call__(self, size: int, written: float = 0.0) -> float:
        """Bytes a second of a working set of `size` bytes, the part `written` of which (0 to 1) is written.

        The time of a byte lies between that of reading and that of adding in place as `written` lies between 0 and
        `ADD_WRITES`; what writes more is taken for adding.
        """
        step = rounded(size)
        # A size that is unlucky (see above) is held up by the next one.
        for one in dict.fromkeys((step, rounded(2 * step))):
            self._measure(one)
        share = min(written / ADD_WRITES, 1.0)
        return 1 / ((1 - share) / _at_least(self._reading, step) + share / _at_least(self._adding, step))

    def _measure(self, size: int) -> None:
        cores, lanes = self._machine.cores, self._machine.lanes
        groups = size // (4 * cores * lanes * _IN_FLIGHT)
        vectors = groups * _IN_FLIGHT // 2
        repeats = max(1, _MOVED // size)
        read: list[tuple[int, ...]] = [(cores, groups, _IN_FLIGHT, lanes), (cores, _IN_FLIGHT, lanes)]
        add: list[tuple[int, ...]] = [(cores, vectors, lanes)] * 2
        for known, run, shapes, moved in (
            (self._reading, self._read, read, size), (self._adding, self._add, add, 1.5 * size),
        ):  # fmt: skip
            least = min(self._fastest(run, shapes, repeats) for _ in range(_ARRAYS))
            known[size] = max(known.get(size, 0.0), repeats * moved / least)

    def _fastest(self, run: Any, shapes: list[tuple[int, ...]], repeats: int) -> float:
        """The least seconds of a call on new arrays; the values so small that sums neither overflow nor vanish."""
        import tvm

        arrays = [tvm.runtime.tensor(np.full(shape, 0.001, "float32")) for shape in shapes]

        def seconds() -> float:
            started = time.perf_counter()
            run(*arrays, repeats)
            return time.perf_counter() - started

        seconds()
        return min(seconds() for _ in range(_SAMPLES))

    @cached_property
    def _read(self) -> Any:
        return _compiled(_read_function(self._machine.cores, self._machine.lanes), self._machine)

    @cached_property
    def _add(self) -> Any:
        return _compiled(_add_function(self._machine.cores, self._machine.lanes), self._machine)


def rounded(size: int) -> int:
    """The nearest working set that is measured, in bytes."""
    nearest = 2 ** (round(math.log2(max(size, 1)) * _STEPS_A_DOUBLING) / _STEPS_A_DOUBLING)
    return min(max(round(nearest), _SMALLEST_SET), _LARGEST_SET)


def _at_least(rates: dict[int, float], size: int) -> float:
    return max(rate for other, rate in rates.items() if other >= size)


def _compiled(function: tvm.tirx.PrimFunc, machine: Machine) -> Any:
    import tvm

    return tvm.compile(tvm.IRModule({"main": function}), target=machine.target())["main"]


def _add_function(cores: int, lanes: int) -> tvm.tirx.PrimFunc:
    """x (cores, vectors, lanes) added to a scaled out of the same shape, `repeats` times, float32."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def main(x_data: T.handle, out_data: T.handle, repeats: T.int32) -> None:  # type: ignore[valid-type]
        T.func_attr({"tirx.noalias": True})
        vectors = T.int32()
        x = T.match_buffer(x_data, (cores, vectors, lanes), "float32")
        out = T.match_buffer(out_data, (cores, vectors, lanes), "float32")
        for core in T.parallel(cores):
            for _ in T.serial(repeats):
                for vector in T.serial(vectors):
                    for lane in T.vectorized(lanes):
                        out[core, vector, lane] = out[core, vector, lane] * T.float32(0.5) + x[core, vector, lane]

    return main


def _read_function(cores: int, lanes: int) -> tvm.tirx.PrimFunc:
    """x (cores, groups, _IN_FLIGHT, lanes) summed up over the groups, `repeats` times, float32."""
    from tvm.script import tirx as T

    wide = _IN_FLIGHT

    @T.prim_func(s_tir=True)
    def main(x_data: T.handle, out_data: T.handle, repeats: T.int32) -> None:  # type: ignore[valid-type]
        T.func_attr({"tirx.noalias": True})
        groups = T.int32()
        x = T.match_buffer(x_data, (cores, groups, wide, lanes), "float32")
        out = T.match_buffer(out_data, (cores, wide, lanes), "float32")
        for core in T.parallel(cores):
            with T.sblock("read"):
                c = T.axis.spatial(cores, core)
                total = T.sblock_alloc_buffer((wide, lanes), "float32", scope="local")
                for i in T.unroll(wide):
                    for lane in T.vectorized(lanes):
                        total[i, lane] = T.float32(0)
                for _ in T.serial(repeats):
                    for group in T.serial(groups):
                        for i in T.unroll(wide):
                            for lane in T.vectorized(lanes):
                                total[i, lane] = total[i, lane] + x[c, group, i, lane]
                for i in T.unroll(wide):
                    for lane in T.vectorized(lanes):
                        out[c, i, lane] = total[i, lane]

    return main
