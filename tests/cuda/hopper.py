"""Runs a kernel that uses Hopper's instructions on the CPU: the generated CUDA, its instructions replaced (hopper.h).

It shows wrong indices, descriptors, swizzles and bounds, and barriers that nobody arrives at, as far as the PTX ISA is
read rightly there. What it cannot show: races, what asynchronous units see of memory and when, and speed.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import tvm

from bench.cuda_proof.device import NVCC
from tvmopt.graph import gpu_pipeline
from tvmopt.machine import named_gpu

HERE = Path(__file__).parent
GXX = shutil.which("g++")
# Elements before and after the output, which nothing may write.
GUARD = 4096
_HELPER = re.compile(r"^__forceinline__ __device__ (?P<head>[\w ]+ \w+\((?P<parameters>[^)]*)\)) \{\n(?P<body>.*?)^\}",
                     re.MULTILINE | re.DOTALL)  # fmt: skip


def headers() -> Path | None:
    """CUDA's headers, which have fp16 and bf16 for the host too."""
    if NVCC is None:
        return None
    dry = subprocess.run([NVCC, "-dryrun", "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False)
    found = re.search(r'INCLUDES="?-I([^"\s]+)', dry.stderr)
    return Path(found[1]) if found and (Path(found[1]) / "cuda_fp16.h").is_file() else None


def _replaced(helper: re.Match[str]) -> str:
    """A helper that TVM generates for an instruction, as a call of what stands in for it."""
    body = helper["body"]
    names = [p.split()[-1].lstrip("&*") for p in helper["parameters"].split(",") if p.strip()]
    listed = ", ".join(names)
    if found := re.search(r"mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(\w+)\.\w+ .*, 1, 1, (\d), (\d);", body):
        sums = ", ".join(f"&{name}" for name in names[:-3])
        kind = {"f16": "half", "bf16": "nv_bfloat16"}[found[2]]
        call = f"hopper::multiply<{kind}>({found[1]}, {{{sums}}}, {', '.join(names[-3:])}, {found[3]}, {found[4]});"
    elif found := re.search(r"wgmma\.wait_group\.sync\.aligned (\d)", body):
        call = f"hopper::wait_group({found[1]});"
    else:
        calls = {
            "mbarrier.init": f"hopper::init({listed});",
            "mbarrier.arrive.expect_tx": f"hopper::arrive({names[0]}, 1, {names[-1]});" if names else "",
            "mbarrier.arrive.shared": f"hopper::arrive({listed});",
            "mbarrier.try_wait.parity": f"hopper::wait({listed});",
            "cp.async.bulk.tensor.2d": f"hopper::copy({listed});",
            "wgmma.commit_group": "hopper::commit();",
            "wgmma.fence": "",
            "fence.proxy.async": "",
            "setmaxnreg": "",
            "__syncthreads": "hopper::sync();",
            "return __cvta_generic_to_shared": f"return hopper::address({listed});",
        }
        matching = [text for name, text in calls.items() if name in body]
        if not matching:
            assert "asm" not in body, f"nothing stands in for {body}"
            return helper[0]
        call = matching[0]
    return f"static {helper['head']} {{ {call} }}"


def host_source(source: str, script: str) -> str:
    """C++ of CUDA source with one kernel, and of the TIRx it was made from.

    Its `run(void** arguments)` returns what went wrong.
    """
    text = _HELPER.sub(_replaced, source).replace("__cvta_generic_to_shared", "hopper::address")
    text = re.sub(r"extern __shared__ \S+ uchar (\w+)\[\];", r"unsigned char* \1 = hopper::shared;", text)
    signature = re.search(r"__launch_bounds__\((\d+)\) (\w+)\(([^)]*)\) \{", text)
    grid = re.search(r"T\.cta_id\(\[(\d+), (\d+)\]\)", script)
    assert signature is not None and grid is not None
    passed = []
    for number, parameter in enumerate(signature[3].split(", ")):
        kind = re.sub(r"const|__grid_constant__|__restrict__|\w+$", "", parameter).strip()
        passed.append(f"{'*(CUtensorMap*)' if kind == 'CUtensorMap' else f'({kind})'}arguments[{number}]")
    call = f"[=] {{ {signature[2]}({', '.join(passed)}); }}"
    return (
        f'#include "{HERE / "hopper.h"}"\n#define __grid_constant__\n#define __launch_bounds__(n)\n{text}\n'
        f'extern "C" const char* run(void** arguments) {{\n'
        f"  return hopper::launch({grid[1]}, {grid[2]}, {signature[1]}, {call});\n}}\n"
    )


def run(func: tvm.tirx.PrimFunc, inputs: list[np.ndarray]) -> np.ndarray:
    """What `func`, written in TIRx, writes to its last parameter, as fp32 or as bits of 16.

    The other parameters are `inputs`, of 16 bits an element.
    """
    target = named_gpu("sm_90").target()
    built = gpu_pipeline.compile_module(tvm.IRModule({"main": func}), target)
    source = built.mod.imports[0].inspect_source()
    script = func.script()
    # All but its middle is the guard. NaN is also what nothing writes.
    output = func.params[-1]
    shape = [int(size) for size in output.shape]
    nan = np.array(np.nan, np.float32) if str(output.dtype) == "float32" else np.array(0x7FFF, np.uint16)
    whole = np.full(int(np.prod(shape)) + 2 * GUARD, nan, nan.dtype)
    arrays = {p.name: array for p, array in zip(func.params[:-1], inputs, strict=True)}
    arrays[output.name] = whole[GUARD:-GUARD]
    maps = {}
    pattern = r"T\.tensormap_encode_tiled\((\w+), (\w+)\.data, (\d+), (\d+), (\d+), (\d+), (\d+), 1, 1,.*swizzle=(\d)"
    for name, buffer, *numbers in re.findall(pattern, script):
        inner, outer, stride, *box = map(int, numbers)
        assert stride % 16 == 0 and max(box[:2]) <= 256
        packed = np.array([arrays[buffer].ctypes.data, inner, outer, stride], np.int64).tobytes()
        maps[name] = np.frombuffer((packed + np.array(box, np.int32).tobytes()).ljust(128, b"\0"), np.uint8).copy()
    names = [p.split()[-1] for p in re.search(r"__launch_bounds__\(\d+\) \w+\(([^)]*)\)", source)[1].split(", ")]  # type: ignore[index]
    found = [maps[name] if name in maps else arrays[name.removesuffix("_ptr")] for name in names]
    with tempfile.TemporaryDirectory() as place:
        text, library = Path(place) / "kernel.cpp", Path(place) / "kernel.so"
        text.write_text(host_source(source, script))
        done = subprocess.run(
            [str(GXX), "-O2", "-w", "-std=c++20", "-fno-strict-aliasing", "-shared", "-fPIC", "-pthread",
             f"-I{headers()}", "-o", str(library), str(text)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[:3000]
        arguments = (ctypes.c_void_p * len(found))(*(array.ctypes.data for array in found))
        call = ctypes.CDLL(str(library)).run
        call.restype = ctypes.c_char_p
        failure = call(arguments)
        assert failure is None, failure
    for zone in (whole[:GUARD], whole[-GUARD:]):
        assert zone.tobytes() == np.full(GUARD, nan, nan.dtype).tobytes(), "written outside of the output"
    return arrays[output.name].reshape(shape)
