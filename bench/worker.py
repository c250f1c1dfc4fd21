"""One contender in a process of its own, told what to do by JSON lines on its standard input.

    {"do": "reference", ...}   compute what PyTorch computes, save it, describe the model
    {"do": "load", ...}        import and load what `prepare` needs
    {"do": "prepare", ...}     build, verify, warm up
    {"do": "round", ...}       time one turn, with cold caches too where asked for
    {"do": "finish", ...}      verify again, accuracy, memory
    {"do": "profile", ...}     time every kernel alone; variants of ours only

Each is answered by one line: {"ok": true, ...} or {"error": "one line"}. Between them the process sleeps in a read:
no thread of it may run while another contender is timed. The end of the input ends the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tvmopt.errors import TvmoptError, VerificationError, one_line
from tvmopt.lifetime import end_with_parent
from tvmopt.machine import GpuMachine
from tvmopt.runtime import timer

from . import on_gpu
from .cases import Case
from .cold import Flush, take_cold
from .process import run_delay

if TYPE_CHECKING:
    from tvmopt.data import Dataset
    from tvmopt.model import Model

    from .peers import Prepared
    from .reference import Reference


class Session:
    """What one worker knows between requests."""

    def __init__(self) -> None:
        self._handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "reference": self.reference,
            "load": self.load,
            "prepare": self.prepare,
            "round": self.round,
            "finish": self.finish,
            "profile": self.profile,
        }
        self._case: Case
        self._model: Model | None = None
        self._flush: Flush | on_gpu.L2Flush | None = None
        self._reference: Reference
        self._reference_path: Path
        self._prepared: Prepared
        self._call: Callable[[], Any]
        self._calls = 1
        self._worst = 0.0

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers one request; what goes wrong becomes the answer."""
        return answered(lambda asked: self._handlers[asked["do"]](asked), request)

    def reference(self, request: dict[str, Any]) -> dict[str, Any]:
        """Computes and saves the reference, and describes the model."""
        from tvmopt.compress import saved

        from . import reference
        from .sizes import sizes

        model = self._load(Case.from_json(request["case"]))
        name = request["dataset"]
        if name is None and request["default_dataset"]:
            from tvmopt.data import default_dataset

            name = default_dataset(model)
        data = _dataset(name, request, model)
        reference.compute(model, data).save(Path(request["path"]))
        if data is not None:
            reference.save_data(data, Path(request["path"]))
        pruned = saved.read(model.extra)
        return {
            "model": model.spec,
            "sparsity": pruned.sparsity if pruned is not None else 0.0,
            "method": pruned.method if pruned is not None else None,
            "batch": model.batch,
            "dataset": name,
            "inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in model.example_inputs],
            **sizes(model.module, model.example_inputs),
        }

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Imports what building will need and loads the model: seconds that need not be anybody's compile time."""
        self._case = Case.from_json(request["case"])
        self._model = self._load(self._case)
        if self._case.peer is not None:
            from . import peers

            peers.load(self._case.peer, self._case.options.kind)
        else:
            import tvmopt.variants  # noqa: F401
        return {}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Builds the contender, checks its outputs, warms it up."""
        if self._model is None:
            self.load(request)
        from .reference import Reference

        self._reference_path = Path(request["reference"])
        self._reference = Reference.load(self._reference_path)
        begin = time.perf_counter()
        self._prepared, built = self._build()
        compile_s = time.perf_counter() - begin
        self._verify("before timing")
        native = self._native(self._reference.inputs[0])
        run = self._prepared.run
        self._call = lambda: run(*native)
        watch = self._watch()
        seconds = timer.warm_up(watch, limit_s=request["warm_up_s"])
        self._calls = timer.calibrate(watch, seconds)
        return {
            "compile_s": compile_s,
            "calls_per_sample": self._calls,
            "size_bytes": self._prepared.size_bytes,
            "max_abs_err": self._worst,
            **built,
        }

    def round(self, request: dict[str, Any]) -> dict[str, Any]:
        """One turn: samples in seconds per call; `cold` of single calls, each with nothing of it in the caches.

        `waited`: for what share of their time threads of this process, all together, wanted a core and had none.
        """
        watch, count, budget = self._watch(), request["samples"], request["budget_s"]
        marks: list[tuple[float, float]] = []

        def mark() -> None:
            marks.append((time.monotonic(), run_delay(os.getpid())))

        answer: dict[str, Any] = {
            "samples": timer.take_round(watch, self._calls, count, budget_s=budget, warmed=mark)
        }
        if request.get("cold"):
            answer["cold"] = self._cold(watch, count, budget)
        mark()
        (began, before), (ended, after) = marks
        answer["waited"] = (after - before) / (ended - began)
        return answer

    def _cold(self, watch: timer.Stopwatch, count: int, budget: float) -> list[float]:
        machine = self._case.options.machine()
        if isinstance(machine, GpuMachine):
            flush = self._flush if isinstance(self._flush, on_gpu.L2Flush) else on_gpu.L2Flush(machine.l2)
            self._flush = flush
            return on_gpu.take_cold(watch, flush, count, budget)
        if not isinstance(self._flush, Flush):
            self._flush = Flush(self._case.threads, (machine.l1, machine.l2, machine.l3))
        return take_cold(self._call, self._flush, count, budget)

    @property
    def _on_gpu(self) -> bool:
        return self._case.options.kind == "cuda"

    def _watch(self) -> timer.Stopwatch:
        return timer.event_stopwatch(self._call) if self._on_gpu else timer.stopwatch(self._call)

    def finish(self, request: dict[str, Any]) -> dict[str, Any]:
        """Checks the outputs again, measures accuracy if there is a data set, reads the peak of memory."""
        self._verify("after timing")
        accuracy = self._accuracy() if self._reference.predictions is not None else None
        facts = {"max_abs_err": self._worst, "accuracy": accuracy, "peak_memory_bytes": _peak_memory()}
        if self._on_gpu:
            facts["gpu_state"] = on_gpu.state()
        return {**facts, "tuning_curve": self._tuning_curve()}

    def profile(self, request: dict[str, Any]) -> dict[str, Any]:
        """Times the variant's kernels one by one."""
        from .profile import profile

        options = self._case.options
        assert self._model is not None
        machine = options.machine()
        assert not isinstance(machine, GpuMachine)
        found = profile(self._model, self._case.contender, machine, options)
        return {"profile": [line.to_json() for line in found.lines], "roof": found.roof.to_json()}

    def _load(self, case: Case) -> Model:
        from tvmopt.machine import configure_threads

        # Inductor's own setting has to be there before torch is imported. A GPU's kernels it compiles on all cores, on
        # which nobody is timed then.
        if case.peer == "inductor" and case.options.kind != "cuda":
            from .peers import inductor  # noqa: F401
        model = case.options.load(case.spec)
        configure_threads(case.threads)
        return model

    def _build(self) -> tuple[Prepared, dict[str, Any]]:
        options = self._case.options
        assert self._model is not None
        if self._case.peer is not None:
            # Without `options.machine()`: no TVM in a peer's process.
            from . import peers

            model = peers.in_dtype(self._model)
            return peers.prepare(self._case.peer, model, self._case.threads, options.kind), {}
        from tvmopt.variants import build_by_options

        from .peers import Prepared

        if options.dump_dir is not None:
            folder = options.dump_dir / self._model.log_name / self._case.contender
            options = dataclasses.replace(options, dump_dir=folder)
        compiled = build_by_options(self._model, self._case.contender, options.machine(), options)
        built = {"tuning_s": getattr(compiled, "tuning_s", None)}
        native = (lambda inputs: [x.cuda() for x in inputs]) if self._on_gpu else list
        return Prepared(compiled, native, lambda outputs: outputs, compiled.size_bytes()), built

    def _tuning_curve(self) -> dict[str, Any] | None:
        """How the search went that auto comes from; None for others, and without a log."""
        if self._case.contender != "auto" or self._model is None:
            return None
        from tvmopt.tuning import lines
        from tvmopt.tuning.curve import curve
        from tvmopt.variants import log_path_of

        options = self._case.options
        path = log_path_of(self._model, options.machine(), options.log_dir, options.strategies)
        plan = self._prepared.run.plan  # type: ignore[attr-defined]
        if plan is None or not (path / lines.TRIALS).is_file():
            return None
        return curve(lines.read(path).trials, {kernel.key: kernel.name for kernel in plan})

    def _native(self, inputs: list[Any]) -> list[Any]:
        from .peers import cast

        if self._case.peer is not None:
            inputs = cast(inputs, self._case.options.dtype)
        return list(self._prepared.to_native(inputs))

    def _outputs(self, inputs: list[Any]) -> list[Any]:
        """What it returns, where it was computed."""
        from tvmopt.runtime.verify import flatten

        return list(flatten(self._prepared.to_torch(self._prepared.run(*self._native(inputs)))))

    def _verify(self, when: str) -> None:
        from tvmopt.runtime.verify import check, handed_out

        dtype = self._case.options.dtype
        # A compiled model says how its convolutions were lowered; a peer is held to the strictest column.
        strategies = getattr(self._prepared.run, "meta", {}).get("strategies")
        for inputs, wanted in zip(self._reference.inputs, self._reference.outputs, strict=True):
            if self._case.peer is None:
                # An output nobody writes would hold what its memory held before: the right values of an earlier call.
                poison(self._outputs([tensor.clone() for tensor in inputs]))
            outputs = self._outputs(inputs)
            verdict = check(outputs, wanted, dtype, strategies, output_dtype=handed_out(outputs))
            if not verdict.ok:
                raise VerificationError(f"wrong outputs {when}: {verdict.message}")
            self._worst = max(self._worst, verdict.max_abs_err)

    def _accuracy(self) -> dict[str, float]:
        from . import accuracy
        from .reference import load_data

        assert self._reference.predictions is not None
        images, labels = load_data(self._reference_path)
        assert self._model is not None
        scored = accuracy.scores(lambda part: self._outputs([part])[0].cpu(), images, self._model.batch)
        return accuracy.accuracy(scored, labels, self._reference.predictions)


