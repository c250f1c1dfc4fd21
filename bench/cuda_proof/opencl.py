"""Runs a GPU's schedule on the CPU: built for OpenCL, through PoCL, with guard zones round every buffer."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.s_tir import SBlock, Schedule
from tvm_ffi import structural_walk

# Elements before and after each buffer: a tile of the largest rule away from it is still seen.
GUARD = 4096


@cache
def queue() -> Any | None:
    """A queue of PoCL's CPU device; None where pyopencl or PoCL is missing."""
    os.environ.setdefault("OCL_ICD_VENDORS", "/etc/OpenCL/vendors")
    try:
        import pyopencl as cl

        platforms = cl.get_platforms()
    except Exception:
        return None
    for platform in platforms:
        if "Portable Computing Language" in platform.name or "PoCL" in platform.name:
            return cl.CommandQueue(cl.Context(platform.get_devices()))
    return None


def device() -> Any:
    """The queue of a machine that is known to have one."""
    found = queue()
    assert found is not None, "no PoCL or no pyopencl"
    return found


def version() -> str:
    """PoCL's, as in "3.1"."""
    found = re.search(r"(?:PoCL|pocl) ([\d.]+)", str(device().context.devices[0].platform.version))
    return found[1] if found else "unknown"


def has(dtype: str) -> bool:
    """Whether PoCL's device computes in `dtype`: half precision is an extension, which older ones have not."""
    if dtype == "float16":
        return "cl_khr_fp16" in str(device().context.devices[0].extensions).split()
    return dtype != "bfloat16"


class Guarded:
    """A buffer on the device in the middle of a larger one, whose ends hold a pattern."""

    def __init__(self, array: np.ndarray) -> None:
        import pyopencl as cl

        self.shape, self.dtype, self.size = array.shape, array.dtype, array.size
        # NaN where it has one: what reads it shows in the result.
        self._pattern = np.array(np.nan if array.dtype.kind == "f" else 0x5A, array.dtype)
        whole = np.full(array.size + 2 * GUARD, self._pattern, array.dtype)
        whole[GUARD : GUARD + array.size] = array.ravel()
        flags = cl.mem_flags
        self._whole = cl.Buffer(device().context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=whole)
        self.inner = self._whole.get_sub_region(GUARD * array.itemsize, max(array.nbytes, 1))

    def read(self) -> np.ndarray:
        """Its content; asserts that the guard zones are as they were."""
        import pyopencl as cl

        whole = np.empty(self.size + 2 * GUARD, self.dtype)
        cl.enqueue_copy(device(), whole, self._whole)
        for zone in (whole[:GUARD], whole[GUARD + self.size :]):
            assert np.array_equal(zone, np.full(GUARD, self._pattern, self.dtype), equal_nan=zone.dtype.kind == "f"), (
                "written outside of a buffer"
            )
        return whole[GUARD : GUARD + self.size].reshape(self.shape)


def run(schedule: Schedule, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """All parameters of the scheduled function after it ran: `inputs` are the first of them, the others its outputs."""
    import pyopencl as cl

    func = schedule.mod["main"]
    shapes = {f"{p.name}": (tuple(int(d) for d in p.shape), str(p.dtype)) for p in func.params}
    for name, shape, dtype in _intermediate(func):
        shapes[name] = shape, dtype
    arrays = dict(zip(shapes, inputs, strict=False))
    for name, (shape, dtype) in shapes.items():
        # What a kernel does not write stays NaN.
        arrays.setdefault(name, np.full(shape, np.nan if dtype.startswith("float") else 0x5A, dtype))
    buffers = {name: Guarded(np.ascontiguousarray(array)) for name, array in arrays.items()}
    source = tvm.compile(schedule.mod, target=tvm.target.Target("opencl")).mod.imports[0].inspect_source()
    program = cl.Program(device().context, source).build()
    signatures = re.findall(r"__kernel void (\w+)\(([^)]*)\)\s*\{", source)
    launches = _launches(func)
    assert len(signatures) == len(launches), f"{len(signatures)} kernels, {len(launches)} launches"
    for (kernel, parameters), (blocks, threads) in zip(signatures, launches, strict=True):
        names = [re.sub(r"_ptr$", "", p.split()[-1].lstrip("*")) for p in parameters.split(",")]
        size = tuple(b * t for b, t in zip(blocks, threads, strict=True))
        getattr(program, kernel)(device(), size, threads, *(buffers[name].inner for name in names))
    device().finish()
    return [buffers[f"{p.name}"].read() for p in func.params]


def _intermediate(func: tirx.PrimFunc) -> list[tuple[str, tuple[int, ...], str]]:
    """The buffers of global memory that the function itself allocates."""
    blocks: list[SBlock] = []
    structural_walk(func.body, (SBlock, blocks.append))
    found = [buffer for block in blocks for buffer in block.alloc_buffers if buffer.scope() == "global"]
    return [(b.name, tuple(int(d) for d in b.shape), str(b.dtype)) for b in found]


def _launches(func: tirx.PrimFunc) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Grid and block of every kernel of the function, each (x, y, z), in the order they run."""
    body = func.body.block.body
    launches = []
    for statement in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        extents: dict[str, int] = {}

        def visit(loop: tirx.For, extents: dict[str, int] = extents) -> None:
            if loop.thread_binding is not None:
                extents[str(loop.thread_binding.thread_tag)] = int(loop.extent)

        structural_walk(statement, (tirx.For, visit))
        blocks = tuple(extents.get(f"blockIdx.{axis}", 1) for axis in "xyz")
        launches.append((blocks, tuple(extents.get(f"threadIdx.{axis}", 1) for axis in "xyz")))
    return launches
