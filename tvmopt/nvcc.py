"""CUDA source to machine code by NVIDIA's compiler, for a GPU that need not be here.

The result is a fat binary: the architecture's own code (a cubin), and PTX beside it, which the driver of a later
architecture compiles when it loads it. Code that uses what one architecture alone has (Hopper's `wgmma`) has no PTX
for others. Fast-math is off unless asked for: TVM's own default flushes denormals and approximates divisions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tvmopt.errors import ModelError

# Instructions that exist under `sm_90a` only, and are not carried over to later architectures.
_ONLY_HERE = re.compile(r"\bwgmma\b|\bsetmaxnreg\b")
# As TVM's own call of the compiler has them: arithmetic on half and bfloat16 with the usual operators.
_FLAGS = (
    "-O3", "-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda",
    *(f"-U__CUDA_NO_{name}__" for name in (
        "HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS", "BFLOAT16_CONVERSIONS", "BFLOAT162_OPERATORS",
        "BFLOAT162_CONVERSIONS")),
)  # fmt: skip


# Where NVIDIA's packages put a toolkit: `cuda`, `cuda-13.0`.
_PACKAGES = Path("/usr/local")


@dataclass(frozen=True)
class KernelUse:
    """What one kernel takes, as ptxas reports it: registers a thread, bytes spilled, bytes of static shared memory."""

    name: str
    registers: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class Code:
    """Compiled code: the fat binary, the newest architectures' PTX in it or not, and what each kernel takes."""

    binary: bytes
    arch: str
    ptx: bool
    kernels: tuple[KernelUse, ...]


def find_nvcc() -> Path | None:
    """nvcc of `CUDA_HOME` or `CUDA_PATH`, on the path, or where NVIDIA's packages put it, of several the newest."""
    homes = [Path(home) for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    on_path = shutil.which("nvcc")
    places = [home / "bin" / "nvcc" for home in homes]
    places += [Path(on_path)] if on_path else []
    places += [home / "bin" / "nvcc" for home in _installed()]
    return next((place for place in places if os.access(place, os.X_OK) and place.is_file()), None)


def _installed() -> list[Path]:
    """The toolkits in their usual places: the one chosen by a link first, then by version, the newest first."""
    numbered = [path for path in _PACKAGES.glob("cuda-*") if re.fullmatch(r"cuda-[\d.]+", path.name)]
    numbered.sort(key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], reverse=True)
    return [_PACKAGES / "cuda", *numbered, Path("/opt/cuda")]


def compile_source(source: str, arch: str, *, fast_math: bool = False) -> Code:
    """Compiles `source` for `arch` ("sm_90").

    Raises:
        ModelError: there is no nvcc, or it refuses the source.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise ModelError("CUDA code needs nvcc to be compiled: install CUDA's toolkit, or name it in CUDA_HOME")
    number = arch.removeprefix("sm_")
    only_here = bool(_ONLY_HERE.search(source)) and number == "90"
    generate = (
        "arch=compute_90a,code=sm_90a" if only_here else f"arch=compute_{number},code=[sm_{number},compute_{number}]"
    )
    with tempfile.TemporaryDirectory(prefix="tvmopt-nvcc-") as folder:
        text, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        text.write_text(source)
        command = [str(nvcc), "-fatbin", *_FLAGS, "-gencode", generate, "-Xptxas", "-v", "-o", str(made), str(text)]
        if fast_math:
            command.append("--use_fast_math")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
            raise ModelError(f"nvcc refuses the code for {arch}: {(errors or ['no message'])[0][:250]}")
        return Code(made.read_bytes(), arch, not only_here, tuple(_uses(done.stderr + done.stdout)))


def _uses(report: str) -> list[KernelUse]:
    """What ptxas -v says of each kernel."""
    found = []
    for part in re.split(r"Compiling entry function '", report)[1:]:
        name = part.split("'", 1)[0]
        registers = re.search(r"Used (\d+) registers", part)
        spills = re.search(r"(\d+) bytes spill stores", part)
        shared = re.search(r"(\d+) bytes smem", part)
        found.append(
            KernelUse(
                name, *(int(match[1]) if match is not None else 0 for match in (registers, spills, shared))
            )
        )  # fmt: skip
    return found


if __name__ == "__main__":
    # For scripts: the path, or nothing and 1.
    found_here = find_nvcc()
    if found_here is None:
        raise SystemExit(1)
    print(found_here)
