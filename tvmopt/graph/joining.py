"""Concatenation without a copy: what is to stand side by side is written side by side.

With a batch of one, images that are concatenated by channels lie one behind the other in the result. So the kernels
that compute them are given addresses inside the result, and the step that would have copied them is gone. In a chain of
concatenations, each with what came before and something new (DenseNet), the last and longest is the place of all, and
the others are its beginnings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import tvm
from tvm import tirx
from tvm_ffi import structural_walk

from tvmopt.graph.memory import ALIGNMENT
from tvmopt.graph.steps import Step, Value


def join_steps(steps: Sequence[Step], module: tvm.IRModule) -> list[Step]:
    """`steps` without the copying ones that need not be, and the values they copied inside those they were copied to.

    `module` has the kernels, scheduled or not.
    """
    written = {value for step in steps for value in step.writes}
    places = _Places()
    kept = []
    # Backwards: the longest of a chain comes last, and decides.
    for step in reversed(steps):
        if not (_joins(step, module) and places.join(step, written)):
            kept.append(step)
    return [
        Step(step.kernel, tuple(map(places.of, step.reads)), tuple(map(places.of, step.writes)))
        for step in reversed(kept)
    ]


@dataclass
class _Places:
    """Value -> the one it lies in, and how many bytes from its beginning."""

    inside: dict[Value, tuple[Value, int]] = field(default_factory=dict)

    def join(self, step: Step, written: set[Value]) -> bool:
        """Puts what `step` reads inside what it writes, if that can be; it need not be run then."""
        (result,) = step.writes
        if all(part in written and part.kind == "between" and part not in self.inside for part in step.reads):
            offset = 0
            for part in step.reads:
                self.inside[part] = (result, offset)
                offset += part.size
            return True
        # All of them may be there already, in this order, as the beginning of a longer one.
        owner, offset = self.inside.get(step.reads[0], (None, 0))
        begin = offset
        for part in step.reads:
            if owner is None or self.inside.get(part) != (owner, offset):
                return False
            offset += part.size
        if owner is None or result.kind != "between" or result in self.inside:
            return False
        self.inside[result] = (owner, begin)
        return True

    def of(self, value: Value) -> Value:
        """The same value where it lies now."""
        owner, offset = value, 0
        while owner in self.inside:
            owner, inside = self.inside[owner]
            offset += inside
        return value if owner is value else replace(value, kind=owner.kind, index=owner.index, offset=offset)


def _joins(step: Step, module: tvm.IRModule) -> bool:
    """Whether all a step does is to put what it reads one behind the other."""
    if step.kernel is None or len(step.writes) != 1 or len(set(step.reads)) != len(step.reads) or len(step.reads) < 2:
        return False
    if any(part.size % ALIGNMENT for part in step.reads):
        return False
    func = module[step.kernel]
    # As the kernel sees them: a value may have been given another shape on the way.
    *parts, result = (tuple(int(extent) for extent in param.shape) for param in func.params)
    if any(len(part) != len(result) for part in parts):
        return False
    axes = {axis for part in parts for axis in range(len(result)) if part[axis] != result[axis]}
    if len(axes) != 1:
        return False
    (axis,) = axes
    whole = sum(part[axis] for part in parts) == result[axis]
    return whole and math.prod(result[:axis]) == 1 and _copies(func)


def _copies(func: tirx.PrimFunc) -> bool:
    """Whether a kernel is one concatenation, with nothing computed on the way."""
    found: list[tvm.s_tir.SBlock] = []
    structural_walk(func.body, (tvm.s_tir.SBlock, found.append))
    blocks = [block for block in found if block.name_hint != "root"]
    if len(blocks) != 1 or blocks[0].name_hint not in ("concat", "T_concat"):
        return False
    body = blocks[0].body
    return isinstance(body, tirx.BufferStore) and _is_choice(body.value)


def _is_choice(value: tvm.ir.Expr) -> bool:
    """Whether an expression is one of several loads, chosen by where it is."""
    if isinstance(value, tvm.ir.TensorLoad):
        return True
    if isinstance(value, tirx.Select):
        return _is_choice(value.true_value) and _is_choice(value.false_value)
    if isinstance(value, tvm.ir.Call) and getattr(value.op, "name", "") == "prim.if_then_else":
        return all(_is_choice(part) for part in list(value.args)[1:])
    return False