def poison(outputs: list[Any]) -> None:
    """Overwrites floating outputs with NaN, where their memory may be written: it is what the next call gets."""
    import torch

    with torch.inference_mode(), contextlib.suppress(RuntimeError):
        for output in outputs:
            if output.dtype.is_floating_point:
                output.fill_(float("nan"))


def _dataset(name: str | None, request: dict[str, Any], model: Model) -> Dataset | None:
    if name is None:
        return None
    from tvmopt.data import load_dataset

    return load_dataset(name, request["data_dir"], limit=request["limit"], input_shape=model.input_shape)


def _peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def take_over_stdout() -> TextIO:
    """The answers' stream: libraries that print get standard error instead, whatever language they print from."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def answered(handler: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """A handler's answer to one request; what goes wrong becomes the answer."""
    try:
        return {"ok": True, **handler(request)}
    except TvmoptError as error:
        return {"error": one_line(error), "kind": type(error).__name__, "exit_code": error.exit_code}
    except Exception as error:
        # The trace goes to standard error, which the parent keeps; the row gets one line of it.
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {one_line(error)}", "kind": type(error).__name__}


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers requests until there are no more, or the parent is gone."""
    end_with_parent()
    answers = take_over_stdout()
    for line in sys.stdin:
        answers.write(json.dumps(handle(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Session().handle)
