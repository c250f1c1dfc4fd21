"""Exported artifacts: a shared library with a description of itself behind it, read before anything is run.

    the ELF library as linked
    a GPU's machine code, if it is for one
    JSON metadata
    CRC-32 of all before (4 bytes) | length of the JSON (8) | magic (8), little-endian

The linker and the loader ignore what stands behind an ELF file's last section; so the file is an ordinary library,
and its description can be read without loading it: code for a CPU that is not this one is refused, not executed.
An artifact is a program: load only those you would run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt import __version__
from tvmopt.errors import ArtifactError, OutputError, one_line
from tvmopt.machine import AnyMachine, available_cores, from_facts
from tvmopt.runtime import artifact_gpu
from tvmopt.runtime.executable import Compiled
from tvmopt.runtime.gpu import CompiledForGpu
from tvmopt.runtime.resident import page_out
from tvmopt.runtime.signature import Signature

if TYPE_CHECKING:
    import tvm

# 3: with a GPU's code behind the library; 2: the library may hold a network as one function; 1: the virtual machine
# runs it.
FORMAT_VERSION = 3
_ONE_FUNCTION, _VIRTUAL_MACHINE = 2, 1
_MAGIC = b"TVMOPT\x00\x01"
_FOOTER = struct.Struct("<IQ8s")
_CHUNK = 1 << 20
_SCOPE_LINE = re.compile(rb"Warning: Scope (Saving|Loaded):")
# Features that operating systems and hypervisors switch off at will and that no compiler emits by itself.
_NEVER_EMITTED = {
    *("clflushopt", "cldemote", "clwb", "clzero", "enqcmd", "fsgsbase", "fxsr", "hreset", "invpcid", "kl", "lwp"),
    *("movdir64b", "movdiri", "mwaitx", "pconfig", "pku", "prefetchi", "ptwrite", "rdpid", "rdpru", "rdrnd", "rdseed"),
    *("rtm", "serialize", "sgx", "shstk", "tsxldtrk", "uintr", "usermsr", "waitpkg", "wbnoinvd", "widekl"),
    *("xsave", "xsavec", "xsaveopt", "xsaves"),
}


def export(compiled: Compiled, path: str | PathLike[str]) -> Path:
    """Writes `compiled` to `path` (NAME.so) in one step, replacing what is there; returns the path.

    Raises:
        OutputError: the file cannot be written, or does not end in .so.
        ArtifactError: no C compiler to link it with.
    """
    path = Path(path)
    if path.suffix != ".so":
        raise OutputError(f"{path}: an artifact is a shared library; give it a name that ends in .so")
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no directory {path.parent}")
    try:
        # Beside its place, so that it can be moved there in one step: a library that is replaced in place crashes
        # the processes that have it loaded.
        with tempfile.TemporaryDirectory(prefix=".tvmopt-", dir=path.parent) as folder:
            built = Path(folder) / path.name
            _write(compiled, built)
            os.replace(built, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def size_bytes(compiled: Compiled) -> int:
    """The size of the file that `export` writes, in bytes."""
    if compiled._path is not None:
        return compiled._path.stat().st_size
    with tempfile.TemporaryDirectory(prefix="tvmopt-") as folder:
        built = Path(folder) / "model.so"
        _write(compiled, built)
        return built.stat().st_size


def load(path: str | PathLike[str], *, threads: int | None = None) -> Compiled:
    """The compiled model in the artifact at `path`, after checking that this machine can run it.

    threads: how many to run on; by default as many as it was built for, or as there are CPUs if these are fewer.

    Raises:
        ArtifactError: no such file, not an artifact, damaged, or built for another machine or another TVM.
    """
    path = Path(path)
    metadata = read_metadata(path)
    import tvm

    try:
        check_machine(path, metadata)
        if metadata["versions"]["tvm"] != tvm.__version__:
            raise ArtifactError(
                f"{path} was built with TVM {metadata['versions']['tvm']} and this is {tvm.__version__}: export it anew"
            )
        meta = dict(metadata["meta"])
        meta["machine"] = _machine(meta.get("machine"))
        meta["threads"] = threads or min(int(metadata["threads"]), available_cores())
        signature = Signature.from_json(metadata["signature"])
        # Not tvm.runtime.load_module, which goes by the file's name.
        load_library = tvm.get_global_func("ffi.Module.load_from_file.so")
        kind: type[Compiled] = CompiledForGpu if "gpu" in metadata else Compiled
        with _without_scopes(), artifact_gpu.compiling_of(path, metadata.get("gpu")):
            loaded = kind._from_library(load_library(str(path.resolve()), "so"), signature, meta, path)
        page_out(path.resolve())
        return loaded
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OSError) as error:
        raise ArtifactError(f"{path} cannot be loaded ({one_line(error, 150)}): export it anew") from error


def read_metadata(path: str | PathLike[str]) -> dict[str, Any]:
    """The description behind the library at `path`; nothing of the file is executed.

    Raises:
        ArtifactError: no such file, not an artifact, damaged, or of a later format.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < _FOOTER.size:
                raise ArtifactError(f"{path} is not a tvmopt artifact, or only part of one: export it anew")
            file.seek(size - _FOOTER.size)
            checksum, length, magic = _FOOTER.unpack(file.read(_FOOTER.size))
            if magic != _MAGIC or length > size - _FOOTER.size:
                raise ArtifactError(f"{path} is not a tvmopt artifact, or only part of one: export it anew")
            file.seek(size - _FOOTER.size - length)
            text = file.read(length)
            file.seek(0)
            found, left = 0, size - _FOOTER.size
            while left:
                chunk = file.read(min(_CHUNK, left))
                found, left = zlib.crc32(chunk, found), left - len(chunk)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; tvmopt.export or Compiled.export writes artifacts") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    if found != checksum:
        raise ArtifactError(f"{path} is damaged (its checksum does not match): copy or export it anew")
    metadata: dict[str, Any] = json.loads(text)
    if metadata["format_version"] > FORMAT_VERSION:
        raise ArtifactError(f"{path} has format {metadata['format_version']}, newer than this tvmopt: update tvmopt")
    return metadata


