"""The machine's roof for arithmetic: multiply-adds a second with everything in registers, measured like a kernel.

A share of this peak says how good a kernel is on the machine as it is now; where others use the same cores the peak
drops with the kernel, so the two are measured in turns.

That alone is not enough where a neighbour runs on the other hardware thread of a core. It takes instruction slots and
L1 bandwidth, of which a loop that only multiplies registers needs little, so the peak can look undisturbed while every
kernel runs at half its speed. A second loop, a register tile fed from L1, needs all of them: on an idle core it runs at
the peak, too, and the turns in which it does are the ones that show the kernel rather than the neighbour. A neighbour
who mostly waits for memory leaves both alone and empties L2 of what the kernel had there: a third loop is the second
one fed from L2. And where a virtual machine's cores are moved apart, a launch on all of them takes twice as long while
each core is as fast as before: a fourth loop does nothing but launch.
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
# A loop this close to its best was not disturbed: its own spread on an idle core is 1 to 2%.
QUIET = 0.96
# Cores that have slept start at a low clock, and both threads of a pool may be woken on one of them until the system
# has seen it. After so long a rest the loops run for so long before anything is measured.
_REST_S, _WAKE_S = 0.002, 0.005
# Between two looks whether a neighbour has gone.
_PAUSE_S = 0.02
# Latency of a fused multiply-add in cycles, on Intel since Skylake and on AMD since Zen.
_LATENCY = 4
# A run of 0.2 to 0.4 ms: one of 60 us was a launch and a wake-up for a tenth of its time.
_STEPS = 80_000
# The second loop's depth: with it the operands of the largest tile take 11 KiB, inside any L1.
_DEPTH = 64
_LAUNCHES = 100
# The third's operands take this part of L2, of which neither the code nor the system's own data may be short.
_OF_L2 = 4


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


def _tile_function(
    cores: int, lanes: int, rows: int, vectors: int, repeats: int, depth: int = _DEPTH
) -> tvm.tirx.PrimFunc:
    """A register tile a core, fed from the cache that `depth` fits, float32.

    x (cores, rows, depth) by w (cores, depth, vectors, lanes) to out (cores, rows, vectors, lanes).
    """
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def main(
        x: T.Buffer((cores, rows, depth), "float32"),  # type: ignore[valid-type]
        w: T.Buffer((cores, depth, vectors, lanes), "float32"),  # type: ignore[valid-type]
        out: T.Buffer((cores, rows, vectors, lanes), "float32"),  # type: ignore[valid-type]
    ) -> None:
        T.func_attr({"tirx.noalias": True})
        for core in T.parallel(cores):
            with T.sblock("tile"):
                c = T.axis.spatial(cores, core)
                total = T.sblock_alloc_buffer((rows, vectors, lanes), "float32", scope="local")
                for i in T.unroll(rows):
                    for j in T.unroll(vectors):
                        for lane in T.vectorized(lanes):
                            total[i, j, lane] = T.float32(0)
                for _step in T.serial(repeats):
                    for k in T.serial(depth):
                        for i in T.unroll(rows):
                            for j in T.unroll(vectors):
                                for lane in T.vectorized(lanes):
                                    total[i, j, lane] = total[i, j, lane] + x[c, i, k] * w[c, k, j, lane]
                for i in T.unroll(rows):
                    for j in T.unroll(vectors):
                        for lane in T.vectorized(lanes):
                            out[c, i, j, lane] = total[i, j, lane]

    return main


def _launch_function(cores: int, lanes: int) -> tvm.tirx.PrimFunc:
    """`_LAUNCHES` launches on all cores, each to add x (cores, lanes) to out of the same shape, float32."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def main(
        x: T.Buffer((cores, lanes), "float32"),  # type: ignore[valid-type]
        out: T.Buffer((cores, lanes), "float32"),  # type: ignore[valid-type]
    ) -> None:
        T.func_attr({"tirx.noalias": True})
        for _ in T.serial(_LAUNCHES):
            for core in T.parallel(cores):
                for lane in T.vectorized(lanes):
                    out[core, lane] = out[core, lane] + x[core, lane]

    return main


