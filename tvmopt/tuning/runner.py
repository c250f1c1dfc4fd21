"""Building and measuring candidates in worker processes: all build at once, then one at a time measures.

Building beside a measurement would disturb it, so a batch is built by as many workers as there are cores and then
measured by one after the other. A worker that crashes or hangs is replaced, and costs the candidate it was at.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmopt.machine import threads_environment
from tvmopt.tuning.process import Process, WorkerBroken, WorkerDied, WorkerError, WorkerTimeout
from tvmopt.tuning.worker import ROUNDS

if TYPE_CHECKING:
    import tvm

    from tvmopt.machine import AnyMachine

BUILD_LIMIT_S = 30.0
RUN_LIMIT_S = 15.0
# The reference runs unscheduled, on one thread: the largest convolutions take seconds.
OPEN_LIMIT_S = 180.0
# Turns the best and the baseline take in the final; in the first measurement worker.ROUNDS.
FINAL_ROUNDS = 101
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Measurement:
    """How one candidate did.

    `status` is `ok`, `wrong` (it computes something else), `build` (it does not build), `crash` or `timeout`;
    `seconds` is the median of its samples, `baseline` manual's in the same rounds, `ratio` the median of the rounds'
    ratios: these are there when it is `ok`, `message` when it is not.
    """

    status: str
    seconds: float = 0.0
    baseline: float = 0.0
    ratio: float = 0.0
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether it computed the right thing and was timed."""
        return self.status == "ok"


