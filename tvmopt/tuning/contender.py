"""The process of one built network while it is timed against another: each has its own, and they take turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvmopt.tuning.process import serve


class Contender:
    """What the process can be asked."""

    def load(self, path: str, inputs: list[Any]) -> list[Any]:
        """Loads the artifact at `path` and returns its outputs for `inputs` (numpy arrays)."""
        from tvmopt.runtime.artifact import load
        from tvmopt.runtime.verify import flatten

        self._compiled = load(Path(path))
        self._inputs = inputs
        return [array.copy() for array in flatten(self._compiled(*inputs))]

    def warm(self) -> float:
        """Warms up and settles how many calls a sample is; returns seconds per call."""
        from tvmopt.runtime.timer import calibrate, stopwatch, warm_up

        self._watch = stopwatch(lambda: self._compiled(*self._inputs))
        seconds = warm_up(self._watch)
        self._calls = calibrate(self._watch, seconds)
        return seconds

    def turn(self, samples: int) -> list[float]:
        """One turn's samples, in seconds per call."""
        from tvmopt.runtime.timer import take_round

        return take_round(self._watch, self._calls, samples)


if __name__ == "__main__":
    serve(Contender())
