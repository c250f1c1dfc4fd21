"""The whole network, built in several ways: verified against PyTorch, then timed in turns, a process each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, VerificationError, one_line
from tvmopt.machine import threads_environment
from tvmopt.pt2 import duplicate
from tvmopt.runtime.timer import median_interval
from tvmopt.runtime.verify import check, flatten, handed_out
from tvmopt.tuning.process import Process, WorkerError

if TYPE_CHECKING:
    from tvmopt.graph.pipeline import Lowered
    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model
    from tvmopt.runtime.executable import Compiled

# At least so many turns, and at most so many where two networks are nearly equal.
TURNS = 15
MAX_TURNS = 60
_SAMPLES = 3
_LIMIT_S = 300.0


def reference(model: Model) -> list[Any]:
    """PyTorch's outputs in fp64 for the example inputs, as arrays."""
    import torch

    wide = duplicate(model.module).double()
    inputs = [x.double() if x.dtype.is_floating_point else x for x in model.example_inputs]
    try:
        with torch.no_grad():
            return [output.detach().numpy() for output in flatten(wide(*inputs))]  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise ModelError(f"the model cannot be run in fp64, which it is verified against: {one_line(error)}") from None


def require(outputs: list[Any], expected: list[Any], model: Model, strategies: Mapping[str, str], name: str) -> None:
    """Raises VerificationError where the network's build `name` does not compute what PyTorch computes."""
    verdict = check(outputs, expected, model.dtype, strategies, output_dtype=handed_out(outputs))
    verdict.require(f"the network's {name} build")


def assemble(lowered: Lowered, functions: dict[str, Any], machine: AnyMachine, model: Model, variant: str) -> Compiled:
    """The network of `lowered` with scheduled `functions` in the place of its kernels: one lowering, many builds."""
    from tvmopt.graph.pipeline import with_kernels
    from tvmopt.runtime import assemble as runtime

    meta = {"model": model.name, "variant": variant, "dtype": model.dtype}
    return runtime.assemble(with_kernels(lowered.module, functions), lowered.program, machine, meta)


@dataclass(frozen=True)
class Compared:
    """Two builds of one network: the medians of each in seconds, and the median of `second / first` over the turns."""

    first: float
    second: float
    ratio: float


def compare(
    first: tuple[str, Path], second: tuple[str, Path], model: Model, threads: int, strategies: Mapping[str, str]
) -> Compared:
    """Times two artifacts (name, file) in turns, for as long as it takes to tell them apart, within limits.

    Raises:
        VerificationError: as `Turns`.
    """
    with Turns(dict([first, second]), model, threads, strategies) as turns:
        while True:
            turns.take()
            a, b = (turns.samples[name] for name, _ in (first, second))
            ratios = [y / x for x, y in zip(a, b, strict=True)]
            low, high = median_interval(ratios)
            if len(ratios) >= MAX_TURNS or (len(ratios) >= TURNS and not low <= 1.0 <= high):
                return Compared(statistics.median(a), statistics.median(b), statistics.median(ratios))


def measure(artifact: Path, model: Model, threads: int, strategies: Mapping[str, str]) -> float:
    """Median seconds of one artifact, alone.

    Raises:
        VerificationError: as `Turns`.
    """
    with Turns({"auto": artifact}, model, threads, strategies) as turns:
        for _ in range(TURNS):
            turns.take()
        return statistics.median(turns.samples["auto"])


class Turns:
    """Artifacts (name -> file), each loaded in a process of its own and verified; use it in a `with`.

    `samples` has one time for each turn, the median of its samples, in seconds per call.

    Raises:
        VerificationError: an artifact that crashes or does not compute what PyTorch computes; names it.
    """

    def __init__(
        self, artifacts: Mapping[str, Path], model: Model, threads: int, strategies: Mapping[str, str]
    ) -> None:
        self.samples: dict[str, list[float]] = {name: [] for name in artifacts}
        self._processes: dict[str, Process] = {}
        self._taken = 0
        expected = reference(model)
        inputs = [tensor.detach().numpy() for tensor in model.example_inputs]
        try:
            for name, path in artifacts.items():
                self._processes[name] = Process("tvmopt.tuning.contender", threads_environment(threads))
                outputs = self._ask(name, "load", str(path), inputs)
                require(outputs, expected, model, strategies, name)
                self._ask(name, "warm")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.close()

    def take(self) -> None:
        """One turn of each. Whoever is first in one is last in the next: none always follows the same other."""
        names = list(self.samples)
        for name in names if self._taken % 2 == 0 else reversed(names):
            self.samples[name].append(statistics.median(self._ask(name, "turn", _SAMPLES)))
        self._taken += 1

    def _ask(self, name: str, method: str, *arguments: Any) -> Any:
        try:
            return self._processes[name].ask(method, *arguments, limit_s=_LIMIT_S)
        except WorkerError as error:
            raise VerificationError(f"the network's {name} build failed: {error}") from None
