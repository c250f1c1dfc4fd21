"""Single kernels in a process of their own, told what to do by JSON lines, as bench/worker.py is for networks.

    {"do": "prepare", "op", "shape", "threads", "contenders", ...}   build and verify
    {"do": "watch", "threads"}           build the reference loops alone
    {"do": "references"}                 run them once
    {"do": "turn", "name"}               references, the kernel, references
    {"do": "finish"}                     verify again
    {"do": "show", "name", "form"}       its TensorIR, source or assembly

TVM's kernels share one process, because they share one thread pool; PyTorch has one to itself (`"contenders":
["torch"]`), in which no TVM is loaded, and its turns are bracketed by references that the other process measures.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvmopt.errors import UsageError
from tvmopt.runtime import timer

from .kernel_cases import layer
from .process import pin, thread_ids
from .worker import answered, serve

# A turn's sample of one kernel: long beside the clock's noise, short beside how long a neighbour stays.
SAMPLE_S = 0.005
# A call as long as this finds its caches cold for a negligible part of itself.
SLOW_S = 0.5


class Session:
    """What one worker knows between requests."""

    def __init__(self) -> None:
        self._watches: dict[str, timer.Stopwatch] = {}
        self._verify: dict[str, Callable[[], float]] = {}
        self._counts: dict[str, int] = {}
        self._sources: dict[str, dict[str, str]] = {}
        # Contenders that bring their data back into the caches in a small part of one call.
        self._slow: set[str] = set()
        self._peak: Any = None
        self._bandwidth: Any = None
        # What the kernels move: bytes, and which part of them is written.
        self._moved: set[tuple[int, float]] = set()

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers one request; what goes wrong becomes the answer."""
        return answered(lambda asked: dict(getattr(self, f"do_{asked.pop('do')}")(**asked)), request)

    def do_prepare(
        self, op: str, shape: str, threads: int, contenders: list[str], log_dir: str, schedules_dir: str | None,
        ladder: bool, strategies: dict[str, str], sparsities: Sequence[float] = (), method: str = "",
        limit_s: float = math.inf,
    ) -> dict[str, Any]:  # fmt: skip
        """Builds the contenders, compares their outputs with PyTorch's, and says what there is to know of them."""
        from tvmopt.machine import configure_threads, detect

        # Of the kernel before, in a list.
        for known in (self._watches, self._verify, self._counts, self._sources, self._moved):
            known.clear()
        if contenders == ["torch"]:
            return self._prepare_torch(op, shape, threads)
        machine = detect(threads)
        configure_threads(machine.cores)
        from .kernel_contenders import build_all
        from .kernel_sparsity import build

        if sparsities:
            built = build(op, shape, sparsities, method, contenders, machine, Path(log_dir), schedules_dir)
        else:
            built = build_all(
                layer(op, shape), contenders, machine, Path(log_dir), schedules_dir, ladder, strategies, limit_s
            )
        from tvmopt.runtime.bandwidth import Bandwidth
        from tvmopt.runtime.peak import Peak

        self._peak = self._peak or Peak(machine)
        self._bandwidth = self._bandwidth or Bandwidth(machine)
        for name, contender in built.contenders.items():
            self._sources[name] = contender.sources
            self._prepare(name, contender.watch, contender.verify)
        kernels = (built.kernel, *(one.kernel for one in built.contenders.values() if one.kernel is not None))
        self._moved.update((one.bytes, one.written) for one in kernels)
        self._bandwidths()
        return {
            **built.facts(),
            "errors": {name: verify() for name, verify in self._verify.items()},
            "clock_ghz": self._peak.clock_ghz(),
            "lanes": machine.lanes,
        }

    def _bandwidths(self) -> list[list[float]]:
        """[bytes, part written, bytes a second] of what the kernels move: measured once more, the best so far."""
        return [[size, written, self._bandwidth(size, written)] for size, written in sorted(self._moved)]

    def _prepare_torch(self, op: str, shape: str, threads: int) -> dict[str, Any]:
        import torch

        from tvmopt.errors import VerificationError
        from tvmopt.runtime.verify import check

        torch.set_num_threads(threads)
        model = layer(op, shape)
        module, inputs = model.module, model.example_inputs
        if op == "max_pool2d":
            # Of the two layers only the pooling is the kernel.
            with torch.no_grad():
                inputs = (module[0](*inputs),)  # type: ignore[index]
            module = module[1]  # type: ignore[index]
        with torch.no_grad():
            wanted = module.double()(*[x.double() for x in inputs])
        module.float()

        def call() -> Any:
            with torch.inference_mode():
                return module(*inputs)

        def verify() -> float:
            verdict = check(call(), wanted, top1=False)
            if not verdict.ok:
                raise VerificationError(f"torch: {verdict.message}")
            return verdict.max_abs_err

        self._prepare("torch", timer.stopwatch(call), verify)
        return {"errors": {"torch": verify()}}

    def _prepare(self, name: str, watch: timer.Stopwatch, verify: Callable[[], float]) -> None:
        self._watches[name], self._verify[name] = watch, verify
        seconds = timer.warm_up(watch, limit_s=1.0, sample_s=SAMPLE_S)
        self._counts[name] = timer.calibrate(watch, seconds, sample_s=SAMPLE_S)
        (self._slow.add if seconds > SLOW_S else self._slow.discard)(name)

    def do_watch(self, threads: int) -> dict[str, Any]:
        """Nothing but the reference loops is wanted, in a process whose threads have a core each.

        They sleep between two looks, and unpinned the system wakes both on one core as often as not.
        """
        from tvmopt.machine import configure_threads, detect
        from tvmopt.runtime.peak import Peak
        from tvmopt.runtime.threads import use_threads

        machine = detect(threads)
        before = thread_ids()
        configure_threads(machine.cores)
        use_threads(machine.cores)
        self._peak = Peak(machine)
        pin([os.getpid(), *sorted(thread_ids() - before)][: machine.cores])
        return {}

    def do_references(self) -> dict[str, Any]:
        """GFLOP/s over registers, fed from L1 and fed from L2, and thousands of launches a second."""
        peak = self._peak
        return {"references": [peak.gflops(), peak.tile_gflops(), peak.deep_gflops(), peak.launches()]}

    def do_turn(self, name: str) -> dict[str, Any]:
        """One sample in seconds per call; interruptions: how often the system took a core from it."""
        before = self.do_references()["references"] if self._peak else None
        watch = self._watches[name]
        if name not in self._slow:
            watch(1)  # brings the kernel's data back into the caches, which others have used
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        seconds = watch(self._counts[name]) / self._counts[name]
        interruptions = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
        after = self.do_references()["references"] if self._peak else None
        return {"seconds": seconds, "interruptions": interruptions, "before": before, "after": after}

    def do_finish(self) -> dict[str, Any]:
        """Compares the outputs with PyTorch's once more, and measures what bytes are set against."""
        errors = {name: verify() for name, verify in self._verify.items()}
        return {"errors": errors, "calls": self._counts, "bandwidths": self._bandwidths()}

    def do_show(self, name: str, form: str) -> dict[str, Any]:
        """The text of one contender."""
        if name not in self._sources:
            raise UsageError(f"--show {form}: {name} has no {form}")
        return {"text": self._sources[name][form]}


if __name__ == "__main__":
    serve(Session().handle)
