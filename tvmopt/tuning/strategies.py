"""Which strategy each convolution of a network is fastest by: measured, with manual's schedules.

The network is lowered once for every way there is; each convolution's kernels, epilogue included, are then timed in
one process, taking turns. Weights come from memory in every call where the whole network's do not fit L3, as in the
network itself: that is what decides between Winograd's tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmopt.graph.kernels import count_calls, find_blocks
from tvmopt.graph.pipeline import Lowered, lower_model
from tvmopt.graph.strategy import PLAN, is_resident
from tvmopt.machine import threads_environment
from tvmopt.operators import GEOMETRY_ATTR
from tvmopt.tuning.process import Process, WorkerError

if TYPE_CHECKING:
    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import Machine
    from tvmopt.model import Model
    from tvmopt.registry import Rule

# Another way must beat the cost rule's by this much, where medians scatter by a few percent.
MARGIN = 0.95
# Turns of all the kernels together.
ROUNDS = 15
_BUILD_LIMIT_S = 60.0
_TIME_LIMIT_S = 600.0


@dataclass(frozen=True)
class Candidate:
    """One way to compute the convolution of a geometry: its kernel, and which parameters hold constants."""

    geometry: str
    way: str
    kernel: Kernel
    constants: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the worker calls it."""
        return f"{self.geometry} by {self.way}"


def geometry_of(kernel: Kernel) -> str | None:
    """The geometry of the convolution that is a kernel's anchor; None for other kernels."""
    for block in find_blocks(kernel.func):
        if GEOMETRY_ATTR in block.annotations:
            return str(block.annotations[GEOMETRY_ATTR])
    return None


def candidates(lowered: Lowered, others: Mapping[str, Lowered]) -> list[Candidate]:
    """The ways of every convolution of `lowered` that has more than one; `others` are the lowerings by one way each."""
    found = []
    for way, other in others.items():
        constants = constant_parameters(other)
        seen: set[str] = set()
        for kernel in sorted(other.kernels, key=lambda kernel: -kernel.calls):
            geometry = geometry_of(kernel)
            decision = lowered.decided.get(geometry) if geometry is not None else None
            # Of several epilogues the one that is called most speaks for all.
            if geometry is None or decision is None or len(decision.possible) < 2 or geometry in seen:
                continue
            if other.decided[geometry].way == way:
                seen.add(geometry)
                found.append(Candidate(geometry, way, kernel, constants[kernel.name]))
    return sorted(found, key=lambda candidate: candidate.name)


def constant_parameters(lowered: Lowered) -> dict[str, tuple[int, ...]]:
    """For each kernel called in `main`, the places of the arguments that are constants."""
    import tvm
    from tvm import relax

    places: dict[str, tuple[int, ...]] = {}
    for block in lowered.module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                arguments = value.args[1].fields if isinstance(value.args[1], relax.Tuple) else [value.args[1]]
                places[value.args[0].name_hint] = tuple(
                    i for i, argument in enumerate(arguments) if isinstance(argument, tvm.ir.expr.GenericConst)
                )
    return places


def weight_bytes(lowered: Lowered) -> int:
    """What all kernels' constants take, each kernel's once a call; where a batch is computed in parts, once for all."""
    constants, calls = constant_parameters(lowered), count_calls(lowered.module)
    total = 0
    for kernel in lowered.kernels:
        shapes = [kernel.func.params[i].shape for i in constants.get(kernel.name, ())]
        total += calls[kernel.name] * sum(_bytes(shape) for shape in shapes)
    return total


def _bytes(shape: Sequence[object]) -> int:
    total = 4
    for size in shape:
        total *= int(size)  # type: ignore[call-overload]
    return total


def measure_strategies(
    model: Model, machine: Machine, rules: Sequence[Rule], strategies: Mapping[str, str], note: Callable[[str], None]
) -> dict[str, str]:
    """What to lower `model` with: `strategies`, and the fastest way of each convolution beside them.

    A way is asked for by `conv2d <geometry>`; nothing is measured where `strategies` say one way for all.
    A kernel that does not build, or not in time, cannot win.
    """
    chosen = dict(strategies)
    if chosen.get("conv2d", PLAN) != PLAN:
        return chosen
    lowered = lower_model(model, machine, chosen)
    open_ones = [decision.possible for decision in lowered.decided.values() if len(decision.possible) > 1]
    ways = sorted({way for possible in open_ones for way in possible})
    others = {way: lower_model(model, machine, {**chosen, "conv2d": way}, like=lowered) for way in ways}
    streamed = not is_resident(weight_bytes(lowered), machine)
    contenders = candidates(lowered, others)
    if not contenders:
        return {**chosen, **lowered.strategies}
    note(f"measuring {len(contenders)} ways to compute {len({c.geometry for c in contenders})} convolutions")
    seconds = _time(contenders, machine, rules, streamed, note)
    for geometry, decision in lowered.decided.items():
        rated = {way: seconds[name] for way in decision.possible if (name := f"{geometry} by {way}") in seconds}
        if decision.way not in rated:
            continue
        best = min(rated, key=lambda way: rated[way])
        way = best if rated[best] < MARGIN * rated[decision.way] else decision.way
        chosen[f"conv2d {geometry}"] = way
        times = ", ".join(f"{w} {s * 1e6:.0f} us" for w, s in sorted(rated.items(), key=lambda item: item[1]))
        note(f"conv2d {geometry}: {way} ({times})")
    return {**lowered.strategies, **chosen}


def _time(
    contenders: Sequence[Candidate],
    machine: Machine,
    rules: Sequence[Rule],
    streamed: bool,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Median seconds a call by candidate's name, all taking turns in one process."""
    import tvm.ir

    from tvmopt.registry import apply_rule

    process = Process("tvmopt.tuning.strategy_worker", threads_environment(machine.cores))
    target = dict(machine.target().export())
    try:
        for candidate in contenders:
            scheduled = apply_rule(candidate.kernel, machine, rules)
            if scheduled is None:
                continue
            try:
                module = tvm.ir.save_json(scheduled.schedule.mod)
                arguments = (candidate.name, module, target, candidate.constants, streamed)
                process.ask("add", *arguments, limit_s=_BUILD_LIMIT_S)
            except WorkerError as error:
                note(f"conv2d {candidate.name}: not measured ({error})")
                if not process.alive:
                    return {}
        measured: dict[str, float] = process.ask("time", ROUNDS, limit_s=_TIME_LIMIT_S)
        return measured
    except WorkerError as error:
        note(f"strategies are not measured: {error}")
        return {}
    finally:
        process.close()
