"""The GPU a kernel is built for: the one that is here, read through CUDA's driver, or one named by its architecture.

Figures per architecture are those of "Technical Specifications per Compute Capability" and "Throughput of Native
Arithmetic Instructions" in NVIDIA's CUDA C++ Programming Guide. How many processors, which clock, how large an L2 and
how fast a memory are a product's, not an architecture's: without the GPU the product most met stands for all, and
`assumed` says so.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvmopt.errors import TargetError

if TYPE_CHECKING:
    import tvm

# What a kernel gets of shared memory without asking the driver for more: statically declared arrays, and what
# MetaSchedule's general space may use.
STATIC_SHARED = 48 << 10


@dataclass(frozen=True)
class _Product:
    name: str
    sms: int
    clock_ghz: float
    l2: int
    dram_bytes_per_s: float


@dataclass(frozen=True)
class _Architecture:
    shared_per_block: int
    shared_per_sm: int
    max_threads_per_sm: int
    # fp32 multiply-adds that one SM starts in a cycle.
    fp32_lanes: int
    product: _Product


_KIB, _MIB = 1 << 10, 1 << 20
ARCHITECTURES: dict[str, _Architecture] = {
    "sm_80": _Architecture(163 * _KIB, 164 * _KIB, 2048, 64, _Product("A100", 108, 1.41, 40 * _MIB, 1.555e12)),
    "sm_86": _Architecture(99 * _KIB, 100 * _KIB, 1536, 128, _Product("RTX 3090", 82, 1.695, 6 * _MIB, 0.936e12)),
    "sm_89": _Architecture(99 * _KIB, 100 * _KIB, 1536, 128, _Product("RTX 4090", 128, 2.52, 72 * _MIB, 1.008e12)),
    "sm_90": _Architecture(227 * _KIB, 228 * _KIB, 2048, 128, _Product("H100 SXM", 132, 1.98, 50 * _MIB, 3.352e12)),
}  # fmt: skip

# CUdevice_attribute of cuda.h.
_ATTRIBUTES = {
    "max_threads_per_block": 1, "warp": 10, "clock_khz": 13, "sms": 16, "memory_khz": 36, "bus_bits": 37, "l2": 38,
    "max_threads_per_sm": 39, "major": 75, "minor": 76, "shared_per_sm": 81, "registers_per_sm": 82,
    "shared_per_block": 97,
}  # fmt: skip
# What a driver may not tell (a GPU that is shared out): the product's figure stands for it. sm_X0 has the minor 0.
_MAY_BE_MISSING = {"clock_khz", "memory_khz", "bus_bits", "l2", "minor"}
# The status we give where the driver says that all is well and tells nothing.
_NOTHING = -1


@dataclass(frozen=True)
class GpuMachine:
    """A CUDA GPU as seen by a schedule.

    `arch` is the architecture as nvcc names it ("sm_90"), `sms` the streaming multiprocessors. Bytes:
    `shared_per_block` (the most a block may ask for), `shared_per_sm`, `l2`, `dram_bytes_per_s`. `registers_per_sm`
    are of 32 bits. `fp32_lanes`: fp32 multiply-adds one SM starts in a cycle. `cores`: threads of the host, for what
    runs there. `assumed` names the figures that are not read from a GPU.
    """

    name: str
    arch: str
    sms: int
    clock_ghz: float
    shared_per_block: int
    shared_per_sm: int
    max_threads_per_sm: int
    l2: int
    dram_bytes_per_s: float
    fp32_lanes: int
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    max_threads_per_block: int = 1024
    warp: int = 32
    kind: str = "cuda"
    cores: int = field(default=1, compare=False)
    assumed: tuple[str, ...] = field(default=(), compare=False)

    @property
    def tensor_cores(self) -> bool:
        """Whether it multiplies fp16 matrices (Volta on) and bf16 ones (Ampere on), summing in fp32."""
        return self.capability >= 80

    @property
    def async_copy(self) -> bool:
        """Whether it copies from global to shared memory without registers (`cp.async`)."""
        return has_async_copy(self.arch)

    @property
    def warpgroup_mma(self) -> bool:
        """Whether it has `wgmma`: Hopper alone, Blackwell has other instructions in its place."""
        return self.capability == 90

    @property
    def capability(self) -> int:
        """The compute capability times ten: 90 for sm_90 and sm_90a."""
        return capability(self.arch)

    @property
    def present(self) -> bool:
        """Whether it was found here, or is only named."""
        return not self.assumed

    @property
    def fp32_peak(self) -> float:
        """Operations per second of fp32 multiply-adds at `clock_ghz`, each counted as two."""
        return 2.0 * self.fp32_lanes * self.sms * self.clock_ghz * 1e9

    @property
    def slug(self) -> str:
        """The name of this machine's directory under `tuning_logs/`: one for each architecture."""
        return f"cuda-{self.arch}"

    def target(self) -> tvm.target.Target:
        """The TVM target, with a host of any CPU of this kind: what runs there only starts kernels."""
        import tvm

        return tvm.target.Target(
            {
                "kind": "cuda",
                "arch": self.arch,
                "max_threads_per_block": self.max_threads_per_block,
                "max_num_threads": self.max_threads_per_block,
                "max_shared_memory_per_block": STATIC_SHARED,
                "registers_per_block": self.registers_per_sm,
                "thread_warp_size": self.warp,
                "l2_cache_size_bytes": self.l2,
                "host": {"kind": "llvm", "mtriple": str(tvm.target.codegen.llvm_get_system_triple())},
            }
        )

    def describe(self) -> str:
        """One line saying what is built for."""
        here = "" if self.present else f" (not here; {', '.join(self.assumed)} as of this product)"
        return (
            f"{self.name}, {self.arch}: {self.sms} SMs at {self.clock_ghz:.2f} GHz, {self.shared_per_block >> 10} KiB "
            f"shared memory a block, L2 {self.l2 >> 20} MiB{here}"
        )


def capability(arch: str) -> int:
    """sm_90 -> 90."""
    found = re.fullmatch(r"sm_(\d+)[af]?", arch)
    if found is None:
        raise TargetError(f"--arch {arch}: unknown; choose one of {', '.join(ARCHITECTURES)}")
    return int(found[1])


def has_async_copy(arch: str) -> bool:
    """Whether a GPU of `arch` has `cp.async`: Ampere and later."""
    return capability(arch) >= 80


def named_gpu(arch: str, cores: int = 1) -> GpuMachine:
    """A GPU of the architecture `arch` that need not be here.

    Raises:
        TargetError: an architecture that is not in the table.
    """
    known = ARCHITECTURES.get(arch)
    if known is None:
        raise TargetError(f"--arch {arch}: unknown; choose one of {', '.join(ARCHITECTURES)}")
    product = known.product
    return GpuMachine(
        name=product.name, arch=arch, sms=product.sms, clock_ghz=product.clock_ghz,
        shared_per_block=known.shared_per_block, shared_per_sm=known.shared_per_sm,
        max_threads_per_sm=known.max_threads_per_sm, l2=product.l2, dram_bytes_per_s=product.dram_bytes_per_s,
        fp32_lanes=known.fp32_lanes, cores=cores, assumed=("sms", "clock_ghz", "l2", "dram_bytes_per_s"),
    )  # fmt: skip


def driver() -> Any | None:
    """The CUDA driver's library where it knows a device, else None. Asked without loading any framework."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int(0)
    found = library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return library if found else None


def detect_gpu(cores: int = 1, library: Any | None = None) -> GpuMachine | None:
    """The first GPU that the driver shows (`CUDA_VISIBLE_DEVICES` chooses), None where there is none.

    library: the driver's; by default the one installed.

    Raises:
        TargetError: a GPU older than anything schedules are written for, or one the driver tells nothing of.
    """
    library = library or driver()
    if library is None:
        return None
    device = ctypes.c_int(0)
    _require(library.cuDeviceGet(ctypes.byref(device), 0), "the first GPU")
    buffer = ctypes.create_string_buffer(256)
    _require(library.cuDeviceGetName(buffer, len(buffer), device), "the first GPU's name")
    read: dict[str, int] = {}
    for name, number in _ATTRIBUTES.items():
        value = ctypes.c_int(0)
        status = library.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        read[name] = value.value if status == 0 else 0
        if read[name] <= 0 and name not in _MAY_BE_MISSING:
            _require(status or _NOTHING, f"{buffer.value.decode()}'s {name}")
    major, minor = read.pop("major"), read.pop("minor")
    arch = f"sm_{major}{minor}"
    name = buffer.value.decode()
    older = [known for known in ARCHITECTURES if capability(known) <= capability(arch)]
    if not older:
        raise TargetError(f"{name} is {arch}, older than {next(iter(ARCHITECTURES))}: use --target llvm")
    closest = ARCHITECTURES[older[-1]]
    # Both clocks' edges carry data.
    bandwidth = 2.0 * read["memory_khz"] * 1e3 * read["bus_bits"] / 8 or closest.product.dram_bytes_per_s
    return GpuMachine(
        name=name, arch=arch, sms=read["sms"], clock_ghz=read["clock_khz"] * 1e-6 or closest.product.clock_ghz,
        shared_per_block=read["shared_per_block"], shared_per_sm=read["shared_per_sm"],
        max_threads_per_sm=read["max_threads_per_sm"], l2=read["l2"] or closest.product.l2,
        dram_bytes_per_s=bandwidth, fp32_lanes=closest.fp32_lanes,
        registers_per_sm=read["registers_per_sm"], max_threads_per_block=read["max_threads_per_block"],
        warp=read["warp"], cores=cores,
    )  # fmt: skip


def _require(status: int, what: str) -> None:
    """Raises TargetError for what the driver did not tell."""
    if status != 0:
        why = "" if status == _NOTHING else f" (CUresult {status})"
        raise TargetError(f"CUDA's driver does not tell {what}{why}: see whether nvidia-smi does, or use --target llvm")