def _stopwatch(function: tvm.tirx.PrimFunc, machine: Machine) -> Callable[[], float]:
    """A function that times one run in seconds; arguments small enough that sums neither overflow nor vanish."""
    import tvm

    built = tvm.compile(tvm.IRModule({"main": function}), target=machine.target())["main"]
    shapes = [tuple(int(extent) for extent in parameter.shape) for parameter in function.params]
    arguments = [tvm.runtime.tensor(np.full(shape, 0.001, "float32")) for shape in shapes[:-1]]
    if shapes[0] == (2, shapes[-1][-1]):
        arguments[0].copyfrom(np.stack([np.full(shapes[0][1], 0.999), np.full(shapes[0][1], 0.001)]).astype("float32"))
    arguments.append(tvm.runtime.tensor(np.zeros(shapes[-1], "float32")))

    def run() -> float:
        started = time.perf_counter()
        built(*arguments)
        return time.perf_counter() - started

    run()
    return run


class Peak:
    """Measures the roof again and again, cheaply (a few milliseconds a time)."""

    def __init__(self, machine: Machine) -> None:
        cores, lanes = machine.cores, machine.lanes
        # 12 x 2 sums in 32 registers, 6 x 2 in 16: the two vectors of weights and a broadcast value fit beside them.
        rows, vectors = (12, 2) if machine.registers >= 32 else (6, 2)
        repeats = _STEPS * _SUMS // (rows * vectors * _DEPTH)
        self._machine = machine
        self._best = 0.0
        self._ran = -_REST_S
        self._all = _stopwatch(_function(cores, lanes, _SUMS), machine)
        self._operations = 2.0 * cores * _SUMS * lanes * _STEPS
        self._tile = _stopwatch(_tile_function(cores, lanes, rows, vectors, repeats), machine)
        self._tile_operations = 2.0 * cores * lanes * rows * vectors * _DEPTH * repeats
        # An odd number of floats: rows a multiple of 4 KiB apart would meet in one set of L1.
        depth = machine.l2 // _OF_L2 // (4 * (rows + vectors * lanes)) | 1
        repeats = max(1, _STEPS * _SUMS // (rows * vectors * depth))
        self._deep = _stopwatch(_tile_function(cores, lanes, rows, vectors, repeats, depth), machine)
        self._deep_operations = 2.0 * cores * lanes * rows * vectors * depth * repeats
        self._launch = _stopwatch(_launch_function(cores, lanes), machine)
        self._chain = _stopwatch(_function(1, lanes, 1), machine)
        self._chain_operations = 2.0 * lanes * _STEPS

    def gflops(self) -> float:
        """Registers only: the best of three runs on all cores, in 1e9 operations a second."""
        return self._operations / self._least(self._all) * 1e-9

    def tile_gflops(self) -> float:
        """A register tile fed from L1: the best of three runs on all cores, in 1e9 operations a second."""
        return self._tile_operations / self._least(self._tile) * 1e-9

    def deep_gflops(self) -> float:
        """The same tile fed from L2: the best of three runs on all cores, in 1e9 operations a second."""
        return self._deep_operations / self._least(self._deep) * 1e-9

    def launches(self) -> float:
        """Launches on all cores, in thousands a second: the best of three runs."""
        return _LAUNCHES / self._least(self._launch) * 1e-3

    def _least(self, run: Callable[[], float]) -> float:
        """The least of three runs, in seconds, once the cores are awake."""
        began = time.monotonic()
        if began - self._ran > _REST_S:
            while time.monotonic() - began < _WAKE_S:
                run()
        least = min(run() for _ in range(3))
        self._ran = time.monotonic()
        return least

    def quiet(self, share: float = QUIET) -> bool:
        """Whether nobody else uses the cores now: both loops run at `share` of the best this object has seen."""
        found = self.gflops(), self.tile_gflops()
        self._best = max(self._best, *found)
        return min(found) >= share * self._best

    def wait_until_quiet(self, limit_s: float) -> bool:
        """Sleep until it is, `limit_s` seconds at most; whether it is."""
        ends = time.monotonic() + limit_s
        while not self.quiet():
            if time.monotonic() > ends:
                return False
            time.sleep(_PAUSE_S)
        return True

    def clock_ghz(self, rounds: int = 30) -> float:
        """The clock, from the best of `rounds` runs of a chain of dependent multiply-adds on one core."""
        chain = self._chain_operations / min(self._chain() for _ in range(rounds)) * 1e-9
        return chain * _LATENCY / (2 * self._machine.lanes)

    def roof(self, rounds: int = 30) -> Roof:
        """The best of `rounds` runs, with the clock beside it."""
        gflops, clock = max(self.gflops() for _ in range(rounds)), self.clock_ghz(rounds)
        return Roof(gflops, clock, gflops / (clock * 2 * self._machine.lanes * self._machine.cores))
