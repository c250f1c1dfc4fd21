"""Measuring candidates on other machines: one local process a server, each building for it and waiting on it.

A server that dies, or on which a candidate hangs, costs the candidate it was at: its process is replaced, which asks
the tracker for a server again, and is given up where none is free. What is left goes on; none left ends the run.
"""

from __future__ import annotations

import contextlib
import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import FleetError, VerificationError
from tvmopt.graph.network import PARTS
from tvmopt.graph.parts import part_of
from tvmopt.graph.pipeline import build, build_for_gpu
from tvmopt.machine import GpuMachine
from tvmopt.registry import write_kernels
from tvmopt.tuning.fleet import FREE_LIMIT_S, SESSION_S, Fleet, first_facts
from tvmopt.tuning.network import Compared, reference, require
from tvmopt.tuning.process import Process, WorkerDied, WorkerError, WorkerTimeout
from tvmopt.tuning.rpc_worker import library_suffix
from tvmopt.tuning.runner import FINAL_ROUNDS, OPEN_LIMIT_S, RUN_LIMIT_S, Measurement, Runner, _failure
from tvmopt.tuning.worker import ROUNDS

if TYPE_CHECKING:
    import tvm

    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model

# Turns of whole networks; each is about 10 ms of every network.
NETWORK_ROUNDS = 31
_NETWORK_LIMIT_S = 300.0


class FleetRunner(Runner):
    """`Runner` on the free servers of `fleet`. Use it in a `with`."""

    def __init__(
        self, fleet: Fleet, note: Callable[[str], None], machine: AnyMachine, *, strategy: str | None = None,
        seed: int = 0, run_limit_s: float = RUN_LIMIT_S,
    ) -> None:  # fmt: skip
        super().__init__(machine, workers=fleet.servers(), strategy=strategy, seed=seed, run_limit_s=run_limit_s)
        self._fleet = fleet
        self._note = note
        self._started = [0.0] * len(self._processes)
        self._usable = set(range(len(self._processes)))

    def open(self, key: str, func: tvm.tirx.PrimFunc, baseline: tvm.IRModule) -> float:
        """As `Runner.open`, on one server; the others open the kernel when they first measure it.

        Raises:
            WorkerError: as `Runner.open`. FleetError: no server is left.
        """
        self._take_up(key, func, baseline)
        try:
            return self._some(lambda worker: self._worker(worker)[1])
        except WorkerError:
            del self._kernels[key]
            raise

    def measure(self, modules: Sequence[tvm.IRModule], *, rounds: int = ROUNDS) -> list[Measurement]:
        """Builds and measures as `Runner.measure`, each server taking the next candidate when it is done with one."""
        numbers = self._take_numbers(len(modules))
        results: dict[int, Measurement] = {}
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(modules)):
            waiting.put(place)

        def work(worker: int) -> None:
            while worker in self._usable:
                try:
                    place = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._worker(worker)
                except WorkerError as error:
                    waiting.put(place)
                    self._retire(worker, error)
                    return
                problem = self._build(worker, numbers[place], modules[place])
                results[place] = problem or self._measure(worker, numbers[place], modules[place], rounds)

        while len(results) < len(modules):
            self._require_some()
            self._each([lambda i=i: work(i) for i in sorted(self._usable)])
        self._forget()
        return [results[place] for place in range(len(modules))]

    def duel(self, modules: Sequence[tvm.IRModule], *, rounds: int = FINAL_ROUNDS) -> list[Measurement]:
        """As `Runner.duel`, on one server."""
        numbers = self._take_numbers(len(modules))

        def on(worker: int) -> list[Measurement]:
            process = self._worker(worker)[0]
            built = [self._build(worker, number, module) for number, module in zip(numbers, modules, strict=True)]
            standing = [n for n, problem in zip(numbers, built, strict=True) if problem is None]
            timed = process.ask("duel", self._key, standing, rounds, limit_s=self._limits[1] * len(modules))
            results = {n: Measurement("ok", **values) for n, values in zip(standing, timed, strict=True)}
            return [problem or results[n] for n, problem in zip(numbers, built, strict=True)]

        try:
            found = self._some(on)
        except WorkerError as error:
            return [_failure(error, "crash")] * len(modules)
        self._forget()
        return found

    def _some(self, job: Callable[[int], Any]) -> Any:
        """What `job` gives on the first server that does not die of it; a request's own error is raised."""
        while True:
            self._require_some()
            worker = min(self._usable)
            try:
                return job(worker)
            except (WorkerDied, WorkerTimeout) as error:
                self._retire(worker, error)

    def _start(self, index: int) -> Process:
        self._started[index] = time.monotonic()
        return connected(self._fleet, self._machine)

    def _worker(self, index: int) -> tuple[Process, float]:
        process = self._processes[index]
        # Before the server ends the session in the midst of a candidate.
        if process is not None and time.monotonic() - self._started[index] > SESSION_S - OPEN_LIMIT_S:
            process.close()
        return super()._worker(index)

    def _forget(self) -> None:
        # Where the server has just died, its candidates are forgotten already.
        with contextlib.suppress(WorkerError):
            super()._forget()

    def _retire(self, worker: int, error: WorkerError) -> None:
        self._usable.discard(worker)
        process = self._processes[worker]
        if process is not None:
            process.close()
        self._note(f"a server of {self._fleet.key} is given up ({error}); {len(self._usable)} left")

    def _require_some(self) -> None:
        if not self._usable:
            raise FleetError(
                f"--key {self._fleet.key}: no server is left; the log is in order, and the same command goes on from it"
            )


