"""Measures the contenders of one model: reference, building, turns, checks, and a result row for each."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import statistics
from .cases import Case
from .process import Worker, WorkerError
from .quiet import Probe, References, start_probe
from .results import FEWEST_QUIET
from .turns import PREPARE_TIMEOUT_S, Contender, Report, Settings, take_turns


@dataclass(frozen=True)
class Data:
    """What accuracy is measured on: `name` None with `default` takes the model's own data set, if it has one."""

    name: str | None = None
    default: bool = True
    directory: str | None = None
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields of a request that say it."""
        return {
            "dataset": self.name,
            "default_dataset": self.default,
            "data_dir": self.directory,
            "limit": self.limit,
        }


def measure(
    cases: Sequence[Case], settings: Settings, data: Data, report: Report, *, profile: bool = False
) -> list[dict[str, Any]]:
    """The result rows of one model's cases, in their order.

    Args:
        cases: contenders of the same model and options.
        settings: when enough has been measured.
        data: what accuracy is measured on.
        report: called with a contender's name and what it is at, never while one is being timed.
        profile: whether the kernels of our variants are timed one by one, too.

    Raises:
        WorkerError: the model itself cannot be loaded or run in PyTorch. A contender that fails has its `error`
            in its row instead.
    """
    return measure_together([cases], settings, data, report, profile=profile)


def measure_together(
    models: Sequence[Sequence[Case]], settings: Settings, data: Data, report: Report, *, profile: bool = False
) -> list[dict[str, Any]]:
    """`measure` of several models whose contenders take turns with each other, because they are to be compared."""
    contenders: list[Contender] = []
    measured: list[tuple[Case, Contender, dict[str, Any]]] = []
    with (
        tempfile.TemporaryDirectory(prefix="tvmopt-bench-") as directory,
        contextlib.ExitStack() as stack,
    ):
        probe: Probe | None = None
        for number, cases in enumerate(models):
            path = Path(directory) / f"reference{number}.pt"
            made, found, facts = stack.enter_context(
                prepared(cases, settings, data, path, report, probed=not number)
            )
            probe = found or probe
            contenders += made
            measured += [(case, contender, facts) for case, contender in zip(cases, made, strict=True)]
        take_turns(contenders, settings, report, probe)
        for case, contender, _ in measured:
            if contender.error is None:
                _finish(case, contender, profile, report)
    best = probe.best if probe is not None else ()
    fair = quiet_for_all(contenders, best)
    rows = []
    for cold in (False, True) if settings.cold else (False,):
        rows += [_row(*one, settings, best, cold, fair) for one in measured]
    return rows


@contextlib.contextmanager
def prepared(
    cases: Sequence[Case], settings: Settings, data: Data, path: Path, report: Report, *, probed: bool = True
) -> Iterator[tuple[list[Contender], Probe | None, dict[str, Any]]]:
    """The contenders, built and verified, each in its process; the probe; and the facts of their model.

    `path` is where the reference is kept. All processes end with the `with`. `probed`: whether a probe is started,
    which others that take turns with them have already.
    """
    contenders: list[Contender] = []
    probe: Probe | None = None
    try:
        for case in cases:
            # All load at once; what is timed, compiling too, begins when they have.
            contenders.append(Contender(case.name, Worker(case.threads)))
            contenders[-1].tell({"do": "load", "case": case.to_json()})
        facts = _reference(cases[0], data, path, report)
        # On a GPU nobody else's use of the cores counts.
        probe = start_probe(cases[0].threads) if probed and cases[0].options.kind == "llvm" else None
        for contender in contenders:
            report(contender.name, "loading")
            contender.await_told(PREPARE_TIMEOUT_S)
        for case, contender in zip(cases, contenders, strict=True):
            if contender.error is None:
                report(case.name, "building")
                request = {"do": "prepare", "case": case.to_json(), "reference": str(path)}
                answer = contender.ask({**request, "warm_up_s": settings.time_limit_s / 4}, PREPARE_TIMEOUT_S)
                contender.facts.update(answer or {})
            report(case.name, contender.error or "ready")
        yield contenders, probe, facts
    finally:
        for contender in contenders:
            contender.worker.stop()
        if probe is not None:
            probe.stop()


def _finish(case: Case, contender: Contender, profile: bool, report: Report) -> None:
    """The last checks of a contender, and its end."""
    report(contender.name, "checking")
    contender.facts.update(contender.ask({"do": "finish"}, PREPARE_TIMEOUT_S) or {})
    if profile and case.peer is None and contender.error is None:
        report(contender.name, "profiling")
        contender.facts.update(contender.ask({"do": "profile"}, PREPARE_TIMEOUT_S) or {})
    contender.worker.stop()
    report(contender.name, contender.error or "done")


def quiet_for_all(contenders: Sequence[Contender], best: References) -> bool:
    """Whether every contender has enough quiet turns for them to be set beside each other.

    One with hardly any turns at all, because a call of it takes seconds, does not keep the others from theirs.
    """
    turns = [(len(set(one.samples.rounds)), len(one.quiet(best))) for one in contenders if one.error is None]
    return all(quiet >= FEWEST_QUIET for taken, quiet in turns if taken > FEWEST_QUIET)


def failed_rows(cases: Sequence[Case], error: WorkerError) -> list[dict[str, Any]]:
    """Rows for the cases of a model that could not be loaded, where other models are measured too."""
    rows = []
    for case in cases:
        contender = Contender(case.name, worker=None, error=str(error))  # type: ignore[arg-type]
        rows.append(_row(case, contender, {"model": case.spec or "", "batch": 1}, Settings(), (), False, True))
    return rows


def _reference(case: Case, data: Data, path: Path, report: Report) -> dict[str, Any]:
    report("reference", "computing in fp64")
    worker = Worker(case.threads)
    try:
        request = {"do": "reference", "case": Case(case.spec, "reference", case.options).to_json(), "path": str(path)}
        facts = worker.ask({**request, **data.to_json()}, PREPARE_TIMEOUT_S)
    finally:
        worker.stop()
    report("reference", "done")
    return facts


def _row(
    case: Case, contender: Contender, facts: dict[str, Any], settings: Settings, best: References, cold: bool,
    fair: bool,
) -> dict[str, Any]:  # fmt: skip
    """One result of the schema. A contender with an error keeps no times: they may be of wrong outputs.

    `samples_ms` are all samples and `quiet` says which of them count: `latency_ms` and `ci95` are of those. Where too
    few turns were quiet, of this contender or (not `fair`) of another, all count, and the result is `unstable`;
    `quiet_turns` says how many there were.
    """
    known = contender.facts
    all_samples = contender.cold if cold else contender.samples
    timed = contender.error is None and bool(all_samples.seconds)
    counted, enough = contender.counted(all_samples, best) if fair else (all_samples, False)
    quiet = contender.quiet(best) if timed else set()
    precise = contender.precise(replace(settings, cold=cold), best)
    return {
        "model": facts["model"],
        "variant": case.contender,
        "target": case.options.kind,
        "dtype": case.options.dtype,
        "batch": facts["batch"],
        "sparsity": facts.get("sparsity", 0.0),
        "method": facts.get("method"),
        "latency_ms": statistics.summary([seconds * 1e3 for seconds in counted.seconds]) if timed else None,
        "samples_ms": [seconds * 1e3 for seconds in all_samples.seconds] if timed else [],
        "compile_s": known.get("compile_s"),
        "max_abs_err": known.get("max_abs_err"),
        "accuracy": known.get("accuracy"),
        "params": facts.get("params"),
        "nonzero_params": facts.get("nonzero_params"),
        "size_bytes": known.get("size_bytes") or facts.get("size_bytes"),
        "size_compressed_bytes": facts.get("size_compressed_bytes"),
        "flops": facts.get("flops"),
        "threads": case.threads,
        "strategy": ",".join(f"{op}={way}" for op, way in sorted(case.options.strategies.items())) or "default",
        "ci95": [bound * 1e3 for bound in counted.ci95] if timed else None,
        "unstable": timed and (contender.restless or not enough or not precise),
        "cold": cold,
        "rounds": list(all_samples.rounds) if timed else [],
        "quiet": [number in quiet for number in all_samples.rounds] if timed and fair else [],
        "quiet_turns": len(quiet),
        "reference_gflops": contender.reference(counted) if timed and best else None,
        "peak_memory_bytes": known.get("peak_memory_bytes"),
        "tuning_s": known.get("tuning_s"),
        "error": contender.error,
        "calls_per_sample": 1 if cold else known.get("calls_per_sample"),
        "dataset": facts.get("dataset"),
        "weights": case.options.weights,
        "inputs": facts.get("inputs"),
        "tuning_curve": known.get("tuning_curve"),
        **{name: known[name] for name in ("profile", "roof", "gpu_state") if name in known},
    }
