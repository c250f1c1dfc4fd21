"""Cold caches: what a call costs whose weights, inputs and code have gone from the caches meanwhile.

Between two calls every core reads and writes more memory than its caches hold, as the rest of a program would. Each
sample is one call, so thread pools are found asleep, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Flush:
    """Pushes everything out of the caches of `threads` cores; `caches` are L1, L2 (a core's) and L3 (shared) bytes."""

    def __init__(self, threads: int, caches: tuple[int, int, int]) -> None:
        import numpy as np

        _, l2, l3 = caches
        # Twice what the caches hold: their replacement is not exactly least-recently-used.
        share = 2 * max(l2, l3 // threads)
        self._buffers = [np.zeros(share // 8) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self) -> None:
        """Sweeps once, on all cores at once (numpy lets other threads run while it works)."""
        list(self._pool.map(_sweep, self._buffers))


def _sweep(buffer: object) -> None:
    buffer += 1.0  # type: ignore[operator]


def take_cold(call: Callable[[], object], flush: Flush, samples: int, budget_s: float) -> list[float]:
    """Seconds of `samples` single calls, each after a flush; fewer (but one) once `budget_s` is spent."""
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < samples and (not taken or time.perf_counter() - begin < budget_s):
        flush()
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken
