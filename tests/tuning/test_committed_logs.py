"""The logs in `tuning_logs/` replay: every kernel of their models is a hit or manual's by plan, never a miss."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import Machine
from tvmopt.model import load_model
from tvmopt.tuning.manifest import read_manifest
from tvmopt.tuning.resolve import open_log

ROOT = Path(__file__).resolve().parents[2] / "tuning_logs"
LOGS = sorted(path.parent for path in ROOT.glob("*/*/manifest.json"))
# Of many kernels: seconds each.
LARGE = ("googlenet", "mobilenet_v2", "resnet50")


def _machine_of(log: Path) -> Machine:
    """The machine the log was made on, whatever this one is: lowering depends on its vectors, not on running there."""
    known = {item.name for item in fields(Machine)} - {"assumed"}
    return Machine(**{name: value for name, value in read_manifest(log).machine.items() if name in known})


def test_logs_of_both_networks_are_committed() -> None:
    assert {"digits_cnn", "resnet18"} <= {log.name for log in LOGS}


@pytest.mark.parametrize(
    "log",
    [pytest.param(log, marks=pytest.mark.slow) if log.name in LARGE else log for log in LOGS],
    ids=lambda log: f"{log.parent.name}/{log.name}",
)
def test_no_kernel_misses(log: Path) -> None:
    manifest, machine = read_manifest(log), _machine_of(log)
    assert machine.slug == log.parent.name
    model = load_model(manifest.model["spec"])
    kernels = lower_model(model, machine, manifest.strategies).kernels
    resolved = open_log(log, machine, model).resolve_all(kernels)
    assert not [f"{item.kernel.name}: {item.reason}" for item in resolved if item.status == "miss"]
    assert any(item.status == "hit" for item in resolved)
    assert manifest.network["kept"] == "auto"
    assert all(item.schedule is not None for item in resolved if item.status == "hit")
