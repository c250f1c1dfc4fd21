"""A CUDA driver that has no device, but with which TVM's CUDA runtime loads: `tvm.compile` then does as on a GPU's
machine, where it has the source compiled at once; and an nvcc that writes down what it is called with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# What libtvm_runtime_cuda.so takes from the driver, and what finds devices.
_NO_DEVICE = 100
_DRIVER = f"int cuInit(unsigned flags) {{ return {_NO_DEVICE}; }}\n" + "".join(
    f"int {name}(void) {{ return {_NO_DEVICE}; }}\n"
    for name in (
        "cuDeviceGetCount", "cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString",
        "cuLaunchKernelEx", "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuTensorMapEncodeTiled",
    )
)  # fmt: skip
# As a fat binary begins, so that it is no text.
BINARY = b"\x50\xed\x55\xbamade by nvcc"
_NVCC = """#!/bin/sh
echo "$@" >>"$0.calls"
while [ $# -gt 1 ]; do
  if [ "$1" = -o ]; then printf 'P\\355U\\272made by nvcc' >"$2"; fi
  shift
done
"""


def compiler() -> str | None:
    """The C compiler that makes the driver."""
    return shutil.which("cc") or shutil.which("gcc")


def run(folder: Path, code: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs Python `code` with both, made in `folder`; gives how it ended, and nvcc's command lines."""
    source, nvcc = folder / "driver.c", folder / "cuda" / "bin" / "nvcc"
    source.write_text(_DRIVER)
    subprocess.run(
        [str(compiler()), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", source],
        check=True, capture_output=True,
    )  # fmt: skip
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(_NVCC)
    nvcc.chmod(0o755)
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths), "CUDA_HOME": str(folder / "cuda")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    calls = nvcc.with_name("nvcc.calls")
    return done, calls.read_text().splitlines() if calls.exists() else []
