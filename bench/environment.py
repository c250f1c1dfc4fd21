"""Where a measurement was made: without it a number cannot be compared with anything."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tvmopt.machine import AnyMachine, GpuMachine, available_cores, detect

from . import on_gpu

_PACKAGES = (
    "tvmopt", "apache-tvm", "apache-tvm-ffi", "torch", "torchvision", "numpy", "onnxruntime", "onnx", "openvino",
)  # fmt: skip


def describe(machine: AnyMachine, threads: int) -> dict[str, Any]:
    """The `environment` of a result file, taken before measuring; `finish` adds what changed meanwhile."""
    if isinstance(machine, GpuMachine):
        return {**describe(detect(threads), threads), "host": host_name(machine), "gpu": on_gpu.describe(machine)}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": host_name(machine),
        "cpu": machine.name,
        "llvm_cpu": machine.llvm_cpu,
        "isa": machine.isa,
        "cores": os.cpu_count(),
        "cores_usable": available_cores(),
        "threads": threads,
        "caches_bytes": {"l1": machine.l1, "l2": machine.l2, "l3": machine.l3},
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "turbo": _turbo(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_before": load(),
        "os": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions(),
        "git": git_state(),
    }


def host_name(machine: AnyMachine) -> str:
    """A directory name for this host: the CPU or GPU, and six digits that tell machines apart unnamed."""
    name = re.sub(r"\((?:r|tm)\)|\bcpu\b|\bprocessor\b|@", " ", machine.name.lower())
    slug = "-".join(re.findall(r"[a-z0-9.]+", name))[:40].strip("-.") or "cpu"
    identity = _read(Path("/etc/machine-id")) or platform.node()
    digest = hashlib.sha256(f"{identity} {machine.name} {os.cpu_count()}".encode()).hexdigest()
    return f"{slug}-{digest[:6]}"


def load() -> float | None:
    """The load average of the last minute, None where the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    """The installed versions of what takes part."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    tvmopt = sys.modules.get("tvmopt")
    return {"tvmopt": getattr(tvmopt, "__version__", "unknown"), **found}


def git_state() -> dict[str, Any]:
    """Revision and dirtiness of the checkout this file is in; both None for an installed package."""
    here = Path(__file__).resolve().parent
    if not (here.parent / "pyproject.toml").is_file():
        return {"revision": None, "dirty": None}
    revision = _git(here, "rev-parse", "HEAD")
    # Result files are written by every run and say nothing about the code.
    status = _git(here.parent, "status", "--porcelain", "--", ".", ":(exclude)bench/results")
    return {"revision": revision, "dirty": None if revision is None else bool(status)}


def _git(where: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(where), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _turbo() -> bool | None:
    no_turbo = _read(Path("/sys/devices/system/cpu/intel_pstate/no_turbo"))
    boost = _read(Path("/sys/devices/system/cpu/cpufreq/boost"))
    if no_turbo is not None:
        return no_turbo == "0"
    return None if boost is None else boost == "1"


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
