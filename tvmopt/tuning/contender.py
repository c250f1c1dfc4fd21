"""The process of one built network while it is timed against another: each has its own, and they take turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvmopt.tuning.process import serve


class Contender:
    """What the process can be asked."""

    def load(self, path: str, inputs: list[Any]) -> list[Any]:
        """Loads the artifact at `path` and returns its outputs for `inputs` (numpy arrays), as arrays."""
        import torch

        from tvmopt.runtime.artifact import load
        from tvmopt.runtime.gpu import CompiledForGpu
        from tvmopt.runtime.verify import flatten

        self._compiled = load(Path(path))
        # A PyTorch without CUDA has no tensors there: arrays are copied there and back, and that is timed, too.
        self._on_gpu = isinstance(self._compiled, CompiledForGpu) and torch.cuda.is_available()
        self._inputs = [torch.from_numpy(one).cuda() for one in inputs] if self._on_gpu else inputs
        outputs: list[Any] = list(flatten(self._compiled(*self._inputs)))
        return [one.cpu().numpy() for one in outputs] if self._on_gpu else [one.copy() for one in outputs]

    def warm(self) -> float:
        """Warms up and settles how many calls a sample is; returns seconds per call."""
        from tvmopt.runtime import timer

        watch = timer.event_stopwatch if self._on_gpu else timer.stopwatch
        self._watch = watch(lambda: self._compiled(*self._inputs))
        seconds = timer.warm_up(self._watch)
        self._calls = timer.calibrate(self._watch, seconds)
        return seconds

    def turn(self, samples: int) -> list[float]:
        """One turn's samples, in seconds per call."""
        from tvmopt.runtime.timer import take_round

        return take_round(self._watch, self._calls, samples)


if __name__ == "__main__":
    serve(Contender())
