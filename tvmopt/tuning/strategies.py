"""Which strategy each convolution and pruned dense layer is fastest by: measured, with manual's schedules.

The network is lowered once for every way there is; each layer's kernels, epilogue included, are then timed in one
process, taking turns. Weights come from memory in every call where the whole network's do not fit L3 (a GPU's L2), as
in the network itself: that is what decides between Winograd's tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmopt.graph.gpu_default import schedule_default
from tvmopt.graph.kernels import count_calls
from tvmopt.graph.pipeline import Lowered, lower_model
from tvmopt.graph.strategy import PLAN, SPARSE, UNSTRUCTURED, is_resident
from tvmopt.machine import GpuMachine, threads_environment
from tvmopt.operators.sparse import without_kept
from tvmopt.tuning.log import key_module
from tvmopt.tuning.process import Process, WorkerError

if TYPE_CHECKING:
    import tvm

    from tvmopt.graph.blocking import Decision
    from tvmopt.graph.kernels import Kernel
    from tvmopt.machine import AnyMachine
    from tvmopt.model import Model
    from tvmopt.registry import Rule

# Another way must beat the cost rule's by this much, where medians scatter by a few percent.
MARGIN = 0.95
# Turns of all the kernels together.
ROUNDS = 15
# Weights that are to come from memory are as many copies as fill this: three times an L3 of 32 MiB. And a GPU's L2 so
# many times.
STREAMED_BYTES = 96 << 20
_STREAMED_L2 = 3
_BUILD_LIMIT_S = 60.0
_TIME_LIMIT_S = 600.0


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer: its kernel, what that is told apart by, and which parameters hold constants."""

    name: str
    kernel: Kernel
    constants: tuple[int, ...]


def candidate_name(geometry: str, way: str) -> str:
    """What a layer's kernel by `way` is called: dense ones are the same, whatever is kept of the weights."""
    return f"{geometry if way in (SPARSE, UNSTRUCTURED) else without_kept(geometry)} by {way}"


def candidates(layers: Mapping[str, Decision], others: Mapping[tuple[str, str], Lowered]) -> list[Candidate]:
    """The kernels that compute `layers`, which are by geometry; `others` are lowered by one (operator, way) each."""
    found: dict[str, Candidate] = {}
    for (op, way), other in others.items():
        wanted = {
            candidate_name(geometry, way) for geometry, decision in layers.items()
            if decision.op == op and way in decision.possible and other.decided[geometry].way == way
        }  # fmt: skip
        constants = constant_parameters(other)
        # Of several epilogues the one that is called most speaks for all.
        for kernel in sorted(other.kernels, key=lambda kernel: -kernel.calls):
            name = f"{kernel.geometry} by {way}"
            if name in wanted:
                wanted.remove(name)
                found[name] = Candidate(name, kernel, constants[kernel.name])
    return [found[name] for name in sorted(found)]


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


def streamed_bytes(weights: int, machine: AnyMachine) -> int:
    """How many bytes copies of a kernel's weights are to fill, so that every call reads them from memory.

    0 where a network's `weights` stay in the last cache from call to call: in half of it, as `is_resident` says of L3.
    """
    if isinstance(machine, GpuMachine):
        return 0 if weights <= machine.l2 / 2 else _STREAMED_L2 * machine.l2
    return 0 if is_resident(weights, machine) else STREAMED_BYTES


def measure_strategies(
    model: Model, machine: AnyMachine, rules: Sequence[Rule], strategies: Mapping[str, str], note: Callable[[str], None]
) -> dict[str, str]:
    """What to lower `model` with: `strategies`, and the fastest way of each layer beside them.

    A way is asked for by `conv2d <geometry>` or `dense <geometry>`. Not measured are layers of an operator for which
    `strategies` say one way for all, and those that they decide already, as a log does that is gone on with: it knows
    none of a network that was pruned otherwise since. A kernel that does not build, or not in time, cannot win.
    """
    chosen = dict(strategies)
    lowered = lower_model(model, machine, chosen)
    layers = {
        geometry: decision for geometry, decision in lowered.decided.items()
        if len(decision.possible) > 1 and chosen.get(decision.op, PLAN) == PLAN
        and f"{decision.op} {geometry}" not in chosen
    }  # fmt: skip
    if not layers:
        return chosen
    ways = sorted({(decision.op, way) for decision in layers.values() for way in decision.possible})
    others = {(op, way): lower_model(model, machine, {**chosen, op: way}, like=lowered) for op, way in ways}
    streamed = streamed_bytes(weight_bytes(lowered), machine)
    contenders = candidates(layers, others)
    if not contenders:
        return {**lowered.strategies, **chosen}
    note(f"measuring {len(contenders)} kernels, the ways to compute {len(layers)} layers")
    seconds = _time(contenders, machine, rules, streamed, note)
    for geometry, decision in layers.items():
        rated = {way: seconds[name] for way in decision.possible if (name := candidate_name(geometry, way)) in seconds}
        if decision.way not in rated:
            continue
        best = min(rated, key=lambda way: rated[way])
        way = best if rated[best] < MARGIN * rated[decision.way] else decision.way
        chosen[f"{decision.op} {geometry}"] = way
        times = ", ".join(f"{w} {s * 1e6:.0f} us" for w, s in sorted(rated.items(), key=lambda item: item[1]))
        note(f"{decision.op} {geometry}: {way} ({times})")
    return {**lowered.strategies, **chosen}


def _scheduled(kernel: Kernel, machine: AnyMachine, rules: Sequence[Rule]) -> tvm.IRModule | None:
    """The kernel as manual has it; None where no rule takes it and it is not worth timing as it is."""
    from tvmopt.registry import apply_rule

    scheduled = apply_rule(kernel, machine, rules)
    if scheduled is not None:
        return scheduled.schedule.mod
    if isinstance(machine, GpuMachine):
        return key_module(schedule_default(kernel.func, machine.target()))
    return None


def _time(
    contenders: Sequence[Candidate],
    machine: AnyMachine,
    rules: Sequence[Rule],
    streamed: int,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Median seconds a call by candidate's name, all taking turns in one process."""
    import tvm.ir

    process = Process("tvmopt.tuning.strategy_worker", threads_environment(machine.cores))
    target = dict(machine.target().export())
    try:
        for candidate in contenders:
            scheduled = _scheduled(candidate.kernel, machine, rules)
            if scheduled is None:
                continue
            try:
                arguments = (candidate.name, tvm.ir.save_json(scheduled), target, candidate.constants, streamed)
                process.ask("add", *arguments, limit_s=_BUILD_LIMIT_S)
            except WorkerError as error:
                note(f"{candidate.name}: not measured ({error})")
                if not process.alive:
                    return {}
        measured: dict[str, float] = process.ask("time", ROUNDS, limit_s=_TIME_LIMIT_S)
        return measured
    except WorkerError as error:
        note(f"strategies are not measured: {error}")
        return {}
    finally:
        process.close()
