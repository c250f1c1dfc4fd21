"""Sums over a window that reaches over the edge of an image: what lies outside is left out, not multiplied.

A schedule that reads the input as it is, without a copy that has a border of zeros, leaves an "is it inside?" at every
multiply-add: sum = sum + (inside ? input : 0) * weights. Here the conditions that all multiply-adds of a row of pixels
share (the window's row is outside) become one branch around them, and what is left (the window's column is, for the
first or the last pixel) a branch around a single one. A processor foresees both where taps follow one another that are
outside for the same pixels. It is done when the loops over the tile are unrolled and its lanes are vectors.

0 * weights is taken to be 0, which it is of finite weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm_ffi import structural_equal, structural_map

# A branch is for several multiply-adds.
_FEWEST_GUARDED = 2


@tirx.transform.prim_func_pass(opt_level=0, name="tvmopt.SkipBorders")
def skip_borders(func: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Turns guarded multiply-adds that stand one after another into guarded groups of them."""
    return func.with_body(structural_map(func.body, (tirx.SeqStmt, _grouped)))


@dataclass(frozen=True)
class _Guarded:
    """buffer[index] = buffer[index] + broadcast(all(conditions) ? load : 0) * weights"""

    store: tirx.BufferStore
    conditions: tuple[tvm.ir.Expr, ...]
    load: tvm.ir.TensorLoad
    lanes: tvm.ir.Expr
    weights: tvm.ir.Expr

    def without(self, known: Sequence[tvm.ir.Expr]) -> tirx.Stmt:
        """The statement where `known` of its conditions are true."""
        product = tirx.Broadcast(self.load, self.lanes) * self.weights
        store = tirx.BufferStore(self.store.buffer, self.store.value.a + product, self.store.indices)
        left = [one for one in self.conditions if not _is_among(one, known)]
        return tirx.IfThenElse(_all(left), store, None) if left else store


def _grouped(sequence: tirx.SeqStmt) -> tirx.Stmt:
    done: list[tirx.Stmt] = []
    run: list[_Guarded] = []
    shared: list[tvm.ir.Expr] = []
    for statement in sequence.seq:
        guarded = _guarded(statement)
        if guarded is None:
            done += _branch(run, shared)
            run = []
            done.append(statement)
            continue
        both = [one for one in shared if _is_among(one, guarded.conditions)]
        if not run or not both:
            done += _branch(run, shared)
            run, both = [], list(guarded.conditions)
        run.append(guarded)
        shared = both
    done += _branch(run, shared)
    return tirx.SeqStmt(done)


def _branch(run: Sequence[_Guarded], shared: Sequence[tvm.ir.Expr]) -> list[tirx.Stmt]:
    """`run` behind a branch on what they share; one by itself has none."""
    if len(run) < _FEWEST_GUARDED:
        return [one.without(()) for one in run]
    return [tirx.IfThenElse(_all(shared), tirx.SeqStmt([one.without(shared) for one in run]), None)]


def _guarded(statement: tirx.Stmt) -> _Guarded | None:
    """A multiply-add whose input may be outside of the image."""
    if not isinstance(statement, tirx.BufferStore) or not isinstance(statement.value, tirx.Add):
        return None
    before, product = statement.value.a, statement.value.b
    same = isinstance(before, tvm.ir.TensorLoad) and before.source.same_as(statement.buffer)
    if not same or not all(map(structural_equal, before.indices, statement.indices)):
        return None
    if not isinstance(product, tirx.Mul) or not isinstance(product.a, tirx.Broadcast):
        return None
    choice = product.a.value
    if not isinstance(choice, tvm.ir.Call) or getattr(choice.op, "name", "") != "prim.if_then_else":
        return None
    condition, load, otherwise = choice.args
    zero = isinstance(otherwise, tirx.FloatImm) and float(otherwise.value) == 0.0
    if not zero or not isinstance(load, tvm.ir.TensorLoad):
        return None
    return _Guarded(statement, tuple(_parts(condition)), load, product.a.lanes, product.b)


def _parts(condition: tvm.ir.Expr) -> list[tvm.ir.Expr]:
    if isinstance(condition, tirx.And):
        return [*_parts(condition.a), *_parts(condition.b)]
    return [condition]


def _is_among(one: tvm.ir.Expr, several: Sequence[tvm.ir.Expr]) -> bool:
    return any(structural_equal(one, other) for other in several)


def _all(conditions: Sequence[tvm.ir.Expr]) -> tvm.ir.Expr:
    first, *others = conditions
    for other in others:
        first = tirx.And(first, other)
    return first