def connected(fleet: Fleet, machine: AnyMachine) -> Process:
    """A process that has a session with a free server of `fleet`.

    Raises:
        WorkerTimeout: none is free. WorkerError: it cannot be used.
    """
    on_gpu = isinstance(machine, GpuMachine)
    process = Process("tvmopt.tuning.rpc_worker", fleet.environment(None if on_gpu else machine.cores))
    try:
        first_facts(process, "cuda" if on_gpu else "llvm", FREE_LIMIT_S)
    except WorkerError:
        process.close()
        raise
    return process


def compare_networks(
    fleet: Fleet, machine: AnyMachine, first: tvm.IRModule, second: tvm.IRModule, model: Model,
    strategies: Mapping[str, str],
) -> Compared:  # fmt: skip
    """`network.compare` of two scheduled networks on a server, where the virtual machine runs both in one process.

    Raises:
        VerificationError: one of them computes something else than PyTorch, or no server gave times.
    """
    from tvmopt.graph.gpu_compiler import digest

    if first.attrs is not None and PARTS in first.attrs:
        # The virtual machine runs one part of the batch.
        model = part_of(model, model.batch // int(first.attrs[PARTS]))
    inputs = [tensor.detach().numpy() for tensor in model.example_inputs]
    files, codes = [], []
    with tempfile.TemporaryDirectory(prefix="tvmopt-tune-") as folder:
        for name, module in (("manual", first), ("auto", second)):
            if isinstance(machine, GpuMachine):
                built = build_for_gpu(write_kernels(module, machine.kind), machine)
                executable = built.executable
                codes += [(digest(built.source), built.code.binary)] if built.code is not None else []
            else:
                executable = build(module, machine, flat=False)
            files.append(str(Path(folder) / f"{name}.{library_suffix(machine.target())}"))
            executable.export_library(files[-1])
        kind = "cuda" if isinstance(machine, GpuMachine) else "llvm"
        try:
            process = connected(fleet, machine)
            try:
                found = process.ask("network", files, codes, inputs, NETWORK_ROUNDS, kind, limit_s=_NETWORK_LIMIT_S)
            finally:
                process.close()
        except WorkerError as error:
            raise VerificationError(f"the networks could not be measured on a server: {error}") from None
    expected = reference(model)
    for name, one in zip(("manual", "auto"), found, strict=True):
        require(one["outputs"], expected, model, strategies, name)
    a, b = (one["samples"] for one in found)
    ratios = [y / x for x, y in zip(a, b, strict=True)]
    return Compared(statistics.median(a), statistics.median(b), statistics.median(ratios))
