"""What TVM's runtime is given where it would compile CUDA source: nvcc's code, as it was asked for, made once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tvm
import tvm_ffi

from tests.cuda import fake_driver
from tvmopt.errors import ArtifactError
from tvmopt.graph import gpu_compiler, gpu_pipeline
from tvmopt.graph.gpu_compiler import compiling, digest, provide
from tvmopt.machine import named_gpu
from tvmopt.nvcc import Code
from tvmopt.runtime import artifact_gpu


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """What nvcc was called with, by way of a stand-in: source, architecture, fast-math."""
    made: list[tuple[str, str, bool]] = []

    def compile_source(source: str, arch: str, *, fast_math: bool = False) -> Code:
        made.append((source, arch, fast_math))
        return Code(f"code {len(made)}".encode(), arch, True, ())

    monkeypatch.setattr(gpu_compiler, "compile_source", compile_source)
    monkeypatch.setattr(gpu_compiler, "_provided", {})
    return made


def as_tvm(source: str) -> bytes:
    """What the runtime gets for a source."""
    return bytes(tvm_ffi.get_global_func(gpu_compiler.CALLBACK)(source))


def test_cuda_compiling_is_by_nvcc_as_asked(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = dataclasses.replace(named_gpu("sm_86"), assumed=())
    monkeypatch.setattr(gpu_compiler, "detect_gpu", lambda: here)
    made: dict[str, Code] = {}
    with compiling("sm_90", fast_math=True, made=made):
        assert as_tvm("a") == b"code 1"
        with compiling("sm_80"):
            as_tvm("b")
        as_tvm("c")
    as_tvm("d")
    assert calls == [("a", "sm_90", True), ("b", "sm_80", False), ("c", "sm_90", True), ("d", "sm_86", False)]
    assert list(made) == [digest("a"), digest("c")]


def test_cuda_code_that_is_there_is_not_compiled(calls: Any) -> None:
    provide(digest("a"), b"from elsewhere")
    with compiling("sm_80", known={digest("b"): b"from the file"}):
        assert (as_tvm("a"), as_tvm("b"), as_tvm("c")) == (b"from elsewhere", b"from the file", b"code 1")
    # Another artifact's code of the same source, made with other options, is not this one's.
    with compiling("sm_80"):
        assert as_tvm("b") == b"code 2"


def test_cuda_compile_module_has_it_registered_in_time(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm, "compile", lambda *_, **__: as_tvm("source"))
    monkeypatch.setattr(gpu_compiler, "_registered", [])
    tvm_ffi.register_global_func(gpu_compiler.CALLBACK, lambda source: b"TVM's own", override=True)
    made: dict[str, Code] = {}
    found = gpu_pipeline.compile_module(tvm.IRModule({}), named_gpu("sm_89").target(), fast_math=True, made=made)
    assert found == made[digest("source")].binary and calls == [("source", "sm_89", True)]


def test_cuda_source_in_an_artifact_is_compiled_as_it_was_built(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = dataclasses.replace(named_gpu("sm_86"), assumed=())
    monkeypatch.setattr(gpu_compiler, "detect_gpu", lambda: here)
    built = {"arch": "sm_80", "code": None, "fast_math": True, "source_sha256": digest("a"), "ptx": False}
    with artifact_gpu.compiling_of(Path("model.so"), built):
        as_tvm("a")
    assert calls == [("a", "sm_86", True)]


def test_cuda_source_in_an_artifact_needs_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    here = dataclasses.replace(named_gpu("sm_86"), assumed=())
    monkeypatch.setattr(artifact_gpu, "detect_gpu", lambda: here)
    monkeypatch.setattr(artifact_gpu, "runtime_missing", lambda: None)
    monkeypatch.setattr(artifact_gpu, "find_nvcc", lambda: None)
    built = {"arch": "sm_86", "code": None, "fast_math": False, "source_sha256": digest("a"), "ptx": False}
    with pytest.raises(ArtifactError, match="no nvcc here"):
        artifact_gpu.check(Path("model.so"), built)


_BUILDS = """
import sys, tvm
if not tvm.runtime.enabled("cuda"):
    sys.exit(77)
import torch
from tvmopt import nvcc
from tvmopt.errors import ModelError
from tvmopt.graph import gpu_compiler
from tvmopt.machine import named_gpu
from tvmopt.model import from_module
from tvmopt.variants import build_variant
model = from_module(torch.nn.Linear(64, 64), (torch.randn(32, 64),))
for fast_math in (False, True):
    compiled = build_variant(model, "manual", named_gpu("sm_80"), fast_math=fast_math)
    path = compiled.export("FOLDER/model.so")
    assert compiled.code.binary in path.read_bytes() and compiled.code.ptx
nvcc.find_nvcc = lambda: None
try:
    build_variant(model, "manual", named_gpu("sm_80"))
except ModelError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(fake_driver.compiler() is None, reason="no C compiler")
def test_cuda_where_the_runtime_loads_nvcc_is_called_once_a_build(tmp_path: Path) -> None:
    done, commands = fake_driver.run(tmp_path, _BUILDS.replace("FOLDER", str(tmp_path)))
    if done.returncode == 77:
        pytest.skip("TVM's CUDA runtime does not load, for want of libcudart.so.13")
    assert done.returncode == 0, done.stderr
    exact, fast = commands
    assert "arch=compute_80,code=[sm_80,compute_80]" in exact
    assert "fast_math" not in exact and "--use_fast_math" in fast
    assert "CUDA code needs nvcc" in done.stdout and done.stdout.count("\n") == 1
