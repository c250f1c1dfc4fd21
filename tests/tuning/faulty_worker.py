"""A tuning worker on a made-up GPU, whose kernel `FAULT` does what an illegal address does: nothing works after it."""

from __future__ import annotations

from typing import Any

from tvmopt.tuning.process import serve
from tvmopt.tuning.worker import Worker

FAULT = 0


class Gpu:
    """TVM's device, as far as it is asked whether it answers."""

    def __init__(self) -> None:
        self.faulted = False

    def sync(self) -> None:
        if self.faulted:
            raise RuntimeError("CUDAError: an illegal memory access was encountered")


class FaultyWorker(Worker):
    """What the process is asked, without what it takes to build and to measure."""

    def __init__(self) -> None:
        super().__init__()
        self._gpu = Gpu()

    def kernel(self, *_: Any) -> float:
        self._gpu.sync()
        return 1e-6

    def build(self, *_: Any) -> None:
        """Building needs no GPU."""

    def drop(self, *_: Any) -> None:
        """There is nothing to forget."""

    def measure(self, key: str, number: int, rounds: int) -> dict[str, Any]:
        self._gpu.faulted = self._gpu.faulted or number == FAULT
        if number == 1:
            raise ValueError("a launch that asks for too much")
        self._gpu.sync()
        return {"seconds": 1e-6, "baseline": 2e-6, "ratio": 0.5}


if __name__ == "__main__":
    worker = FaultyWorker()
    serve(worker, worker.is_sound)
