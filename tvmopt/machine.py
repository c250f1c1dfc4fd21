"""The machine a kernel is built for: what schedules size their tiles by, and the TVM target made from it.

Everything is read from the process (affinity) and from the kernel's description of the CPU; nothing is assumed
from a product name. Where a figure cannot be read, a conservative one is taken and `assumed` names it.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import UsageError
from tvmopt.machine_gpu import GpuMachine, detect_gpu, named_gpu

if TYPE_CHECKING:
    import tvm

__all__ = ["AnyMachine", "GpuMachine", "Machine", "available_cores", "detect", "detect_gpu", "named_gpu"]

# fp32 lanes and SIMD registers by instruction set: AVX-512 has 32 zmm, AVX2 16 ymm, NEON 32 of 128 bits.
_ISA = {"avx512": (16, 32), "avx2": (8, 16), "sse": (4, 16), "neon": (4, 32)}
_CACHE_DEFAULTS = {"l1": 32 << 10, "l2": 512 << 10, "l3": 4 << 20}
# How often an idle thread of TVM's pool yields before it sleeps: 3 to 7 ms. TVM's own 300000 are 0.1 to 0.2 s, for
# which it keeps a core from sleeping; within a network, and between calls in a row, it waits for microseconds.
_SPIN_COUNT = "10000"
_CPUINFO = Path("/proc/cpuinfo")
CACHE_DIR = Path("/sys/devices/system/cpu/cpu0/cache")
# Data and instructions apart on the first level, and up to three more.
_MOST_CACHES = 5


@dataclass(frozen=True)
class Machine:
    """A CPU as seen by a schedule.

    `cores` is the number of threads kernels run on; `lanes` the fp32 values per SIMD register; `registers` the
    number of those; `l1`, `l2`, `l3` bytes (L1 and L2 per core, L3 shared). `triple` is LLVM's, of a machine that is
    not this host.
    """

    kind: str
    name: str
    llvm_cpu: str
    isa: str
    cores: int
    lanes: int
    registers: int
    l1: int
    l2: int
    l3: int
    assumed: tuple[str, ...] = field(default=(), compare=False)
    triple: str = field(default="", compare=False)

    @property
    def slug(self) -> str:
        """The name of this machine's directory under `tuning_logs/`: target, CPU, threads."""
        return f"llvm-{self.llvm_cpu}-t{self.cores}"

    def target(self) -> tvm.target.Target:
        """The TVM target: LLVM for this CPU, with as many cores as threads are used."""
        import tvm

        return tvm.target.Target(
            {
                "kind": "llvm", "mtriple": self.triple or default_triple(), "mcpu": self.llvm_cpu,
                "num-cores": self.cores,
            }
        )  # fmt: skip

    def describe(self) -> str:
        """One line saying what was found."""
        caches = f"L1 {self.l1 >> 10} KiB, L2 {self.l2 >> 10} KiB, L3 {self.l3 >> 10} KiB"
        text = (
            f"{self.name} ({self.llvm_cpu}), {self.cores} thread{'s' if self.cores != 1 else ''}, "
            f"{self.isa}: {self.lanes} fp32 lanes x {self.registers} registers, {caches}"
        )
        return text + (f" (assumed: {', '.join(self.assumed)})" if self.assumed else "")


AnyMachine = Machine | GpuMachine
"""Whatever kernels are built for."""


