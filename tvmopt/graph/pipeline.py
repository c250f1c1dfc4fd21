"""The whole way from a Relax module to an executable, as one literal list of phases.

`--dump-ir DIR` writes the module after every phase as `DIR/<number>-<name>.py`; the last has the plan of the memory, a
line for each call, above it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from tvm import relax

from tvmopt.errors import ModelError, OutputError, TargetError, UnsupportedOperatorError, one_line
from tvmopt.graph import host_pipeline
from tvmopt.graph.blocking import BlockLayout, Decision
from tvmopt.graph.gpu_build import GpuBuild, generate, memory_passes, with_threads
from tvmopt.graph.importer import export_program, import_program
from tvmopt.graph.kernels import Kernel, extract_kernels
from tvmopt.graph.legalise import legalise
from tvmopt.graph.network import PARTS, Unsupported
from tvmopt.graph.nhwc import ChannelsLastLayout
from tvmopt.graph.one_function import one_function
from tvmopt.graph.parts import has_a_batch, images_at_once, independent, part_of
from tvmopt.graph.precision import NarrowPrecision
from tvmopt.graph.simplify import simplify_passes
from tvmopt.graph.strategy import DIRECT, PLAN
from tvmopt.graph.views import MoveViews
from tvmopt.machine import GpuMachine

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from tvmopt.machine import AnyMachine, Machine
    from tvmopt.model import Model

_log = logging.getLogger(__name__)

DEFAULT_STRATEGIES: dict[str, str] = {"conv2d": PLAN, "dense": PLAN}


@dataclass(frozen=True)
class Phase:
    """A named step of the pipeline."""

    name: str
    passes: list[tvm.transform.Pass]


@dataclass(frozen=True)
class Lowered:
    """A model in TensorIR: `module` with `main` and one PrimFunc a kernel, all of them still unscheduled.

    `decided` says by what way each convolution was lowered, and each dense layer that has zeros to skip, by its
    geometry; nothing for TVM's own lowering. `program` is the whole model's. Where the batch is computed in parts
    (parts.py), `part` is the program that was lowered, and the module says of how many parts (`PARTS`).
    """

    program: ExportedProgram
    module: tvm.IRModule
    kernels: list[Kernel]
    decided: Mapping[str, Decision] = field(default_factory=dict)
    part: ExportedProgram | None = None

    @property
    def strategies(self) -> dict[str, str]:
        """`conv2d <geometry>`, `dense <geometry>` -> the way: the same network is lowered from it again."""
        return {f"{decision.op} {geometry}": decision.way for geometry, decision in self.decided.items()}


def lowering(ours: tvm.transform.Pass | None, dtype: str = "float32") -> list[Phase]:
    """Phases 1 to 4: from the imported module to kernels computing in `dtype`.

    `ours` brings the network into our layout and operators; without it, TVM's own lowering in NCHW.
    """
    transform = relax.transform
    # What a CPU's registers are for: elementary functions by lanes, views out of the way of its epilogues.
    blocked = isinstance(ours, BlockLayout)
    views = [MoveViews(), transform.DeadCodeElimination(["main"])] if blocked else []
    layout = [ours, transform.CanonicalizeBindings()] if ours is not None else []
    legal = legalise(ours.machine.lanes) if isinstance(ours, BlockLayout) else transform.LegalizeOps()
    narrow = [NarrowPrecision(dtype)] if dtype != "float32" else []
    return [
        Phase("1-simplify", [*simplify_passes(), *narrow, *views]),
        Phase("2-layout", layout),
        Phase("3-legalise", [legal, transform.AnnotateTIROpPattern(), transform.FoldConstant()]),
        Phase("4-fuse", [transform.FuseOps(), transform.FuseTIR(), transform.DeadCodeElimination(["main"])]),
    ]


def building() -> list[Phase]:
    """Phase 6, after the schedules: memory planned ahead of time, calls lowered to the virtual machine's.

    Where a network can be one function (`one_function`), its memory is planned there, and all that comes through here
    is the little that the virtual machine does when it is loaded.
    """
    transform = relax.transform
    return [
        Phase(
            "6-plan-memory",
            [
                transform.RewriteDataflowReshape(),
                transform.ToNonDataflow(),
                transform.RemovePurityChecking(),
                transform.CallTIRRewrite(),
                transform.StaticPlanBlockMemory(),
                transform.LowerAllocTensor(),
                transform.KillAfterLastUse(),
                transform.LowerRuntimeBuiltin(),
                transform.ComputePrimValue(),
                transform.VMShapeLower(),
                transform.AttachGlobalSymbol(),
            ],
        )
    ]


def run_phases(
    module: tvm.IRModule, phases: list[Phase], machine: AnyMachine, dump_dir: Path | None
) -> tvm.IRModule:
    """Run `phases` on `module` under the machine's target, dumping after each."""
    with machine.target(), tvm.transform.PassContext(opt_level=3):
        for phase in phases:
            module = tvm.transform.Sequential(phase.passes)(module)
            dump(module, phase.name, dump_dir)
    return module


