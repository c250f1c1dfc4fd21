"""The machine's roof for arithmetic: multiply-adds a second with everything in registers, measured like a kernel.

A share of this peak says how good a kernel is on the machine as it is now; where others use the same cores the peak
drops with the kernel, so the two are measured in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tvm

    from tvmopt.machine import Machine

# Independent sums a core: more than latency (4) times units (2), few enough for the registers of any x86 with AVX2.
_SUMS = 12
# Latency of a fused multiply-add in cycles, on Intel since Skylake and on AMD since Zen.
_LATENCY = 4
_STEPS = 20_000


@dataclass(frozen=True)
class Roof:
    """`gflops`: measured, all cores. `clock_ghz`: from a chain of dependent multiply-adds. `units`: implied by both."""

    gflops: float
    clock_ghz: float
    units: float


def _function(cores: int, lanes: int, sums: int) -> tvm.tirx.PrimFunc:
    """`sums` registers a core, each updated `_STEPS` times; x is (2, lanes), out (cores, sums, lanes), float32."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((2, lanes), "float32"), out: T.Buffer((cores, sums, lanes), "float32")) -> None:  # type: ignore[valid-type]
        T.func_attr({"tirx.noalias": True})
        for core in T.parallel(cores):
            with T.sblock("peak"):
                v = T.axis.spatial(cores, core)
                total = T.sblock_alloc_buffer((sums, lanes), "float32", scope="local")
                for i in T.unroll(sums):
                    for lane in T.vectorized(lanes):
                        total[i, lane] = x[0, lane]
                for _step in T.serial(_STEPS):
                    for i in T.unroll(sums):
                        for lane in T.vectorized(lanes):
                            total[i, lane] = total[i, lane] * x[0, lane] + x[1, lane]
                for i in T.unroll(sums):
                    for lane in T.vectorized(lanes):
                        out[v, i, lane] = total[i, lane]

    return main


def _stopwatch(machine: Machine, cores: int, sums: int) -> tuple[Callable[[], float], float]:
    """A function that times one run in seconds, and the operations of a run."""
    import tvm

    function = _function(cores, machine.lanes, sums)
    built = tvm.compile(tvm.IRModule({"main": function}), target=machine.target())["main"]
    factors = np.stack([np.full(machine.lanes, 0.999), np.full(machine.lanes, 0.001)]).astype("float32")
    x = tvm.runtime.tensor(factors)
    out = tvm.runtime.tensor(np.zeros((cores, sums, machine.lanes), "float32"))

    def run() -> float:
        started = time.perf_counter()
        built(x, out)
        return time.perf_counter() - started

    run()
    return run, 2.0 * cores * sums * machine.lanes * _STEPS


class Peak:
    """Measures the roof again and again, cheaply (under a millisecond a time)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._all, self._operations = _stopwatch(machine, machine.cores, _SUMS)
        self._chain, self._chain_operations = _stopwatch(machine, 1, 1)

    def gflops(self) -> float:
        """The best of three runs on all cores, in 1e9 operations a second."""
        return self._operations / min(self._all() for _ in range(3)) * 1e-9

    def roof(self, rounds: int = 30) -> Roof:
        """The best of `rounds` runs, with the clock that a chain of dependent operations gives."""
        gflops = max(self.gflops() for _ in range(rounds))
        chain = self._chain_operations / min(self._chain() for _ in range(rounds)) * 1e-9
        clock = chain * _LATENCY / (2 * self._machine.lanes)
        return Roof(gflops, clock, gflops / (clock * 2 * self._machine.lanes * self._machine.cores))
