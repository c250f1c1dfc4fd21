"""Measures the contenders of one model: reference, building, turns, checks, and a result row for each."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import statistics
from .cases import Case
from .process import Worker, WorkerError
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
    contenders: list[Contender] = []
    with tempfile.TemporaryDirectory(prefix="tvmopt-bench-") as directory:
        path = Path(directory) / "reference.pt"
        facts = _reference(cases[0], data, path, report)
        try:
            for case in cases:
                report(case.name, "building")
                contender = Contender(case.name, Worker(case.threads))
                contenders.append(contender)
                request = {"do": "prepare", "case": case.to_json(), "reference": str(path)}
                answer = contender.ask({**request, "warm_up_s": settings.time_limit_s / 4}, PREPARE_TIMEOUT_S)
                contender.facts.update(answer or {})
                report(case.name, contender.error or "ready")
            take_turns(contenders, settings, report)
            for case, contender in zip(cases, contenders, strict=True):
                if contender.error is None:
                    report(contender.name, "checking")
                    answer = contender.ask({"do": "finish"}, PREPARE_TIMEOUT_S)
                    contender.facts.update(answer or {})
                    if profile and case.peer is None and contender.error is None:
                        report(contender.name, "profiling")
                        answer = contender.ask({"do": "profile"}, PREPARE_TIMEOUT_S)
                        contender.facts.update(answer or {})
                    contender.worker.stop()
                    report(contender.name, contender.error or "done")
        finally:
            for contender in contenders:
                contender.worker.stop()
    return [_row(case, contender, facts, settings) for case, contender in zip(cases, contenders, strict=True)]


def failed_rows(cases: Sequence[Case], error: WorkerError) -> list[dict[str, Any]]:
    """Rows for the cases of a model that could not be loaded, where other models are measured too."""
    rows = []
    for case in cases:
        contender = Contender(case.name, worker=None, error=str(error))  # type: ignore[arg-type]
        rows.append(_row(case, contender, {"model": case.spec or "", "batch": 1}, Settings()))
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


def _row(case: Case, contender: Contender, facts: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """One result of the schema. A contender with an error keeps no times: they may be of wrong outputs."""
    known = contender.facts
    timed = contender.error is None and bool(contender.samples)
    samples = [seconds * 1e3 for seconds in contender.samples] if timed else []
    return {
        "model": facts["model"],
        "variant": case.contender,
        "target": "llvm",
        "dtype": case.options.dtype,
        "batch": facts["batch"],
        "sparsity": 0.0,
        "method": None,
        "latency_ms": statistics.summary(samples) if timed else None,
        "samples_ms": samples,
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
        "ci95": [bound * 1e3 for bound in contender.ci95] if timed else None,
        "unstable": timed and (contender.restless or not contender.precise(settings)),
        "cold": False,
        "rounds": list(contender.rounds) if timed else [],
        "peak_memory_bytes": known.get("peak_memory_bytes"),
        "tuning_s": known.get("tuning_s"),
        "error": contender.error,
        "calls_per_sample": known.get("calls_per_sample"),
        "dataset": facts.get("dataset"),
        "weights": case.options.weights,
        "inputs": facts.get("inputs"),
        "tuning_curve": known.get("tuning_curve"),
        **{name: known[name] for name in ("profile", "roof") if name in known},
    }