def available_cores() -> int:
    """The number of CPUs this process may run on (its affinity, which containers and taskset narrow)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def detect(threads: int | None = None) -> Machine:
    """Describe this host's CPU; `threads` overrides the core count.

    Raises:
        UsageError: `threads` is not between 1 and the number of CPUs this process may use.
    """
    cores = available_cores()
    if threads is not None:
        if not 1 <= threads <= cores:
            raise UsageError(f"--threads {threads}: this process may use 1 to {cores} CPUs")
        cores = threads
    flags, name = _cpuinfo()
    isa = _isa(flags, platform.machine())
    lanes, registers = _ISA[isa]
    sizes, assumed = _caches(_cache_file)
    return Machine(
        kind="cpu", name=name, llvm_cpu=_llvm_cpu(), isa=isa, cores=cores, lanes=lanes, registers=registers,
        l1=sizes["l1"], l2=sizes["l2"], l3=sizes["l3"], assumed=assumed,
    )  # fmt: skip


def from_facts(facts: dict[str, Any]) -> AnyMachine:
    """The machine whose fields are `facts`, as `dataclasses.asdict` or JSON has them."""
    kind = GpuMachine if facts.get("kind") == "cuda" else Machine
    return kind(**{**facts, "assumed": tuple(facts.get("assumed", ()))})


def described_cpu(
    llvm_cpu: str, triple: str, features: set[str], cores: int, cache_file: Callable[[str], str | None]
) -> Machine:
    """A CPU elsewhere, of which these are known; `cache_file` reads a file of its cache's description by relative path.

    Its product name is not: LLVM's stands for it.
    """
    isa = _isa(features, triple.split("-")[0])
    lanes, registers = _ISA[isa]
    sizes, assumed = _caches(cache_file)
    return Machine(
        kind="cpu", name=llvm_cpu, llvm_cpu=llvm_cpu, isa=isa, cores=cores, lanes=lanes, registers=registers,
        l1=sizes["l1"], l2=sizes["l2"], l3=sizes["l3"], assumed=("name", *assumed), triple=triple,
    )  # fmt: skip


def threads_environment(threads: int) -> dict[str, str]:
    """The environment under which TVM, and every peer beside it, uses `threads` threads.

    TVM's pool takes half of an x86 machine's CPUs unless told, and pins its workers but not the main thread,
    which then sometimes shares a core with one of them: hence `TVM_BIND_THREADS=0`. The spin count is yours
    where you set it.
    """
    count = str(threads)
    return {
        "TVM_NUM_THREADS": count,
        "TVM_BIND_THREADS": "0",
        "TVM_THREAD_POOL_SPIN_COUNT": os.environ.get("TVM_THREAD_POOL_SPIN_COUNT", _SPIN_COUNT),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


def configure_threads(threads: int) -> None:
    """Make this process's TVM (and torch, where it is loaded) use `threads` threads, whenever TVM was loaded."""
    os.environ.update(threads_environment(threads))
    if "tvm" in sys.modules:
        import tvm

        # Mode 1 (fastest cores first) only sets the count: pinning is off through TVM_BIND_THREADS.
        configure = tvm.get_global_func("runtime.config_threadpool", allow_missing=True)
        if configure is not None:
            configure(1, threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def default_triple() -> str:
    """The LLVM triple of this host, as TVM's LLVM reports it."""
    import tvm

    return str(tvm.target.codegen.llvm_get_system_triple())


def _llvm_cpu() -> str:
    import tvm

    return str(tvm.target.codegen.llvm_get_system_cpu())


def _cpuinfo() -> tuple[set[str], str]:
    if not _CPUINFO.is_file():
        return set(), platform.processor() or platform.machine()
    text = _CPUINFO.read_text()
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    name = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", text, re.MULTILINE)
    found = name.group(1) if name else platform.processor() or platform.machine()
    return set(flags.group(1).split()) if flags else set(), " ".join(found.split())


def _isa(flags: set[str], architecture: str) -> str:
    if "avx512f" in flags:
        return "avx512"
    if {"avx2", "fma"} <= flags:
        return "avx2"
    return "neon" if architecture in ("aarch64", "arm64") else "sse"


def _cache_file(name: str) -> str | None:
    try:
        return (CACHE_DIR / name).read_text()
    except OSError:
        return None


def _caches(read: Callable[[str], str | None]) -> tuple[dict[str, int], tuple[str, ...]]:
    sizes: dict[str, int] = {}
    for index in range(_MOST_CACHES):
        level, kind, size = (read(f"index{index}/{name}") for name in ("level", "type", "size"))
        if level is None or kind is None or size is None:
            continue
        if kind.strip() != "Instruction" and size.strip().endswith("K"):
            sizes[f"l{level.strip()}"] = int(size.strip()[:-1]) << 10
    assumed = tuple(name for name in _CACHE_DEFAULTS if name not in sizes)
    return {**_CACHE_DEFAULTS, **sizes}, assumed
