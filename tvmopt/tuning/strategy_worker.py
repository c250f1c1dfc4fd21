"""The process that times kernels which compute the same by different strategies, and so take different arguments."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from tvmopt.tuning.process import serve

# One turn of one kernel.
TURN_S = 0.004


class StrategyWorker:
    """What the process can be asked."""

    def __init__(self) -> None:
        self._kernels: dict[str, tuple[Any, list[list[Any]]]] = {}
        # The GPU that kernels run on, where it is one.
        self._gpu: Any = None

    def is_sound(self) -> bool:
        """Whether the GPU still answers this process, which after a kernel's fault it never does again."""
        from tvmopt.runtime.gpu import answers

        return self._gpu is None or answers(self._gpu)

    def add(self, name: str, module: str, target: dict[str, Any], constants: Sequence[int], streamed: int) -> None:
        """Builds the module (TVM's JSON). Successive calls take other copies of its constants, which fill `streamed`
        bytes; with 0 always the same."""
        import numpy as np
        import tvm

        from tvmopt.graph.kernels import random_integers
        from tvmopt.tuning.worker import compile_kernel

        loaded = tvm.ir.load_json(module)
        built_for = tvm.target.Target(target)
        device = tvm.cpu()
        if built_for.kind.name == "cuda":
            self._gpu = device = tvm.cuda(0)
        function = compile_kernel(built_for, loaded).jit()["main"]
        generator = np.random.default_rng(0)

        def make(index: int) -> np.ndarray:
            param = loaded["main"].params[index]
            shape, dtype = [int(size) for size in param.shape], str(param.dtype)
            if dtype.startswith("float"):
                return generator.standard_normal(shape, dtype=np.float32).astype(dtype)
            # Offsets all over the input, as a pattern has them: what a sparse kernel reads is part of its time.
            return random_integers(loaded["main"], shape, generator).astype(dtype)

        arrays = [make(index) for index in range(len(loaded["main"].params))]
        size = sum(arrays[index].size * 4 for index in constants)
        copies = max(1, min(256, streamed // size)) if size else 1
        rotated = [[tvm.runtime.tensor(array, device) for array in arrays]]
        for _ in range(copies - 1):
            rotated.append([
                tvm.runtime.tensor(arrays[index], device) if index in constants else one
                for index, one in enumerate(rotated[0])
            ])  # fmt: skip
        for some in rotated:
            function(*some)
        # A fault is told here, with the kernel's name, and not at another one's turn.
        self._wait()
        self._kernels[name] = (function, rotated)

    def time(self, rounds: int) -> dict[str, float]:
        """Median seconds of a call for each kernel, all taking turns in random order.

        On a GPU a turn's calls are queued one behind the other, as a network's are, and it ends when the last is done.
        """
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
                self._wait()
                start = time.perf_counter()
                for arguments in turn:
                    function(*arguments)
                self._wait()
                once[name] = max((time.perf_counter() - start) / calls, 1e-6)
                samples[name].append(once[name])
        return {name: statistics.median(times) for name, times in samples.items()}

    def _wait(self) -> None:
        """Until the GPU has done all that it was asked for; a CPU's kernels have when they return."""
        if self._gpu is not None:
            self._gpu.sync()


def main() -> None:
    """Serves on the process's own pipes."""
    import tvm  # noqa: F401  loaded before the first request, so that no time limit counts it

    worker = StrategyWorker()
    serve(worker, worker.is_sound)


if __name__ == "__main__":
    main()