def check_machine(path: Path, metadata: dict[str, Any]) -> None:
    """Raises ArtifactError where this machine cannot execute the artifact described by `metadata`."""
    built_for = f"{path} was built for {metadata['platform']['system']} on {metadata['platform']['architecture']}"
    if metadata["platform"] != _platform():
        here = _platform()
        raise ArtifactError(f"{built_for}, and this is {here['system']} on {here['architecture']}: export it here")
    here_features = host_features()
    missing = [name for name in metadata["cpu_features"] if not here_features.get(name, False)]
    if missing:
        raise ArtifactError(
            f"{path} was built for {metadata['cpu']} and needs {', '.join(missing)}, which this CPU does not have: "
            "export it here, or build it with a --target whose mcpu both have"
        )
    if "gpu" in metadata:
        artifact_gpu.check(path, metadata["gpu"])


def host_features() -> dict[str, bool]:
    """The instruction-set extensions of this CPU by LLVM's names, as far as the operating system lets them be used."""
    import tvm

    return {str(name): bool(on) for name, on in tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")().items()}


def needed_features(target: tvm.target.Target) -> list[str]:
    """Those extensions that code compiled for `target` may use."""
    from tvm.target.codegen import llvm_get_cpu_features

    # LLVM's list also holds tuning hints ("slow-3ops-lea"); a feature is what a CPU can be asked for.
    detectable = set(host_features()) - _NEVER_EMITTED
    return sorted(detectable.intersection(str(name) for name in llvm_get_cpu_features(target)))


def _write(compiled: Compiled, path: Path) -> None:
    """The library and its description, at `path`."""
    if compiled.executable is None:
        assert compiled._path is not None
        shutil.copyfile(compiled._path, path)
        return
    from tvm.support import cc

    if cc.get_cc() is None:
        raise ArtifactError("linking an artifact takes a C compiler: install gcc or clang, or name one in CC")
    described = _describe(compiled)
    try:
        with _without_scopes():
            compiled.executable.export_library(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{cc.get_cc()} cannot link the artifact: {_linker_message(error)}") from error
    checksum = 0
    with path.open("r+b") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
        if isinstance(compiled, CompiledForGpu) and compiled.code is not None:
            described["gpu"]["code"] = [file.tell(), len(compiled.code.binary)]
            checksum = zlib.crc32(compiled.code.binary, checksum)
            file.write(compiled.code.binary)
        text = json.dumps(described, sort_keys=True).encode()
        file.write(text)
        file.write(_FOOTER.pack(zlib.crc32(text, checksum), len(text), _MAGIC))


def _describe(compiled: Compiled) -> dict[str, Any]:
    import torch
    import tvm

    meta = {name: _plain(value) for name, value in compiled.meta.items()}
    target = tvm.target.Target(json.loads(compiled.target)) if compiled.target else tvm.target.Target("llvm")
    version = _VIRTUAL_MACHINE if compiled.meta["workspace_bytes"] is None else _ONE_FUNCTION
    gpu = {}
    if isinstance(compiled, CompiledForGpu):
        version, gpu = FORMAT_VERSION, {"gpu": artifact_gpu.describe(compiled)}
        target = target.host
    return {
        **gpu,
        # What an older tvmopt can load says so.
        "format_version": version,
        "meta": meta,
        "target": compiled.target,
        "cpu": str(target.attrs.get("mcpu", "generic")),
        "cpu_features": needed_features(target),
        "platform": _platform(),
        "threads": compiled.threads,
        "signature": compiled.signature.to_json(),
        "versions": {"tvmopt": __version__, "tvm": tvm.__version__, "torch": torch.__version__},
    }


def _plain(value: Any) -> Any:
    """`value` as JSON: by its own `to_json`, by its fields, or as text."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=str))


def _machine(fields: Any) -> AnyMachine | None:
    return from_facts(fields) if isinstance(fields, dict) else None


def _platform() -> dict[str, str]:
    return {"system": platform.system(), "architecture": platform.machine()}


def _linker_message(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
    return (lines or [one_line(error)])[-1][:200]


@contextlib.contextmanager
def _without_scopes() -> Iterator[None]:
    """Keeps TVM's "Scope Saving:" and "Scope Loaded:", a line for each constant, off standard error.

    TVM 0.27 writes them as warnings and has no setting against it. What else is written meanwhile comes after.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as buffer:
            os.dup2(buffer.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
                buffer.seek(0)
                for line in buffer:
                    if not _SCOPE_LINE.search(line):
                        os.write(2, line)
    finally:
        os.close(kept)
