"""Sums over rows of unequal length (operators/unstructured.py): a loop as long as the row, without a condition in it.

TE has loops of constant extents only: the sum runs over all a row could have, and what is behind its end is zero by a
condition at every multiply-add. When loops are unrolled and lanes are vectors, every statement of the loop's body is
sum = sum + (k < length ? product : 0), and the loop becomes one over the length.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import tirx
from tvm_ffi import structural_equal, structural_map, structural_walk


@tirx.transform.prim_func_pass(opt_level=0, name="tvmopt.RaggedLoops")
def ragged_loops(func: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Shortens loops whose whole body is conditional on their variable being under a bound."""
    return func.with_body(structural_map(func.body, (tirx.For, _shortened)))


def _shortened(loop: tirx.For) -> tirx.Stmt:
    if not isinstance(loop.min, tirx.IntImm) or int(loop.min) != 0:
        return loop
    statements = list(loop.body.seq) if isinstance(loop.body, tirx.SeqStmt) else [loop.body]
    stores = [statement for statement in statements if not isinstance(statement, tirx.Bind)]
    stripped = [_strip(store, loop.loop_var) for store in stores]
    bounds = [bound for _, bound in stripped if bound is not None]
    if not bounds or len(bounds) < len(stores) or not all(structural_equal(bounds[0], bound) for bound in bounds):
        return loop
    written = [store.buffer for store in stores]
    # What statements share has a name. The bound can only be of names that stay: these are given before the loop.
    changing, before, inside = [loop.loop_var], [], []
    without = iter(stripped)
    for statement in statements:
        if not isinstance(statement, tirx.Bind):
            inside.append(next(without)[0])
        elif _depends(statement.value, changing, written):
            changing.append(statement.var)
            inside.append(statement)
        else:
            before.append(statement)
    if _depends(bounds[0], changing, written):
        return loop
    length = tirx.Min(loop.extent, bounds[0])
    shorter = tirx.For(
        loop.loop_var, loop.min, length, loop.kind, _in_turn(inside), loop.thread_binding, loop.annotations
    )
    return _in_turn([*before, shorter])


def _in_turn(statements: Sequence[tirx.Stmt]) -> tirx.Stmt:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def _strip(statement: tirx.Stmt, variable: tirx.Var) -> tuple[tirx.Stmt, tvm.ir.Expr | None]:
    """buffer = buffer + (variable < bound ? x : 0) as (buffer = buffer + x, bound); None where it is anything else."""
    if not isinstance(statement, tirx.BufferStore) or not isinstance(statement.value, tirx.Add):
        return statement, None
    before, choice = statement.value.a, statement.value.b
    same = isinstance(before, tvm.ir.TensorLoad) and before.source.same_as(statement.buffer)
    if not same or not all(map(structural_equal, before.indices, statement.indices)):
        return statement, None
    if not isinstance(choice, tvm.ir.Call) or getattr(choice.op, "name", "") != "prim.if_then_else":
        return statement, None
    condition, value, otherwise = choice.args
    if not isinstance(condition, tirx.LT) or not condition.a.same_as(variable) or not _is_zero(otherwise):
        return statement, None
    return tirx.BufferStore(statement.buffer, before + value, statement.indices), condition.b


def _is_zero(value: tvm.ir.Expr) -> bool:
    scalar = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(scalar, tirx.FloatImm) and float(scalar.value) == 0.0


def _depends(value: tvm.ir.Expr, variables: Sequence[tirx.Var], written: Sequence[tirx.Buffer]) -> bool:
    """Whether `value` is made of any of `variables`, or of memory that is `written`."""
    used: list[tirx.Var] = []
    loads: list[tvm.ir.TensorLoad] = []
    structural_walk(value, (tirx.Var, used.append))
    structural_walk(value, (tvm.ir.TensorLoad, loads.append))
    return any(one.same_as(other) for one in used for other in variables) or any(
        load.source.same_as(buffer) for load in loads for buffer in written
    )
