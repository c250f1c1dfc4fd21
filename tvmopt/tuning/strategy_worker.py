"""The process that times kernels which compute the same by different strategies, and so take different arguments."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from tvmopt.tuning.process import serve

# Weights that are to come from memory are as many copies as fill this: three times an L3 of 32 MiB.
STREAMED_BYTES = 96 << 20
# One turn of one kernel.
TURN_S = 0.004


class StrategyWorker:
    """What the process can be asked."""

    def __init__(self) -> None:
        self._kernels: dict[str, tuple[Any, list[list[Any]]]] = {}

    def add(self, name: str, module: str, target: dict[str, Any], constants: Sequence[int], streamed: bool) -> None:
        """Builds the module (TVM's JSON); with `streamed`, successive calls take other copies of its constants."""
        import numpy as np
        import tvm

        from tvmopt.graph.host_pipeline import compile_kernels
        from tvmopt.graph.kernels import random_integers

        loaded = tvm.ir.load_json(module)
        function = compile_kernels(loaded, tvm.target.Target(target)).jit()["main"]
        generator = np.random.default_rng(0)

        def make(index: int) -> Any:
            param = loaded["main"].params[index]
            shape, dtype = [int(size) for size in param.shape], str(param.dtype)
            if dtype.startswith("float"):
                return tvm.runtime.tensor(generator.standard_normal(shape, dtype=np.float32).astype(dtype))
            # Offsets all over the input, as a pattern has them: what a sparse kernel reads is part of its time.
            return tvm.runtime.tensor(random_integers(loaded["main"], shape, generator).astype(dtype))

        arguments = [make(index) for index in range(len(loaded["main"].params))]
        sizes = {index: int(np.prod(arguments[index].shape)) * 4 for index in constants}
        copies = 1
        if streamed and sizes:
            copies = max(1, min(256, STREAMED_BYTES // max(sum(sizes.values()), 1)))
        rotated = [arguments]
        for _ in range(copies - 1):
            rotated.append([
                tvm.runtime.tensor(a.numpy()) if index in sizes else a for index, a in enumerate(arguments)
            ])  # fmt: skip
        for some in rotated:
            function(*some)
        self._kernels[name] = (function, rotated)

    def time(self, rounds: int) -> dict[str, float]:
        """Median seconds of a call for each kernel, all taking turns in random order."""
        generator = random.Random(0)
        samples: dict[str, list[float]] = {name: [] for name in self._kernels}
        place = dict.fromkeys(self._kernels, 0)
        once = dict.fromkeys(self._kernels, 0.001)
        for _ in range(rounds):
            names = list(self._kernels)
            generator.shuffle(names)
            for name in names:
                function, rotated = self._kernels[name]
                calls = max(1, round(TURN_S / once[name]))
                turn = [rotated[(place[name] + i) % len(rotated)] for i in range(calls)]
                place[name] += calls
                start = time.perf_counter()
                for arguments in turn:
                    function(*arguments)
                once[name] = max((time.perf_counter() - start) / calls, 1e-6)
                samples[name].append(once[name])
        return {name: statistics.median(times) for name, times in samples.items()}


def main() -> None:
    """Serves on the process's own pipes."""
    import tvm  # noqa: F401  loaded before the first request, so that no time limit counts it

    serve(StrategyWorker())


if __name__ == "__main__":
    main()
