"""All of a network's kernels in one launch on all cores, with barriers between them.

A kernel whose loop over tasks is parallel starts TVM's threads and waits for them: 1.4 microseconds on two cores. A
barrier between threads that run already takes 0.3 (TVMBackendParallelBarrier). So in `main_flat` (one_function.py)
kernels that come one after another are one parallel region: each becomes a plain function of one task, which the region
calls for every task, and what was outside a parallel loop is a task by itself.

This is done when TVM has lowered the kernels, so that what is inside their loops is what it was. Measured on two cores
of Zen 4, builds with and without it taking turns 400 times: ResNet-20 takes 0.96 of the time and its block-sparse kin
0.91, ShuffleNetV2 0.976, MobileNetV2 0.986; of networks with longer kernels it is less than can be told.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import tvm
from tvm import tirx
from tvm_ffi import structural_walk

from tvmopt.graph.memory import ALIGNMENT
from tvmopt.graph.one_function import FUNCTION
from tvmopt.graph.registers import bytes_of

# Memory that the stages of a kernel share becomes the network's, for as long as the region lasts: only little of it.
_SHARED_BYTES = 4096
# Less than this TVM takes from the stack, where it lies at a multiple of 16 bytes; its pool's memory is aligned.
_FROM_POOL_BYTES = 2048
# Fewer launches are no more than the region's own.
_FEWEST_LAUNCHES = 2
_CPU = 1
_INT32, _STATUS = "int32", tvm.ir.PrimType("int32")


@dataclass(frozen=True)
class Stage:
    """A part of a kernel between two barriers: `function` computes one of `tasks` tasks, its last parameter."""

    name: str
    function: tirx.PrimFunc
    tasks: tvm.ir.Expr
    parallel: bool


@dataclass(frozen=True)
class Stages:
    """A kernel as stages, in their order. `shared`: buffers that they share; each stage takes pointers to all."""

    stages: tuple[Stage, ...]
    shared: tuple[tirx.Buffer, ...] = ()


@tvm.transform.module_pass(opt_level=0, name="tvmopt.OneLaunch")
def one_launch(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Puts kernels that `main_flat` calls one after another into one parallel region; without one nothing changes."""
    functions = {var.name_hint: (var, func) for var, func in module.functions_items()}
    if FUNCTION not in functions:
        return module
    staged = {}
    for name, (_, func) in functions.items():
        if name != FUNCTION and "global_symbol" not in func.attrs and (stages := stages_of(name, func)) is not None:
            staged[name] = stages
    flat_var, flat = functions[FUNCTION]
    regions = _Regions(staged)
    body = regions.rewrite(flat.body)
    left = {var: func for name, (var, func) in functions.items() if name not in staged or name in regions.whole}
    left[flat_var] = flat.with_body(on_the_host(body))
    return tvm.IRModule({**left, **dict(regions.used.values())}, attrs=module.attrs)


def on_the_host(body: tirx.Stmt) -> tirx.Stmt:
    """`body`, whose scratch memory comes from a pool of the CPU's."""
    body = tirx.AttrStmt("default", "device_id", _int(0), body)
    return tirx.AttrStmt("default", "device_type", _int(_CPU), body)