def dump(module: tvm.IRModule, name: str, dump_dir: Path | None, remark: str = "") -> None:
    """Write `module` as TVMScript, without the values of constants, below `remark` as comments."""
    if dump_dir is None:
        return
    try:
        dump_dir.mkdir(parents=True, exist_ok=True)
        comments = "".join(f"# {line}\n" for line in remark.splitlines())
        (dump_dir / f"{name}.py").write_text(comments + module.script(show_meta=False))
    except OSError as error:
        raise OutputError(f"--dump-ir {dump_dir}: {error.strerror}") from error


def uses_blocked_layout(variant: str, strategies: Mapping[str, str]) -> bool:
    """Whether a variant is lowered by our operators: all but `original` with no strategy asked for."""
    return variant != "original" or strategies.get("conv2d", PLAN) not in (PLAN, DIRECT)


def lower_model(
    model: Model,
    machine: AnyMachine,
    strategies: Mapping[str, str] | None = None,
    *,
    variant: str = "manual",
    dump_dir: Path | None = None,
    like: Lowered | None = None,
) -> Lowered:
    """Import `model` and lower it to unscheduled kernels.

    `original` is TVM's default lowering in the user's layout, unless a strategy is asked for, which only our
    operators have. manual and auto are lowered alike where `strategies` are the same: auto's are those that its log
    has measured (`variants.strategies_of`). `like`: the same model lowered before, by other strategies: its programs
    are taken, and its parts of the batch.

    Raises:
        ModelError, UnsupportedOperatorError: the model cannot be imported or lowered; the message names the operator.
        OutputError: `dump_dir` cannot be written. TargetError: a narrow dtype on a CPU.
    """
    if model.dtype != "float32" and not isinstance(machine, GpuMachine):
        raise TargetError(
            f"--dtype {model.dtype}: schedules for CPUs compute in float32; leave it out, or build for a GPU: "
            "--target cuda --arch sm_90"
        )
    chosen = {**DEFAULT_STRATEGIES, **(strategies or {})}
    blocked = uses_blocked_layout(variant, chosen)
    program = like.program if like is not None else export_program(model)
    part = like.part if like is not None else None
    if like is None and blocked and not isinstance(machine, GpuMachine) and has_a_batch(model):
        # By the plan's strategies, whatever is asked for: a log's kernels are to be found again.
        planned = _lower(model, program, machine, DEFAULT_STRATEGIES, blocked, None)
        size = _size_of_parts(model, planned, machine)
        if size == model.batch and chosen == DEFAULT_STRATEGIES and dump_dir is None:
            return planned
        part = export_program(part_of(model, size)) if size < model.batch else None
    if part is None:
        return _lower(model, program, machine, chosen, blocked, dump_dir)
    lowered = _lower(model, part, machine, chosen, blocked, dump_dir)
    parts = model.batch // _batch_of(part)
    kernels = [replace(kernel, calls=kernel.calls * parts) for kernel in lowered.kernels]
    module = lowered.module.with_attr(PARTS, parts)
    return replace(lowered, program=program, module=module, kernels=kernels, part=part)


def _lower(
    model: Model, program: ExportedProgram, machine: AnyMachine, strategies: Mapping[str, str], blocked: bool,
    dump_dir: Path | None,
) -> Lowered:  # fmt: skip
    module = import_program(program, model.name)
    dump(module, "0-import", dump_dir)
    layout: BlockLayout | ChannelsLastLayout | None = None
    if blocked:
        if isinstance(machine, GpuMachine):
            layout = ChannelsLastLayout(machine, strategies)
        else:
            layout = BlockLayout(machine, strategies)
    module = run_phases(module, lowering(layout, model.dtype), machine, dump_dir)
    left = sorted(_unlowered(module))
    if left:
        raise UnsupportedOperatorError(f"{model.name} uses {', '.join(left)}, which TVM cannot lower to kernels")
    return Lowered(program, module, extract_kernels(module), layout.decided if layout is not None else {})


