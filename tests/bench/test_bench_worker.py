"""A worker's session in this process, with a stand-in for what builds variants."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bench import peers
from bench.cases import Case
from bench.worker import Session
from tvmopt.options import BuildOptions
from tvmopt.plan import KernelPlan, Plan
from tvmopt.tuning import lines

REQUEST = {"dataset": None, "default_dataset": True, "data_dir": None, "limit": 20}


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `build_by_options` was called with; `change` is done to the outputs."""
    seen: dict[str, Any] = {"change": lambda y: y}

    class Compiled:
        tuning_s = 12.5
        plan = Plan((KernelPlan("conv", "0123", "template"),))

        def __init__(self, module: Any) -> None:
            self.module = module

        def __call__(self, x: Any) -> Any:
            import torch

            with torch.no_grad():
                return seen["change"](self.module(x))

        def size_bytes(self) -> int:
            return 1234

    def build_by_options(model: Any, variant: str, machine: Any, options: BuildOptions) -> Compiled:
        seen.update(variant=variant, machine=machine, dump_dir=options.dump_dir)
        return Compiled(model.module)

    module = types.ModuleType("tvmopt.variants")
    module.build_by_options = build_by_options  # type: ignore[attr-defined]
    module.log_path_of = lambda model, machine, folder, strategies: folder / model.log_name  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tvmopt.variants", module)
    return seen


def prepared(tmp_path: Path, variant: str = "manual") -> tuple[Session, dict[str, Any]]:
    options = BuildOptions(threads=1, dump_dir=tmp_path / "ir", log_dir=tmp_path / "logs")
    case = Case("digits_cnn", variant, options).to_json()
    path = str(tmp_path / "reference.pt")
    facts = Session().handle({"do": "reference", "case": case, "path": path, **REQUEST})
    assert facts["dataset"] == "digits", facts
    session = Session()
    answer = session.handle({"do": "prepare", "case": case, "reference": path, "warm_up_s": 0.2})
    return session, answer


def test_a_variant_from_build_to_accuracy(builder: dict[str, Any], tmp_path: Path) -> None:
    session, answer = prepared(tmp_path)
    assert answer["ok"], answer
    assert (answer["size_bytes"], answer["tuning_s"]) == (1234, 12.5)
    assert builder["variant"] == "manual"
    assert builder["machine"].cores == 1
    assert builder["dump_dir"] == tmp_path / "ir" / "digits_cnn" / "manual"
    samples = session.handle({"do": "round", "samples": 2, "budget_s": 5})["samples"]
    assert len(samples) == 2
    assert min(samples) > 0
    final = session.handle({"do": "finish"})
    assert final["accuracy"]["n"] == 20
    assert final["accuracy"]["agreement"] == 1.0
    assert final["tuning_curve"] is None


def test_auto_says_how_its_search_went(builder: dict[str, Any], tmp_path: Path) -> None:
    session, _ = prepared(tmp_path, "auto")
    assert session.handle({"do": "finish"})["tuning_curve"] is None, "there is no log"
    log = tmp_path / "logs" / "digits_cnn"
    log.mkdir(parents=True)
    for name in (lines.WORKLOADS, lines.RECORDS):
        (log / name).touch()
    trial = lines.Trial("0123", "template", "c", "ok", 1e-6, 0.5, "rule", 1, elapsed_s=2.0)
    (log / lines.TRIALS).write_text(json.dumps(dataclasses.asdict(trial)) + "\n")
    curve = session.handle({"do": "finish"})["tuning_curve"]
    assert (curve["trials"], curve["elapsed_s"]) == (1, 2.0)
    assert curve["kernels"] == [{"kernel": "conv", "manual_s": 2e-6, "tried": 1, "points": [[1, 2.0, 0.5]]}]


@pytest.mark.parametrize("change", [lambda y: y * 1.01, lambda y: y * float("nan"), lambda y: y[:, :9]])
def test_a_wrong_variant_is_found_before_timing(builder: dict[str, Any], tmp_path: Path, change: Any) -> None:
    builder["change"] = change
    _, answer = prepared(tmp_path)
    assert answer["error"].startswith("wrong outputs before timing")


def test_an_output_left_over_from_an_earlier_call_is_found(builder: dict[str, Any], tmp_path: Path) -> None:
    first: list[Any] = []

    def stale(y: Any) -> Any:
        first.append(y)
        return first[0]

    builder["change"] = stale
    _, answer = prepared(tmp_path)
    assert answer["error"].startswith("wrong outputs before timing")


def test_an_output_nobody_writes_is_found(builder: dict[str, Any], tmp_path: Path) -> None:
    """A kernel that leaves its memory as it is: poisoned memory, where the right values of the call before were."""
    import torch

    memory: dict[Any, torch.Tensor] = {}

    def lazy(y: torch.Tensor) -> torch.Tensor:
        # The first call for an input writes; a later one finds the values there and does not.
        return memory.setdefault(float(y.sum()), y)

    builder["change"] = lazy
    _, answer = prepared(tmp_path)
    assert answer["error"].startswith("wrong outputs before timing")


def test_cold_samples_stand_beside_the_warm_ones(builder: dict[str, Any], tmp_path: Path) -> None:
    session, _ = prepared(tmp_path)
    answer = session.handle({"do": "round", "samples": 3, "budget_s": 5, "cold": True})
    assert len(answer["samples"]) == len(answer["cold"]) == 3


@pytest.mark.parametrize("target, processes", [("llvm", "1"), ("cuda", None)])
def test_inductor_compiles_for_a_gpu_on_all_cores(
    target: str, processes: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a CPU on one, which others would else be timed beside."""
    name = "TORCHINDUCTOR_COMPILE_THREADS"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "bench.peers.inductor", raising=False)
    monkeypatch.delattr(peers, "inductor", raising=False)
    Session()._load(Case("digits_cnn", "peer:inductor", BuildOptions(target=target, threads=1)))
    assert os.environ.get(name) == processes