class Runner:
    """Worker processes on this machine, and the kernel they are at. Use it in a `with`."""

    def __init__(
        self, machine: AnyMachine, *, workers: int | None = None, strategy: str | None = None, seed: int = 0,
        build_limit_s: float = BUILD_LIMIT_S, run_limit_s: float = RUN_LIMIT_S,
    ) -> None:  # fmt: skip
        self._machine = machine
        self._strategy = strategy
        self._seed = seed
        self._limits = (build_limit_s, run_limit_s)
        self._processes: list[Process | None] = [None] * (workers or min(machine.cores, _MOST_WORKERS))
        self._opened: list[set[str]] = [set() for _ in self._processes]
        self._kernels: dict[str, tuple[Any, ...]] = {}
        self._key = ""
        self._numbers = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all worker processes."""
        for process in self._processes:
            if process is not None:
                process.close()

    def open(self, key: str, func: tvm.tirx.PrimFunc, baseline: tvm.IRModule) -> float:
        """Turns to a kernel: `func` unscheduled says what is right, `baseline` is manual's schedule of it.

        Returns the baseline's seconds per call (one sample; 0.0 for a kernel opened before).

        Raises:
            WorkerError: manual's schedule does not build, crashes or computes something else.
        """
        if not self._take_up(key, func, baseline):
            return 0.0
        try:
            return self._each([lambda i=i: self._worker(i)[1] for i in range(len(self._processes))])[0]
        except WorkerError:
            del self._kernels[key]
            raise

    def _take_up(self, key: str, func: tvm.tirx.PrimFunc, baseline: tvm.IRModule) -> bool:
        """Makes a kernel the current one; returns whether it is new."""
        import tvm.ir

        from tvmopt.tuning.log import key_module

        self._key = key
        if key in self._kernels:
            return False
        spec = {
            "target": dict(self._machine.target().export()),
            "outputs": output_indices(func),
            "dtype": compute_dtype(func),
            "strategy": self._strategy,
            "seed": self._seed,
        }
        self._kernels[key] = (tvm.ir.save_json(key_module(func)), tvm.ir.save_json(baseline), spec)
        return True

    def measure(self, modules: Sequence[tvm.IRModule], *, rounds: int = ROUNDS) -> list[Measurement]:
        """Builds and measures scheduled modules (function `main`) of the current kernel, in their order."""
        numbers = self._take_numbers(len(modules))
        results: list[Measurement | None] = [None] * len(modules)
        count = len(self._processes)

        def build(worker: int) -> None:
            for place in range(worker, len(modules), count):
                results[place] = self._build(worker, numbers[place], modules[place])

        self._each([lambda i=i: build(i) for i in range(count)])
        for place in range(len(modules)):
            if results[place] is None:
                results[place] = self._measure(place % count, numbers[place], modules[place], rounds)
        self._forget()
        return [result for result in results if result is not None]

    def duel(self, modules: Sequence[tvm.IRModule], *, rounds: int = FINAL_ROUNDS) -> list[Measurement]:
        """Measures modules against each other and the baseline, all taking turns in one worker."""
        numbers = self._take_numbers(len(modules))
        built = [self._build(0, number, module) for number, module in zip(numbers, modules, strict=True)]
        standing = [n for n, problem in zip(numbers, built, strict=True) if problem is None]
        results: dict[int, Measurement] = {}
        if standing:
            try:
                limit = self._limits[1] * len(modules)
                timed = self._worker(0)[0].ask("duel", self._key, standing, rounds, limit_s=limit)
                results = {n: Measurement("ok", **values) for n, values in zip(standing, timed, strict=True)}
            except WorkerError as error:
                results = {n: _failure(error, "crash") for n in standing}
        self._forget()
        return [problem or results[n] for n, problem in zip(numbers, built, strict=True)]

    def _build(self, worker: int, number: int, module: tvm.IRModule) -> Measurement | None:
        import tvm.ir

        try:
            process = self._worker(worker)[0]
            process.ask("build", self._key, number, tvm.ir.save_json(module), limit_s=self._limits[0])
        except WorkerError as error:
            return _failure(error, "build")
        return None

    def _measure(self, worker: int, number: int, module: tvm.IRModule, rounds: int) -> Measurement:
        process = self._processes[worker]
        if process is None or not process.alive:
            # The one before it took the worker down, and what was built there with it.
            problem = self._build(worker, number, module)
            if problem is not None:
                return problem
        try:
            result = self._worker(worker)[0].ask("measure", self._key, number, rounds, limit_s=self._limits[1])
        except WorkerError as error:
            return _failure(error, "crash")
        return Measurement("wrong", message=result["wrong"]) if "wrong" in result else Measurement("ok", **result)

    def _worker(self, index: int) -> tuple[Process, float]:
        """The worker, started and at the current kernel; and manual's seconds where it had to be opened."""
        process = self._processes[index]
        if process is None or not process.alive:
            process = self._start(index)
            self._processes[index] = process
            self._opened[index] = set()
        seconds = 0.0
        if self._key not in self._opened[index]:
            seconds = process.ask("kernel", self._key, *self._kernels[self._key], limit_s=OPEN_LIMIT_S)
            self._opened[index].add(self._key)
        return process, seconds

    def _start(self, index: int) -> Process:
        return Process("tvmopt.tuning.worker", threads_environment(self._machine.cores))

    def _take_numbers(self, count: int) -> range:
        self._numbers += count
        return range(self._numbers - count, self._numbers)

    def _forget(self) -> None:
        for index, process in enumerate(self._processes):
            if process is not None and process.alive and self._key in self._opened[index]:
                process.ask("drop", self._key, limit_s=self._limits[1])

    @staticmethod
    def _each(jobs: Sequence[Any]) -> list[Any]:
        """Runs the jobs at once, a thread each; raises the first error of a job."""
        results: list[Any] = [None] * len(jobs)
        errors: list[BaseException] = []

        def work(index: int) -> None:
            try:
                results[index] = jobs[index]()
            except BaseException as error:  # raised again below, in the thread that asked
                errors.append(error)

        # Daemons: when Ctrl-C interrupts the wait, the workers are ended and these threads with them.
        threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


def output_indices(func: tvm.tirx.PrimFunc) -> list[int]:
    """Which parameters `func` writes."""
    import tvm_ffi
    from tvm.tirx import BufferStore

    written: list[Any] = []

    def note(store: Any) -> Any:
        written.append(store.buffer)
        return tvm_ffi.structural.WalkResult.ADVANCE

    tvm_ffi.structural_walk(func.body, (BufferStore, note))
    return [i for i, param in enumerate(func.params) if any(param.same_as(buffer) for buffer in written)]


def compute_dtype(func: tvm.tirx.PrimFunc) -> str:
    """The narrowest floating type of what it reads and writes, which decides the tolerance; float32 where none is.

    A kernel that reads half precision may write float32, with roundings to half precision in between.
    """
    from tvmopt.runtime.verify import TOLERANCES, tolerance

    return max({str(param.dtype) for param in func.params} & set(TOLERANCES), key=tolerance, default="float32")


def _failure(error: WorkerError, otherwise: str) -> Measurement:
    if isinstance(error, WorkerTimeout):
        return Measurement("timeout", message=str(error))
    if isinstance(error, (WorkerBroken, WorkerDied)):
        return Measurement("crash", message=str(error))
    return Measurement(otherwise, message=str(error))