def _size_of_parts(model: Model, lowered: Lowered, machine: Machine) -> int:
    """How many images of the batch are computed at once; all where another size is not clearly faster."""
    try:
        # A network in parts has to be one function: the virtual machine has no loop.
        _, network = one_function(lowered.module)
    except Unsupported:
        return model.batch
    flops = {kernel.name: kernel.flops for kernel in lowered.kernels}
    size = images_at_once(network, flops, model.batch, machine)
    if size == model.batch or not independent(model, size):
        return model.batch
    _log.info("%s: %d images at once, %d times", model.name, size, model.batch // size)
    return size


def _batch_of(program: ExportedProgram) -> int:
    (first, *_) = program.graph_signature.user_inputs
    return next(int(node.meta["val"].shape[0]) for node in program.graph.nodes if node.name == first)


def _unlowered(module: tvm.IRModule) -> set[str]:
    """Operators of `main` that neither became a kernel nor are the virtual machine's own."""
    # The null value is an output that is None.
    known = ("relax.call_tir", "relax.reshape", "relax.memory", "relax.builtin", "relax.call_pure_packed",
             "relax.null_value")  # fmt: skip
    found = set()
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            op = getattr(binding.value, "op", None) if isinstance(binding.value, relax.Call) else None
            if isinstance(op, tvm.ir.Op) and not op.name.startswith(known):
                found.add(op.name)
    return found


def with_kernels(module: tvm.IRModule, functions: Mapping[str, tvm.tirx.PrimFunc]) -> tvm.IRModule:
    """`module` with the named kernels replaced by scheduled functions of the same parameters."""
    updated = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    for var, func in module.functions_items():
        scheduled = functions.get(var.name_hint)
        if scheduled is not None:
            # A private function has no global symbol; the schedule's was called main.
            symbol = func.attrs.get("global_symbol") if func.attrs is not None else None
            scheduled = scheduled.without_attr("global_symbol")
            updated[var] = scheduled.with_attr("global_symbol", symbol) if symbol is not None else scheduled
    return updated


def build(
    module: tvm.IRModule, machine: Machine, dump_dir: Path | None = None, *, flat: bool = True
) -> tvm.runtime.Executable:
    """Compile a lowered and scheduled module: as one function where that can be, else for the virtual machine.

    flat: False where the virtual machine is wanted, which RPC can call; it has one part of a batch.

    Raises:
        ModelError: TVM's code generator refuses it.
    """
    dump(module, "5-schedule", dump_dir)
    try:
        if not flat:
            raise Unsupported("to be called from elsewhere")
        module = _as_one_function(module, machine, dump_dir)
    except Unsupported as reason:
        _log.info("the virtual machine runs the network: it has %s", reason)
        module = run_phases(module, building(), machine, dump_dir)
    try:
        return tvm.compile(module, target=machine.target(), relax_pipeline=None, tir_pipeline=host_pipeline.register())
    except Exception as error:
        raise ModelError(f"code generation failed: {one_line(error)}") from error


def build_for_gpu(
    module: tvm.IRModule,
    machine: GpuMachine,
    dump_dir: Path | None = None,
    *,
    cuda_graphs: bool = False,
    fast_math: bool = False,
) -> GpuBuild:
    """Compile a lowered module for a GPU; a kernel without a schedule gets a default one.

    Raises:
        ModelError: TVM's code generator or nvcc refuses it, or a schedule leaves a loop to no thread.
    """
    module = with_threads(module, machine)
    dump(module, "5-schedule", dump_dir)
    with machine.target(), tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": cuda_graphs}):
        module = tvm.transform.Sequential(memory_passes(cuda_graphs))(module)
    dump(module, building()[-1].name, dump_dir)
    return generate(module, machine, fast_math=fast_math)


def _as_one_function(module: tvm.IRModule, machine: Machine, dump_dir: Path | None) -> tvm.IRModule:
    # What only gives a tensor another shape is not a kernel: both shapes share the memory.
    module = run_phases(module, [Phase("", [relax.transform.RewriteDataflowReshape()])], machine, None)
    functions, network = one_function(module)
    # Only what is Relax: the passes would take kernels for functions that the virtual machine calls.
    state = {var: func for var, func in functions.functions_items() if isinstance(func, relax.Function)}
    kernels = {var: func for var, func in functions.functions_items() if var not in state}
    lowered = run_phases(tvm.IRModule(state), building(), machine, None)
    lowered.update(tvm.IRModule(kernels))
    dump(lowered, building()[-1].name, dump_dir, network.describe())
    return lowered
