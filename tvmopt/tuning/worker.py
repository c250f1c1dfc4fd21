"""The process that builds and runs candidates: one that crashes, hangs or computes nonsense harms nobody else.

`python -m tvmopt.tuning.worker` answers the requests of a `process.Process`. For each kernel it is told of, it holds
inputs, what must come out, and manual's schedule as the baseline every candidate is timed against, taking turns, so
that the ratio survives a machine whose speed changes by the minute.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvmopt.tuning.process import serve

if TYPE_CHECKING:
    import numpy as np

    from tvmopt.machine import Machine
    from tvmopt.nvcc import Code
    from tvmopt.runtime.peak import Peak

# Seconds of one sample. Many short turns beat few long ones: on a shared machine whose speed doubled and halved
# within seconds, ratios from 21 turns of 1 ms scattered by 4%, from 7 turns of 3 ms by 6%, and single times by 60%.
SAMPLE_S = 0.001
# A lone candidate this many times slower than the baseline in its first rounds is not measured further.
HOPELESS = 2.0
_HOPELESS_AFTER = 3
# Turns between two looks whether anybody else uses the cores, and how long a candidate's turns wait, in all, for
# moments when nobody does. Only the turns of such moments count, if they are this many. Where a virtual machine's cores
# are, for a while, two threads of one physical core, a parallel kernel is no faster than a serial one.
_GROUP = 3
QUIET_LIMIT_S = 0.1
_FEWEST_QUIET = 6
# And one so many times slower in a single call is not timed any further: MetaSchedule's first ones can be 500 times.
VERY_SLOW = 10.0
# Turns of a first measurement (see runner.py), for which QUIET_LIMIT_S holds.
ROUNDS = 21


@dataclass
class _Kernel:
    """One kernel: its arguments, the indices of those it writes, what they must hold, and what is built of it.

    `device` is where its arguments lie.
    """

    arguments: list[Any]
    outputs: list[int]
    target: Any
    dtype: str
    strategy: str | None
    device: Any
    expected: list[np.ndarray] = field(default_factory=list)
    baseline: Any = None
    built: dict[int, Any] = field(default_factory=dict)


class Worker:
    """What the process can be asked. Modules come as TVM's JSON."""

    # Whether kernels run on another machine (`rpc_worker.py`).
    _is_remote = False

    def __init__(self, machine: Machine | None = None) -> None:
        self._kernels: dict[str, _Kernel] = {}
        self._machine = machine
        self._peak: Peak | None = None
        # The GPU that kernels run on, once one did.
        self._gpu: Any = None

    def is_sound(self) -> bool:
        """Whether the GPU still answers this process, which after a kernel's fault it never does again."""
        from tvmopt.runtime.gpu import answers

        return self._gpu is None or answers(self._gpu)

    def kernel(self, key: str, reference: str, baseline: str, spec: dict[str, Any]) -> float:
        """Takes up a kernel: its unscheduled module (what is right) and manual's; returns manual's seconds.

        `spec` has `target`, `outputs` (the indices of the parameters written), `dtype`, `strategy` and `seed`.
        """
        import tvm

        from tvmopt.tuning.expected import finite, inputs, is_large, plainly, wide

        module = tvm.ir.load_json(reference)
        target = tvm.target.Target(spec["target"])
        on_gpu = target.kind.name == "cuda"
        kernel = _Kernel([], list(spec["outputs"]), target, spec["dtype"], spec["strategy"], tvm.cpu())
        # What is right is computed on a CPU, but for the largest: on a GPU a kernel without a schedule does not run.
        elsewhere = on_gpu or self._is_remote
        large = on_gpu and not self._is_remote and is_large(module["main"])
        if large:
            self._gpu = self._device(target)
            function = _compile(target, plainly(module))
        else:
            function = _compile(tvm.target.Target("llvm") if elsewhere else target, module)
        for positive in (False, True):
            kernel.arguments = inputs(module["main"], spec["seed"], positive)
            if large:
                kernel.arguments = [tvm.runtime.tensor(one.numpy(), self._gpu) for one in kernel.arguments]
            _run(kernel, function)
            # In fp64 already, as the check wants a reference to be.
            kernel.expected = [wide(kernel.arguments[i].numpy()) for i in kernel.outputs]
            if finite(kernel.expected):
                break
        if elsewhere:
            # Others' use of the cores does not count there.
            self._machine, kernel.device = None, self._device(target)
            self._gpu = kernel.device if on_gpu else None
            kernel.arguments = [tvm.runtime.tensor(one.numpy(), kernel.device) for one in kernel.arguments]
        kernel.baseline = self._built(target, tvm.ir.load_json(baseline))
        problem = _problem(kernel, kernel.baseline)
        if problem:
            raise ValueError(f"manual's schedule computes something else: {problem}")
        self._kernels[key] = kernel
        return _watch(kernel, kernel.baseline, 1)

    def build(self, key: str, number: int, module: str) -> None:
        """Builds a candidate, machine code included."""
        import tvm

        kernel = self._kernels[key]
        kernel.built[number] = self._built(kernel.target, tvm.ir.load_json(module))

    def measure(self, key: str, number: int, rounds: int) -> dict[str, Any]:
        """Checks what a candidate computes, times it against the baseline, checks again.

        Returns `{"wrong": why}`, or `{"seconds", "baseline", "ratio"}`: medians over the rounds.
        """
        kernel = self._kernels[key]
        candidate = kernel.built[number]
        problem = _problem(kernel, candidate)
        if problem is None:
            result = _single(kernel, candidate)
            if result["ratio"] < VERY_SLOW:
                result = self.duel(key, [number], rounds)[0]
            problem = _problem(kernel, candidate)
        return {"wrong": problem} if problem else result

    def duel(self, key: str, numbers: list[int], rounds: int) -> list[dict[str, Any]]:
        """Times candidates and the baseline, taking turns; one result for each candidate, as `measure`'s."""
        kernel = self._kernels[key]
        contenders = [kernel.baseline, *(kernel.built[number] for number in numbers)]
        calls = [_calibrate(kernel, function) for function in contenders]
        turns: list[list[float]] = []
        quiet: list[bool] = []
        ends = time.monotonic() + QUIET_LIMIT_S * rounds / ROUNDS
        before = self._quiet_by(ends)
        while len(turns) < rounds:
            group = min(_GROUP, rounds - len(turns))
            for _ in range(group):
                turns.append([_watch(kernel, f, n) / n for f, n in zip(contenders, calls, strict=True)])
            after = self._quiet_by(time.monotonic())
            quiet += [before and after] * group
            before = after or self._quiet_by(ends)
            if len(numbers) == 1 and len(turns) == _HOPELESS_AFTER:
                first, other = zip(*turns, strict=True)
                if min(other) > HOPELESS * max(first):
                    break
        counted = [turn for turn, is_quiet in zip(turns, quiet, strict=True) if is_quiet]
        counted = counted if len(counted) >= _FEWEST_QUIET else turns
        return [
            {
                "seconds": statistics.median(turn[place] for turn in counted),
                "baseline": statistics.median(turn[0] for turn in counted),
                "ratio": statistics.median(turn[place] / turn[0] for turn in counted),
            }
            for place in range(1, len(contenders))
        ]

    def _built(self, target: Any, module: Any) -> Any:
        """`module` as what can be called where kernels run."""
        return _compile(target, module)

    def _device(self, target: Any) -> Any:
        """Where a kernel's arguments lie; on this machine that is asked for a GPU only."""
        import tvm

        return tvm.device(target.kind.name, 0)

    def _quiet_by(self, moment: float) -> bool:
        """Whether nobody else uses the cores, waiting for it until `moment`; True where that is not looked at."""
        if self._machine is None:
            return True
        from tvmopt.runtime.peak import Peak

        self._peak = self._peak or Peak(self._machine)
        return self._peak.wait_until_quiet(moment - time.monotonic())

    def drop(self, key: str) -> None:
        """Forgets a kernel's candidates, and frees their code."""
        self._kernels[key].built.clear()


