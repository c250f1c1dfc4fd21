"""Packs TVM, and what the tests need beside torch, into one file for a GPU machine without a network (see pack.sh).

What a program never opens stays out: C++ headers and sources, type stubs, the packages' own tests. Most of the rest is
one library of 259 MB, TVM's compiler with LLVM in it, which the wheel has without debug symbols already; it takes 58
MB here. The filter for x86 turns its relative jumps into absolute addresses, all calls of one function into the same
bytes, and the dictionary is as large as the library. Other parameters of LZMA were tried and change half a percent.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import lzma
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

# What is packed: TVM and its requirements, what tvmopt's commands import, pytest with its own, and torchvision for the
# networks, of which the operators in C++ are left out: they fit one build of torch only, and no classifier uses them.
# torch's machine has torch and what torch requires; Triton comes with torch for CUDA. Not packed are xgboost, which
# only MetaSchedule's search needs, and scipy, without which bench compares no contenders (its JSON has all samples).
PACKED = (
    "apache-tvm", "apache-tvm-ffi", "ml_dtypes", "numpy", "typing_extensions", "psutil", "cloudpickle", "tornado",
    "rich", "Pygments", "markdown-it-py", "mdurl", "pytest", "pluggy", "iniconfig", "packaging", "torchvision",
    "pillow",
)  # fmt: skip

# Of a path inside site-packages.
LEFT_OUT = (
    "*.pyi", "*.h", "*.hpp", "*.cuh", "*.cc", "*.cpp", "*.c", "*.a", "*.inl", "*.pxd", "*.pyx", "*.pxi",
    "*__pycache__/*", "tvm/web/*",
    "tvm/3rdparty/*", "tvm/src/*", "tvm_ffi/3rdparty/*", "tvm_ffi/src/*",
    "numpy/*/tests/*", "numpy/tests/*", "numpy/_core/_simd.*", "numpy/f2py/*", "psutil/tests/*", "tornado/test/*",
    "torchvision/*.so", "torchvision.libs/*", "bin/*",
)  # fmt: skip

# The least common denominator of Linux machines that run today's CUDA.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")

FILTERS = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 256 << 20},
]


def is_packed(inside: str) -> bool:
    """Whether a file at this path of site-packages goes along."""
    return not inside.startswith("..") and not any(fnmatch(inside, pattern) for pattern in LEFT_OUT)


def installed(names: Sequence[str] = PACKED) -> dict[str, Path]:
    """Path inside site-packages -> file, of what is installed here.

    Raises:
        SystemExit: one of the packages is not.
    """
    found = {}
    for name in names:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise SystemExit(f"pack: {name} is not installed for {sys.executable}: pip install it first") from None
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            if is_packed(file.as_posix()) and path.is_file():
                found[file.as_posix()] = path
    return found


def downloaded(version: str, folder: Path, names: Sequence[str] = PACKED) -> dict[str, Path]:
    """The same of the same releases, for another Python than this one: pip fetches them into `folder`."""
    releases = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:",
         "--target", str(folder), "--python-version", version, *platforms, *releases],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no message"]
        raise SystemExit(f"pack: pip cannot fetch the packages for Python {version}: {lines[-1]}")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {inside: path for inside, path in files.items() if is_packed(inside)}


class Parts:
    """A file to write to, cut into `base.1`, `base.2`, ... of `size` bytes; `base` itself where one is enough."""

    def __init__(self, base: Path, size: int) -> None:
        self.paths: list[Path] = []
        self._base, self._size, self._left = base, size, 0
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> int:
        """Writes all of it."""
        rest = memoryview(data)
        while len(rest):
            if not self._left:
                self._next()
            assert self._file is not None
            self._file.write(rest[: self._left])
            rest, self._left = rest[self._left :], max(0, self._left - len(rest))
        return len(data)

    def _next(self) -> None:
        if self._file is not None:
            self._file.close()
        self.paths.append(self._base.with_name(f"{self._base.name}.{len(self.paths) + 1}"))
        self._file, self._left = self.paths[-1].open("wb"), self._size

    def close(self) -> list[Path]:
        """The files that are there now."""
        if self._file is not None:
            self._file.close()
        if len(self.paths) == 1:
            self.paths = [self.paths[0].replace(self._base)]
        return self.paths


def write(archive: Path, files: dict[str, Path], size: int) -> list[Path]:
    """Writes the archive, in parts of at most `size` bytes. Files of a kind stand together: they are alike."""

    def kind(inside: str) -> tuple[bool, str, str]:
        return ".so" not in inside, Path(inside).suffix, inside

    parts = Parts(archive, size)
    with (
        lzma.open(parts, "wb", format=lzma.FORMAT_XZ, filters=FILTERS) as stream,  # type: ignore[call-overload]
        tarfile.open(fileobj=stream, mode="w") as tar,
    ):
        for inside in sorted(files, key=kind):
            tar.add(files[inside], inside)
    return parts.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Packs, and says how to unpack."""
    parser = argparse.ArgumentParser(prog="bench/gpu/pack.sh", description="Packs TVM for a GPU machine.")
    parser.add_argument("archive", metavar="FILE.tar.xz", type=Path)
    parser.add_argument("--python-version", metavar="3.N", help="of the GPU machine, where it is not this one")
    parser.add_argument("--without", metavar="NAME,...", default="", help="packages that the GPU machine has already")
    parser.add_argument("--part", metavar="MIB", type=int, default=48, help="the largest file that gets there (48)")
    args = parser.parse_args(argv)
    without = [name for name in args.without.split(",") if name]
    if not args.archive.name.endswith(".tar.xz"):
        parser.error(f"{args.archive}: name a file that ends in .tar.xz")
    if not args.archive.absolute().parent.is_dir():
        parser.error(f"{args.archive}: there is no such directory")
    if unknown := sorted(set(without) - set(PACKED)):
        parser.error(f"--without {unknown[0]}: choose from {', '.join(PACKED)}")
    if args.part < 1:
        parser.error(f"--part {args.part}: at least 1")
    names = [name for name in PACKED if name not in without]
    with tempfile.TemporaryDirectory(prefix="tvmopt-pack-") as folder:
        version = args.python_version
        files = downloaded(version, Path(folder), names) if version else installed(names)
        parts = write(args.archive, files, args.part << 20)
    for path in parts:
        print(f"{path}: {path.stat().st_size:,} bytes")
    source = f"cat {args.archive.name}.* | tar xJ" if len(parts) > 1 else f"tar xf {args.archive.name}"
    print(f"there: mkdir DIR; {source} -C DIR; PYTHONPATH=DIR:CHECKOUT bench/gpu/run.sh check")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
