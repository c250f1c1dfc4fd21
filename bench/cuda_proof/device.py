"""What stands in for a GPU: nvcc and a disassembler, to see what machine code a schedule becomes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from tvmopt.nvcc import find_nvcc

NVCC = find_nvcc()


def _disassembler() -> str | None:
    if found := shutil.which("nvdisasm"):
        return found
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return next((str(p) for place in places for p in Path(place).glob("*/bin/nvdisasm")), None)


NVDISASM = _disassembler()


def nvcc_version() -> str:
    """As in "13.0"."""
    assert NVCC is not None
    said = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", said)
    return found[1] if found else "unknown"


@dataclass(frozen=True)
class MachineCode:
    """Of all kernels of a source: the most registers, bytes spilled, bytes of static shared memory; instructions.

    `flushes`: whether the source itself asks for denormal numbers to be taken for zero, as fast-math does; looked at
    only where instructions do so that no exact division explains.
    """

    registers: int
    spilled: int
    shared: int
    instructions: Counter[str]
    flushes: bool = True

    @property
    def flushing(self) -> list[str]:
        """The instructions that take denormal numbers for zero."""
        return [name for name in self.instructions if ".FTZ" in name]

    def has(self, prefix: str) -> bool:
        """Whether an instruction of this name (or beginning: `LDGSTS.E`) is there."""
        return any(name == prefix or name.startswith(prefix + ".") for name in self.instructions)


def assemble(source: str, arch: str) -> MachineCode:
    """CUDA source through nvcc, without fast-math, and its disassembly."""
    assert NVCC is not None and NVDISASM is not None
    with tempfile.TemporaryDirectory() as place:
        file, cubin = Path(place) / "kernel.cu", Path(place) / "kernel.cubin"
        file.write_text(source)
        run = subprocess.run(
            [NVCC, f"-arch={arch}", "-cubin", "-Xptxas", "-v", "-w", "-o", str(cubin), str(file)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        said = run.stdout + run.stderr
        sass = subprocess.run([NVDISASM, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    registers = [int(x) for x in re.findall(r"Used (\d+) registers", said)]
    spills = [int(x) for x in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    assert registers and spills, said
    shared = [int(x) for x in re.findall(r"(\d+) bytes smem", said)]
    names = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.MULTILINE)
    code = MachineCode(max(registers), sum(spills), max(shared, default=0), Counter(names))
    if not code.flushing or code.has("FCHK"):
        return code
    # The exact expf itself is made of this one.
    text = ptx(source, arch).replace("ex2.approx.ftz.f32", "")
    return replace(code, flushes=".ftz" in text)


def ptx(source: str, arch: str) -> str:
    """CUDA source as PTX."""
    assert NVCC is not None
    run = subprocess.run(
        [NVCC, f"-arch={arch}", "-ptx", "-w", "-x", "cu", "-o", "-", "-"], input=source, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout
