"""What an artifact says of a GPU's code: made when it is written, checked and used when it is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tvmopt.errors import ArtifactError
from tvmopt.graph.gpu_compiler import compiling, digest
from tvmopt.machine import GpuMachine, detect_gpu
from tvmopt.machine_gpu import capability
from tvmopt.nvcc import find_nvcc
from tvmopt.runtime.gpu import CompiledForGpu, runtime_missing


def describe(compiled: CompiledForGpu) -> dict[str, Any]:
    """What the receiver of a GPU's code must have; `code` is where it stands in the file."""
    machine, code = compiled.machine, compiled.code
    assert isinstance(machine, GpuMachine)
    return {
        "arch": machine.arch,
        "ptx": code is not None and code.ptx,
        "code": None,
        "source_sha256": digest(compiled.source),
        "fast_math": bool(compiled.meta.get("fast_math")),
    }


def needs(metadata: dict[str, Any]) -> str | None:
    """In words, what a receiver of a GPU's artifact must have; None for one that runs on a CPU."""
    gpu = metadata.get("gpu")
    if gpu is None:
        return None
    if gpu["code"] is None:
        what = f"a GPU of {gpu['arch']}, and nvcc to compile its source when it is loaded"
    else:
        what = f"a GPU of {gpu['arch']}" + (" or later (PTX)" if gpu["ptx"] else ", no other")
    architecture = metadata["platform"]["architecture"]
    return f"{what}; a driver for CUDA 13, libcudart.so.13, TVM {metadata['versions']['tvm']}, Linux on {architecture}"


def check(path: Path, built: dict[str, Any]) -> None:
    """Raises ArtifactError where the GPU that is here cannot run code `built` for another, or none is here."""
    here = detect_gpu()
    if here is None:
        raise ArtifactError(f"{path} was built for a CUDA GPU ({built['arch']}), and there is none here")
    ours, theirs = capability(here.arch), capability(built["arch"])
    # A cubin runs on its own generation from its own revision on, PTX on all that came later, source on this one.
    same = ours // 10 == theirs // 10 and ours >= theirs
    if not (same or (ours > theirs and built["ptx"])) and built["code"] is not None:
        later = "and later ones" if built["ptx"] else "alone"
        raise ArtifactError(
            f"{path} was built for {built['arch']} {later}, and {here.name} is {here.arch}: export it with "
            f"--target cuda --arch {here.arch}"
        )
    missing = runtime_missing()
    if missing is None and built["code"] is None and find_nvcc() is None:
        missing = "it holds CUDA source, and there is no nvcc here to compile it: install CUDA's toolkit"
    if missing is not None:
        raise ArtifactError(f"{path} cannot be run: {missing}")


@contextlib.contextmanager
def compiling_of(path: Path, built: dict[str, Any] | None) -> Iterator[None]:
    """Has TVM, which compiles a GPU's source when it loads it, take the code in the file; else compile as was asked."""
    if built is None:
        yield
        return
    known = {}
    if built["code"] is not None:
        start, size = built["code"]
        with path.open("rb") as file:
            file.seek(start)
            known[built["source_sha256"]] = file.read(size)
    with compiling(fast_math=built["fast_math"], known=known):
        yield
