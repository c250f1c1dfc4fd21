"""`python -m tvmopt.export`: one file to load and run, made from a model."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tvmopt.errors import OutputError
from tvmopt.options import BuildOptions, add_build_options, build_options, make_parser, run

_VARIANTS = ("original", "manual", "auto")


def export_model(spec: str | None, path: Path, *, variant: str = "auto", options: BuildOptions | None = None) -> int:
    """Builds the model of `spec` (None: digits_cnn) and writes it to `path`; returns the file's size in bytes.

    Raises:
        OutputError: a path that cannot be written; found before the build where possible.
        TvmoptError: what loading and building the model raise.
    """
    options = options or BuildOptions()
    _check_writable(path)
    machine = options.machine()
    from tvmopt.runtime.threads import use_threads
    from tvmopt.variants import build_by_options

    use_threads(machine.cores)
    compiled = build_by_options(options.load(spec), variant, machine, options)
    compiled.export(path)
    return path.stat().st_size


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "export",
        "tvmopt.export",
        "Builds a model and writes it as one shared library with its description, to be loaded with tvmopt.load(FILE). "
        "Loading checks that the CPU, or the GPU, has what it was built for.",
        ["digits_cnn -o digits.so", "torchvision:resnet18 --variant manual --batch 8 -o resnet18.so",
         "torchvision:resnet18 --target cuda --arch sm_90 --dtype float16 -o resnet18.so"],
    )
    made.add_argument("model", nargs="?", metavar="MODEL", default="digits_cnn",
                      help="digits_cnn, torchvision:NAME, FILE.py:FACTORY or MODEL.pt2")  # fmt: skip
    made.add_argument("--variant", choices=_VARIANTS, default="auto", help="how it is scheduled")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.so", help="the file to write")
    add_build_options(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Builds, writes, and says what was written."""
    args = parser().parse_args(argv)
    options = build_options(args)
    start = time.perf_counter()
    size = export_model(args.model, args.output, variant=args.variant, options=options)
    seconds = time.perf_counter() - start
    from tvmopt.runtime.artifact import needs, read_metadata

    needed = needs(read_metadata(args.output))
    if needed is not None:
        print(f"to run it: {needed}", file=sys.stderr)
    print(f"{args.output}: {args.model} as {args.variant}, {size / 1e6:.1f} MB, in {seconds:.1f} s", file=sys.stderr)
    return 0


def _check_writable(path: Path) -> None:
    # A build can take minutes; what can be told at once is told at once.
    if path.suffix != ".so":
        raise OutputError(f"{path}: an artifact is a shared library; give it a name that ends in .so")
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a directory" if path.is_dir() else f"there is no directory {path.parent}"
        raise OutputError(f"{path} cannot be written: {what}")
    try:
        probe = path.parent / f".{path.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    raise SystemExit(run(main))