def compile_kernel(target: Any, module: Any, made: dict[str, Code] | None = None) -> Any:
    """A kernel's module as TVM's executable, for a CPU or a GPU; of a GPU's, `made` gets what is compiled by now."""
    from tvmopt.graph import gpu_pipeline, host_pipeline

    if target.kind.name != "cuda":
        return host_pipeline.compile_kernels(module, target)
    from tvmopt.registry import write_kernels

    return gpu_pipeline.compile_module(write_kernels(module), target, made=made)


def _compile(target: Any, module: Any) -> Any:
    built = compile_kernel(target, module).jit()
    # Taking the function out is what makes LLVM generate code: part of building, not of measuring.
    built["main"]
    return built


def _run(kernel: _Kernel, built: Any) -> None:
    """Calls it once, its outputs filled with NaN before: what is not written shows."""
    import numpy as np

    for index in kernel.outputs:
        array = kernel.arguments[index].numpy()
        kernel.arguments[index].copyfrom(np.full_like(array, np.nan if "float" in array.dtype.name else -1))
    built["main"](*kernel.arguments)


def _problem(kernel: _Kernel, built: Any) -> str | None:
    from tvmopt.runtime.verify import check

    _run(kernel, built)
    actual = [kernel.arguments[i].numpy() for i in kernel.outputs]
    verdict = check(actual, kernel.expected, kernel.dtype, kernel.strategy, top1=False)
    return None if verdict.ok else verdict.message


def _watch(kernel: _Kernel, built: Any, calls: int) -> float:
    """Seconds of `calls` calls, timed in TVM's own loop: Python's would be half of a short kernel's time.

    On a GPU it times by events.
    """
    evaluator = built.time_evaluator("main", kernel.device, number=calls, repeat=1)
    return float(evaluator(*kernel.arguments).mean) * calls


def _single(kernel: _Kernel, built: Any) -> dict[str, Any]:
    """A result from one call each: enough to see that a candidate is far too slow."""
    seconds, baseline = _watch(kernel, built, 1), _watch(kernel, kernel.baseline, 1)
    return {"seconds": seconds, "baseline": baseline, "ratio": seconds / baseline}


def _calibrate(kernel: _Kernel, built: Any) -> int:
    once = max(_watch(kernel, built, 1), 1e-7)
    calls = max(1, round(SAMPLE_S / once))
    if calls > 1:
        # The first calls are slow and would make samples too short: ask once more.
        calls = max(1, round(SAMPLE_S * calls / max(_watch(kernel, built, calls), 1e-7)))
    return calls


def main() -> None:
    """Serves on the process's own pipes."""
    from tvmopt.machine import detect

    # TVM is loaded here, before the first request, so that no time limit counts it.
    worker = Worker(detect(int(os.environ["TVM_NUM_THREADS"])))
    serve(worker, worker.is_sound)


if __name__ == "__main__":
    main()
