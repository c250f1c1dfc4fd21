"""The compiler that TVM's runtime calls for CUDA source: nvcc as we call it, and no source is compiled twice.

Where the CUDA runtime loads, TVM has the source compiled inside `tvm.compile`; elsewhere it ships the source, which is
compiled where it is loaded. Both through one global function, which is given the source and nothing else: for which
architecture and how stands round the call, in `compiling`. TVM's own function would call NVRTC: always with fast-math,
and for sm_90, which has no `wgmma`, where sm_90a is meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from tvmopt.errors import TargetError
from tvmopt.machine_gpu import detect_gpu
from tvmopt.nvcc import Code, compile_source

CALLBACK = "tvm_callback_cuda_compile"


@dataclass(frozen=True)
class _Wanted:
    """How source is compiled: for `arch`, None being the GPU that is here; `known` is code by its source's digest."""

    arch: str | None = None
    fast_math: bool = False
    known: Mapping[str, bytes] = field(default_factory=dict)
    made: dict[str, Code] = field(default_factory=dict)


_wanted: ContextVar[_Wanted] = ContextVar("wanted")
# What another machine compiled for this one, by its source's digest.
_provided: dict[str, bytes] = {}
_registered: list[bool] = []


def digest(source: str) -> str:
    """What code is found by: the SHA-256 of its source."""
    return hashlib.sha256(source.encode()).hexdigest()


def provide(source_digest: str, binary: bytes) -> None:
    """Has TVM's runtime take `binary` where it would compile the source of that digest."""
    _provided[source_digest] = binary
    use_own_compiler()


@contextmanager
def compiling(
    arch: str | None = None, *, fast_math: bool = False, known: Mapping[str, bytes] | None = None,
    made: dict[str, Code] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Inside of it, CUDA source becomes code for `arch`, or that in `known` (by the source's digest).

    What nvcc makes meanwhile is noted in `made`, by the source's digest.
    """
    use_own_compiler()
    before = _wanted.set(_Wanted(arch, fast_math, known or {}, made if made is not None else {}))
    try:
        yield
    finally:
        _wanted.reset(before)


def use_own_compiler() -> None:
    """Has TVM's runtime compile CUDA source, wherever it does so in this process, as we do."""
    import tvm_ffi
    from tvm.support import nvcc  # noqa: F401  (registers TVM's own, which ours replaces)

    if not _registered:
        tvm_ffi.register_global_func(CALLBACK, _compile, override=True)
        _registered.append(True)


def _compile(source: Any) -> bytes:
    """TVM's callback: the code of `source`."""
    text = source.decode() if isinstance(source, (bytes, bytearray)) else str(source)
    key, wanted = digest(text), _wanted.get(_Wanted())
    for there in (wanted.known, _provided):
        if key in there:
            return there[key]
    code = compile_source(text, wanted.arch or _arch_here(), fast_math=wanted.fast_math)
    wanted.made[key] = code
    return code.binary


def _arch_here() -> str:
    gpu = detect_gpu()
    if gpu is None:
        raise TargetError("CUDA code can be compiled for the GPU that is here only, and there is none")
    return gpu.arch