def stages_of(name: str, func: tirx.PrimFunc) -> Stages | None:
    """A lowered kernel (of pointers, `one_function.with_pointers`) as stages; None if it cannot be taken apart."""
    allocations: list[tirx.AllocBuffer] = []
    declarations: list[tirx.DeclBuffer] = []
    groups: list[list[tirx.Stmt]] = []
    alone = False
    for statement in _flatten(func.body):
        if isinstance(statement, tirx.AllocBuffer):
            allocations.append(statement)
        elif isinstance(statement, tirx.DeclBuffer):
            declarations.append(statement)
        elif _is_parallel(statement):
            groups.append([statement])
            alone = False
        elif isinstance(statement, tirx.For | tirx.BufferStore):
            if not alone:
                groups.append([])
            groups[-1].append(statement)
            alone = True
        else:
            return None
    if not groups or any(_has_parallel(s.body if _is_parallel(s) else s) for group in groups for s in group):
        return None
    # A declaration may be another name of an allocation's memory, or a part of it.
    used = [_variables([*group, *_names_in(group, declarations)]) for group in groups]
    own: dict[int, list[tirx.AllocBuffer]] = {number: [] for number in range(len(groups))}
    shared: list[tirx.Buffer] = []
    for allocation in allocations:
        users = [number for number in own if _is_in(allocation.buffer, used[number])]
        if len(users) == 1 and not _is_parallel(groups[users[0]][0]):
            own[users[0]].append(allocation)
        elif users:
            # The tasks of one stage share it, too.
            shared.append(allocation.buffer)
    if sum(map(_aligned_bytes, shared)) > _SHARED_BYTES or any(buffer.scope() != "global" for buffer in shared):
        return None
    pointers = [tirx.Var(b.name, tvm.ir.PointerType(tvm.ir.PrimType(str(b.dtype)), b.scope())) for b in shared]
    beginning = [tirx.DeclBuffer(buffer, data=pointer) for buffer, pointer in zip(shared, pointers, strict=True)]
    stages = []
    for number, group in enumerate(groups):
        loop = group[0] if _is_parallel(group[0]) else None
        task = loop.loop_var if loop is not None else tirx.Var("task", _INT32)
        tasks = loop.extent if loop is not None else tirx.IntImm(_INT32, 1)
        names = _names_in(group, declarations)
        body = [*own[number], *beginning, *names, *([loop.body] if loop is not None else group)]
        function = tirx.PrimFunc([*func.params, *pointers, task], tirx.SeqStmt(body), func.ret_type, func.attrs)
        stages.append(Stage(f"{name}_stage{number}", function, tasks, loop is not None))
    return Stages(tuple(stages), tuple(shared))


def _names_in(group: Sequence[tirx.Stmt], declarations: Sequence[tirx.DeclBuffer]) -> list[tirx.DeclBuffer]:
    """The declarations that `group` needs, in their order."""
    variables = _variables(group)
    return [declaration for declaration in declarations if _is_in(declaration.buffer, variables)]


@dataclass
class _Regions:
    """Rewrites `main_flat`. `whole`: the kernels that are still called; `used`: the stages of the others."""

    staged: dict[str, Stages]
    whole: set[str] = field(default_factory=set)
    used: dict[str, tuple[tvm.ir.GlobalVar, tirx.PrimFunc]] = field(default_factory=dict)

    def rewrite(self, body: tirx.Stmt) -> tirx.Stmt:
        """A body of `main_flat`, with regions in it."""
        done: list[tirx.Stmt] = []
        run: list[tirx.Stmt] = []
        for statement in _flatten(body):
            if self._known(statement):
                run.append(statement)
            elif isinstance(statement, tirx.Bind):
                # Addresses, which nothing that is called changes: they can be known before all of the run.
                done.append(statement)
            else:
                done += self._region(run)
                run = []
                done.append(self._other(statement))
        return tirx.SeqStmt([*done, *self._region(run)])

    def _other(self, statement: tirx.Stmt) -> tirx.Stmt:
        if isinstance(statement, tirx.For):
            # Over the parts of a batch.
            inner = self.rewrite(statement.body)
            return tirx.For(statement.loop_var, statement.min, statement.extent, statement.kind, inner)
        if isinstance(statement, tirx.AttrStmt):
            # The body as TVM's calling convention has it.
            return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, self.rewrite(statement.body))
        return self._plain(statement)

    def _plain(self, statement: tirx.Stmt) -> tirx.Stmt:
        call = _called(statement)
        if call is not None:
            self.whole.add(call.op.name_hint)
        return statement

    def _known(self, statement: tirx.Stmt) -> bool:
        """Whether it is a copy, or the call of a kernel that has stages."""
        call = _called(statement)
        return isinstance(statement, tirx.Evaluate) if call is None else call.op.name_hint in self.staged

    def _launches(self, statement: tirx.Stmt) -> int:
        call = _called(statement)
        return sum(stage.parallel for stage in self.staged[call.op.name_hint].stages) if call is not None else 0

    def _region(self, run: Sequence[tirx.Stmt]) -> list[tirx.Stmt]:
        """`run` with one launch; without a region where that saves none."""
        launching = [number for number, statement in enumerate(run) if self._launches(statement)]
        if sum(map(self._launches, run)) < _FEWEST_LAUNCHES:
            return [self._plain(statement) for statement in run]
        first, end = launching[0], launching[-1] + 1
        before, behind = map(self._plain, run[:first]), map(self._plain, run[end:])
        return [*before, *self._launch(run[first:end]), *behind]

    def _launch(self, run: Sequence[tirx.Stmt]) -> list[tirx.Stmt]:
        # A task cannot leave the region, where the others would wait for it: it says that it failed.
        failed = tirx.decl_buffer((1,), _INT32, "failed")
        names = [call.op.name_hint for statement in run if (call := _called(statement)) is not None]
        shared = [buffer for name in names for buffer in self.staged[name].shared]
        offsets = [0, *itertools.accumulate(map(_aligned_bytes, shared))]
        scratch = tirx.decl_buffer((max(offsets[-1], _FROM_POOL_BYTES),), "uint8", "scratch")
        places = iter([tirx.address_of(tirx.BufferLoad(scratch, [offset])) for offset in offsets[:-1]])
        allocated = [tirx.AllocBuffer(failed), *([tirx.AllocBuffer(scratch)] if shared else [])]
        loops: list[tuple[bool, tirx.Stmt]] = []
        for statement in run:
            call = _called(statement)
            if call is None:
                loops.append((False, _loop(tirx.Var("task", _INT32), _int(1), statement)))
                continue
            kernel = self.staged[call.op.name_hint]
            arguments = [*call.args, *itertools.islice(places, len(kernel.shared))]
            for stage in kernel.stages:
                variable, _ = self.used.setdefault(stage.name, (tvm.ir.GlobalVar(stage.name), stage.function))
                # Of the dtype of the kernel's own loop.
                task = tirx.Var("task", stage.function.params[-1].ty)
                result = tvm.ir.Call(variable, [*arguments, task], ret_ty=_STATUS)
                fails = tirx.IfThenElse(tirx.NE(result, _int(0)), tirx.BufferStore(failed, _int(1), [0]), None)
                goes_on = tirx.EQ(tirx.BufferLoad(failed, [0]), _int(0))
                loops.append((stage.parallel, _loop(task, stage.tasks, tirx.IfThenElse(goes_on, fails, None))))
        phases: list[tirx.Stmt] = []
        for number, (parallel, loop) in enumerate(loops):
            # What is not parallel is done by the first thread, one after another.
            waits = number + 1 < len(loops) and (parallel or loops[number + 1][0])
            phases.append(_pragma("parallel_barrier_when_finish", loop) if waits else loop)
        message = [tvm.ir.StringImm(f"one of the kernels {names[0]} to {names[-1]} failed: out of memory")]
        good = tirx.EQ(tirx.BufferLoad(failed, [0]), _int(0))
        return [
            *allocated,
            tirx.BufferStore(failed, _int(0), [0]),
            _pragma("parallel_launch_point", tirx.SeqStmt(phases)),
            tirx.AssertStmt(good, tvm.ir.StringImm("RuntimeError"), message),
        ]


