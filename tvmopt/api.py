"""`tvmopt.compile` and `tvmopt.load`: the Python interface."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from tvmopt.errors import UsageError
from tvmopt.options import BuildOptions, strategy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tvmopt.runtime.executable import Compiled

VARIANTS = ("original", "manual", "auto")


def compile(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    target: str = "llvm",
    variant: str = "auto",
    log_dir: str | PathLike[str] = "tuning_logs",
    threads: int | None = None,
    strategies: dict[str, str] | None = None,
    *,
    arch: str | None = None,
    dtype: str = "float32",
    cuda_graphs: bool = False,
    fast_math: bool = False,
    name: str | None = None,
    schedules_dir: str | PathLike[str] | None = None,
    dump_dir: str | PathLike[str] | None = None,
) -> Compiled:
    """Compiles any module for the shapes and dtypes of `example_inputs`, as it computes in eval mode.

    variant: `original`, `manual` or `auto`; auto takes its schedules from `log_dir`, and manual's for a kernel with no
    record there. threads: by default as many as this process has CPUs. strategies: how operators are lowered, such as
    `{"conv2d": "gemm"}`. name: in tables and in the log's directory; by default the class's. schedules_dir: schedule
    rules of your own, tried first. dump_dir: where the IR is written after each phase.

    On a GPU (target="cuda"): arch is the architecture to build for ("sm_90") where that is not the one here; dtype may
    be float16 or bfloat16 (summed in float32); cuda_graphs captures the network once and replays it as one launch;
    fast_math lets nvcc approximate.

    The module is left as it was, training mode included; its weights are copied into the result.

    Raises:
        UsageError: an unknown variant or strategy, or for a CPU what only a GPU's code can have. TargetError: a target
        that cannot be built for here. ModelError: a model that does not run, or uses an operator that cannot be
        imported. LogError: a damaged log.
    """
    if variant not in VARIANTS:
        raise UsageError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    options = BuildOptions(
        target={"cpu": "llvm"}.get(target, target),
        arch=arch,
        cuda_graphs=cuda_graphs,
        fast_math=fast_math,
        threads=threads,
        strategies=_checked(strategies or {}),
        log_dir=Path(log_dir),
        schedules_dir=Path(schedules_dir) if schedules_dir is not None else None,
        dump_dir=Path(dump_dir) if dump_dir is not None else None,
    )
    machine = options.machine()
    from tvmopt.model import from_module
    from tvmopt.runtime.threads import use_threads
    from tvmopt.variants import build_by_options

    use_threads(machine.cores)
    training = [module for module in getattr(model, "modules", list)() if module.training]
    try:
        return build_by_options(from_module(model, example_inputs, name=name, dtype=dtype), variant, machine, options)
    finally:
        for module in training:
            # Not .train(), which would set all that is below it too.
            module.training = True


def load(path: str | PathLike[str], *, threads: int | None = None) -> Compiled:
    """The compiled model in an artifact that `Compiled.export` or `python -m tvmopt.export` wrote.

    What the CPU lacks is found out before any of it is executed. An artifact is a program: load only those you would
    run. threads: as many as it was built for by default.

    Raises:
        ArtifactError: no such file, not an artifact, damaged, or built for another machine or another TVM.
        UsageError: more threads than this process has CPUs.
    """
    from tvmopt.machine import available_cores
    from tvmopt.runtime import artifact

    if threads is not None and not 1 <= threads <= available_cores():
        raise UsageError(f"threads={threads}: this process may use 1 to {available_cores()} CPUs")
    return artifact.load(path, threads=threads)


def _checked(strategies: dict[str, str]) -> dict[str, str]:
    import argparse

    try:
        return {op: way for pair in strategies.items() for op, way in strategy("=".join(pair)).items()}
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"strategies: {error}") from None
