"""What measuring on a GPU takes beside the timer: that there is one, in which state it is, and an emptied L2."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from tvmopt.errors import TargetError
from tvmopt.machine import GpuMachine

# What nvidia-smi is asked -> the name in a result file; clocks in MHz, power in W, temperature in degrees Celsius.
_QUERY = {
    "driver_version": "driver", "clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "clocks.max.sm": "sm_mhz_max",
    "clocks.max.mem": "memory_mhz_max", "clocks.applications.graphics": "sm_mhz_application", "pstate": "power_state",
    "power.draw": "power_w", "power.limit": "power_limit_w", "temperature.gpu": "temperature_c",
    "clocks_throttle_reasons.active": "throttle_reasons", "persistence_mode": "persistence",
}  # fmt: skip
# Twice what the cache holds: its replacement is not exactly least-recently-used.
_SWEEP = 2


def require(machine: GpuMachine) -> None:
    """Raises TargetError, saying what can be done instead, where `machine` is only named."""
    if not machine.present:
        raise TargetError(
            f"measuring for {machine.arch} needs the GPU, and it is not here: build with python -m tvmopt.export "
            f"--target cuda --arch {machine.arch}, and measure with bench/gpu/run.sh where it is"
        )


def describe(machine: GpuMachine) -> dict[str, Any]:
    """The GPU's part of a result file's environment. TF32 is off for everybody: fp32 means fp32."""
    return {
        "name": machine.name,
        "arch": machine.arch,
        "sms": machine.sms,
        "clock_ghz": machine.clock_ghz,
        "l2": machine.l2,
        "dram_bytes_per_s": machine.dram_bytes_per_s,
        "fp32_peak_gflops": machine.fp32_peak * 1e-9,
        "tf32": False,
        "state": state(),
    }


def state(run: Callable[[Sequence[str]], str] | None = None) -> dict[str, Any] | None:
    """Clocks, power and temperature of the first GPU now, by nvidia-smi; None where that cannot be asked.

    What the GPU does not tell ("[N/A]") is None.
    """
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        line = (run or _run)(command).strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(_QUERY):
        return None
    return {name: _value(value) for name, value in zip(_QUERY.values(), values, strict=True)}


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


def _value(text: str) -> Any:
    if text.startswith("[") or text.lower() in ("n/a", ""):
        return None
    try:
        return float(text)
    except ValueError:
        return text


class L2Flush:
    """Pushes everything out of a GPU's L2: writes more memory than it holds. `zeros(n)` makes n bytes there."""

    def __init__(self, l2: int, zeros: Callable[[int], Any] | None = None) -> None:
        self._buffer = (zeros or _zeros)(_SWEEP * l2)

    def __call__(self) -> None:
        """Sweeps once, on the current stream."""
        self._buffer.zero_()


def _zeros(size: int) -> Any:
    import torch

    return torch.empty(size, dtype=torch.int8, device="cuda")


def take_cold(watch: Callable[[int], float], flush: Callable[[], None], samples: int, budget_s: float) -> list[float]:
    """Seconds of `samples` single calls, each behind a flush; fewer (but one) once these took `budget_s`."""
    taken: list[float] = []
    while len(taken) < samples and (not taken or sum(taken) < budget_s):
        flush()
        taken.append(watch(1))
    return taken
