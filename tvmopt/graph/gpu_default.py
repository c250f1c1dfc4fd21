"""Phase 5 on a GPU, for kernels with no rule and no record: TVM's dlight, and our own plain schedule where it declines.

On a GPU a kernel without a schedule does not run at all: a loop that is bound to no thread is refused. So every kernel
gets one here, and `unbound` says which have none.
"""

from __future__ import annotations

import copy

import tvm
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule, dlight
from tvm_ffi import structural_walk

# TVM's mark of a function that has its schedule.
SCHEDULED = "tirx.is_scheduled"
_THREADS = 256


def schedule_default(func: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    """`func`, unscheduled, as the first of dlight's rules that takes it schedules it; else by `schedule_plainly`."""
    # A rule changes a function in place, and may fail with that half done.
    named = func.with_attr("global_symbol", "main")
    default = dlight.ApplyDefaultSchedule(
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    )
    try:
        with target:
            made = default(tvm.IRModule({"main": copy.deepcopy(named)}))["main"]
    except AssertionError:
        # dlight's Matmul asserts, where it should decline, that a product's consumers can be inlined (Winograd's not).
        made = named
    if unbound(made):
        made = schedule_plainly(named)
    return made.without_attr("global_symbol").with_attr(SCHEDULED, True)


def schedule_plainly(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A thread for every output of every stage; each stage is a launch of its own, as the code generator splits it."""
    sch = Schedule(tvm.IRModule({"main": func}))
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        loops = sch.get_loops(block) or [sch.add_unit_loop(block)]
        kinds = [int(iv.iter_type) for iv in sch.get(block).iter_vars]
        spatial = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == tirx.IterVar.DataPar]
        if len(kinds) != len(loops) or not spatial:
            spatial = [sch.add_unit_loop(loops[0])] if kinds else loops
        sch.reorder(*spatial)
        outer, inner = sch.split(sch.fuse(*spatial), [None, _THREADS])
        sch.bind(outer, "blockIdx.x")
        sch.bind(inner, "threadIdx.x")
    return sch.mod["main"]


def is_scheduled(func: tirx.PrimFunc) -> bool:
    """Whether a schedule was made for `func`."""
    return func.attrs is not None and SCHEDULED in func.attrs and bool(func.attrs[SCHEDULED])


def unbound(func: tirx.PrimFunc) -> list[str]:
    """The names of blocks of `func` that no thread of a GPU runs: each must be inside a loop bound to one."""
    found: list[str] = []

    def visit(statement: object, bound: bool) -> None:
        if isinstance(statement, SBlockRealize):
            block = statement.block
            nested: list[object] = []
            structural_walk(block.body, (SBlock, nested.append))
            if not nested and not bound:
                found.append(block.name_hint)
            visit(block.body, bound)
        elif isinstance(statement, tirx.For):
            binds = statement.thread_binding is not None
            visit(statement.body, bound or binds)
        elif isinstance(statement, tirx.AttrStmt):
            # As TVMScript written by hand binds them.
            visit(statement.body, bound or statement.attr_key == "thread_extent")
        elif isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                visit(part, bound)
        elif isinstance(statement, tirx.IfThenElse):
            visit(statement.then_case, bound)
            if statement.else_case is not None:
                visit(statement.else_case, bound)
        elif hasattr(statement, "body"):
            visit(statement.body, bound)

    visit(func.body, False)
    return found
