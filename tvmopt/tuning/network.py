"""The whole network, built in several ways: verified against PyTorch, then timed in turns, a process each."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, VerificationError, one_line
from tvmopt.machine import threads_environment
from tvmopt.runtime.verify import check, flatten
from tvmopt.tuning.process import Process, WorkerError

if TYPE_CHECKING:
    from tvmopt.graph.pipeline import Lowered
    from tvmopt.machine import Machine
    from tvmopt.model import Model
    from tvmopt.runtime.executable import Compiled

TURNS = 15
_SAMPLES = 3
_LIMIT_S = 300.0


def reference(model: Model) -> list[Any]:
    """PyTorch's outputs in fp64 for the example inputs, as arrays."""
    import torch

    wide = copy.deepcopy(model.module).double()
    inputs = [x.double() if x.dtype.is_floating_point else x for x in model.example_inputs]
    try:
        with torch.no_grad():
            return [output.detach().numpy() for output in flatten(wide(*inputs))]  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise ModelError(f"the model cannot be run in fp64, which it is verified against: {one_line(error)}") from None


def assemble(lowered: Lowered, functions: dict[str, Any], machine: Machine, model: Model, variant: str) -> Compiled:
    """The network of `lowered` with scheduled `functions` in the place of its kernels: one lowering, many builds."""
    from tvmopt.graph.pipeline import build, with_kernels
    from tvmopt.runtime.executable import Compiled
    from tvmopt.runtime.signature import Signature

    meta = {"model": model.name, "variant": variant, "target": str(machine.target()), "machine": machine,
            "threads": machine.cores}  # fmt: skip
    executable = build(with_kernels(lowered.module, functions), machine, None)
    return Compiled(executable, Signature.from_exported(lowered.program), meta)


def take_turns(
    artifacts: Mapping[str, Path], model: Model, threads: int, strategies: Mapping[str, str], *, turns: int = TURNS
) -> dict[str, float]:
    """Median seconds of each artifact (name -> file), all taking turns.

    Raises:
        VerificationError: an artifact that crashes or does not compute what PyTorch computes; names it.
    """
    expected = reference(model)
    inputs = [tensor.detach().numpy() for tensor in model.example_inputs]
    processes: dict[str, Process] = {}
    samples: dict[str, list[float]] = {name: [] for name in artifacts}
    name = ""
    try:
        for name, path in artifacts.items():
            processes[name] = Process("tvmopt.tuning.contender", threads_environment(threads))
            outputs = processes[name].ask("load", str(path), inputs, limit_s=_LIMIT_S)
            check(outputs, expected, model.dtype, strategies).require(f"the network's {name} build")
            processes[name].ask("warm", limit_s=_LIMIT_S)
        for turn in range(turns):
            # Whoever is first in a turn is first in the next but one: neither always follows the other.
            for name in list(artifacts) if turn % 2 == 0 else reversed(list(artifacts)):
                samples[name] += processes[name].ask("turn", _SAMPLES, limit_s=_LIMIT_S)
    except WorkerError as error:
        raise VerificationError(f"the network's {name} build failed: {error}") from None
    finally:
        for process in processes.values():
            process.close()
    return {name: statistics.median(taken) for name, taken in samples.items()}
