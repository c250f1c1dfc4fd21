"""`python -m tvmopt.export`: one file to load and run, made from a model and compared with it.

What is shipped has computed what PyTorch computes, on this machine; where it cannot run here, that is said.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import OutputError
from tvmopt.options import BuildOptions, add_build_options, build_options, make_parser, run

if TYPE_CHECKING:
    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model
    from tvmopt.runtime.executable import Compiled
    from tvmopt.runtime.verify import Verdict

_VARIANTS = ("original", "manual", "auto")


@dataclass(frozen=True)
class Exported:
    """What was written: `size` of the file in bytes; `verdict` beside PyTorch, None where the build cannot run here."""

    size: int
    verdict: Verdict | None


def export_model(
    spec: str | None, path: Path, *, variant: str = "auto", options: BuildOptions | None = None
) -> Exported:
    """Builds the model of `spec` (None: digits_cnn), compares it with PyTorch and writes it to `path`.

    Raises:
        OutputError: a path that cannot be written; found before the build where possible.
        VerificationError: the build computes something else; nothing is written.
        TvmoptError: what loading and building the model raise.
    """
    options = options or BuildOptions()
    _check_writable(path)
    machine = options.machine()
    from tvmopt.runtime.threads import use_threads
    from tvmopt.variants import build_by_options

    use_threads(machine.cores)
    model = options.load(spec)
    compiled = build_by_options(model, variant, machine, options)
    verdict = _compare(compiled, model, machine) if _is_here(machine) else None
    if verdict is not None:
        verdict.require(f"{model.name} as {variant}")
    compiled.export(path)
    return Exported(path.stat().st_size, verdict)


def _is_here(machine: AnyMachine) -> bool:
    from tvmopt.machine import Machine, detect_gpu

    return isinstance(machine, Machine) or detect_gpu(machine.cores) == machine


def _compare(compiled: Compiled, model: Model, machine: AnyMachine) -> Verdict:
    """The outputs for the example inputs beside PyTorch's in fp64."""
    import torch

    from tvmopt.runtime.verify import check, flatten, handed_out
    from tvmopt.tuning.network import reference

    inputs: list[object] = list(model.example_inputs)
    if machine.kind == "cuda":
        # A PyTorch without CUDA has no tensors there: arrays are copied by what calls the build.
        inputs = [x.cuda() if torch.cuda.is_available() else x.numpy() for x in model.example_inputs]
    outputs = list(flatten(compiled(*inputs)))
    strategies = compiled.meta.get("strategies")
    return check(outputs, reference(model), model.dtype, strategies, output_dtype=handed_out(outputs))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = make_parser(
        "export",
        "tvmopt.export",
        "Builds a model and writes it as one shared library with its description, to be loaded with tvmopt.load(FILE). "
        "It is compared with PyTorch before it is written, where it can run here. Loading checks that the CPU, or the "
        "GPU, has what it was built for.",
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
    exported = export_model(args.model, args.output, variant=args.variant, options=options)
    seconds = time.perf_counter() - start
    from tvmopt.runtime.artifact import read_metadata
    from tvmopt.runtime.artifact_gpu import needs

    needed = needs(read_metadata(args.output))
    if needed is not None:
        print(f"to run it: {needed}", file=sys.stderr)
    what = f"{args.model} as {args.variant}"
    print(f"{args.output}: {what}, {exported.size / 1e6:.1f} MB, in {seconds:.1f} s", file=sys.stderr)
    if exported.verdict is not None:
        print(f"verified beside PyTorch in fp64: {exported.verdict.message}", file=sys.stderr)
    else:
        print("not verified: no GPU of this kind is here; run it on one beside the model first", file=sys.stderr)
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