def _int(value: int) -> tvm.ir.Expr:
    return tirx.IntImm(_INT32, value)


def _loop(task: tirx.Var, tasks: tvm.ir.Expr, body: tirx.Stmt) -> tirx.Stmt:
    return tirx.For(task, tirx.IntImm(str(task.ty.dtype), 0), tasks, tirx.ForKind.PARALLEL, body)


def _pragma(name: str, body: tirx.Stmt) -> tirx.Stmt:
    return tirx.AttrStmt(_int(0), f"pragma_{name}", _int(1), body)


def _flatten(statement: tirx.Stmt) -> list[tirx.Stmt]:
    if isinstance(statement, tirx.SeqStmt):
        return [inner for part in statement.seq for inner in _flatten(part)]
    return [statement]


def _is_parallel(statement: tirx.Stmt) -> bool:
    return isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL


def _has_parallel(statement: tirx.Stmt) -> bool:
    found: list[tirx.For] = []
    structural_walk(statement, (tirx.For, found.append))
    return any(map(_is_parallel, found))


def _variables(statements: Sequence[tirx.Stmt]) -> list[tirx.Var]:
    found: list[tirx.Var] = []
    for statement in statements:
        structural_walk(statement, (tirx.Var, found.append))
    return found


def _is_in(buffer: tirx.Buffer, variables: Sequence[tirx.Var]) -> bool:
    return any(variable.same_as(buffer) for variable in variables)


def _called(statement: tirx.Stmt) -> tvm.ir.Call | None:
    """The call of a kernel that a statement of `main_flat` is: that it returned 0 is asserted."""
    found: list[tvm.ir.Call] = []
    if isinstance(statement, tirx.AssertStmt):
        structural_walk(statement.condition, (tvm.ir.Call, found.append))
    return next((call for call in found if isinstance(call.op, tvm.ir.GlobalVar)), None)


def _aligned_bytes(buffer: tirx.Buffer) -> int:
    return -(-bytes_of(buffer) // ALIGNMENT) * ALIGNMENT
