"""A lowered model as a list of steps: which kernel reads and writes which values, all of them of a fixed size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import tvm
from tvm import relax, tirx

from tvmopt.graph.joining import join_steps
from tvmopt.graph.memory import ALIGNMENT, Life, MemoryPlan, plan_memory
from tvmopt.graph.steps import Step, Value

# Attribute of a module whose `main` is called so many times a call, each time for the next part of the batch.
PARTS = "tvmopt.parts"

# What a variable of `main` stands for: a value, several (nested) ones, or None, which is no tensor.
_Meaning = Any


@dataclass(frozen=True)
class Network:
    """`main` of a lowered module, step by step.

    `weights[i]` is the constant of the value of kind `weight` and index `i`; `plan` has the offset of the value of
    kind `between` and index `i`, whose life is `lives[i]`. All of it is done `parts` times: inputs and outputs are a
    part of the caller's, which lie one behind the other.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    steps: tuple[Step, ...]
    weights: tuple[tvm.ir.GenericConst, ...]
    lives: tuple[Life, ...]
    plan: MemoryPlan
    parts: int = 1

    def describe(self) -> str:
        """The steps and where their values lie, a line each."""
        between = sum(life.size for life in self.lives)
        lines = [f"{self.parts} times:"] if self.parts > 1 else []
        lines += [f"workspace: {self.plan.size} bytes for {len(self.lives)} values of {between} bytes in all"]
        for number, step in enumerate(self.steps):
            reads, writes = (", ".join(map(self._place, values)) for values in (step.reads, step.writes))
            lines.append(f"{number}: {step.kernel or 'copy'}: {reads} -> {writes}")
        return "\n".join(lines)

    def _place(self, value: Value) -> str:
        if value.kind != "between":
            return f"{value.kind} {value.index}"
        offset = self.offset(value)
        return f"[{offset}, {offset + value.size})"

    def offset(self, value: Value) -> int:
        """Where in the workspace a value of kind `between` begins, in bytes."""
        return self.plan.offsets[value.index] + value.offset


class Unsupported(Exception):
    """What in `main` cannot be written as steps; the virtual machine runs such a model."""


def read_network(module: tvm.IRModule) -> Network:
    """The steps of `main` of a module lowered to kernels, and the plan of the memory between them.

    Raises:
        Unsupported: `main` does something else than to call kernels on tensors whose shapes are known.
    """
    return _Reader(module).network()


@dataclass
class _Reader:
    """Reads `main` once, from its first binding to its last. A value gets its kind when all is read."""

    module: tvm.IRModule
    meanings: dict[tvm.ir.Var, _Meaning] = field(default_factory=dict)
    weights: list[tvm.ir.GenericConst] = field(default_factory=list)
    between: int = 0
    steps: list[Step] = field(default_factory=list)

    def network(self) -> Network:
        main = self.module["main"]
        attributes = self.module.attrs
        parts = int(attributes[PARTS]) if attributes is not None and PARTS in attributes else 1
        inputs = tuple(self._value("input", i, param.ty) for i, param in enumerate(main.params))
        self.meanings.update(zip(main.params, map(self._aligned, inputs) if parts > 1 else inputs, strict=True))
        for block in main.body.blocks:
            for binding in block.bindings:
                if not isinstance(binding, relax.VarBinding):
                    raise Unsupported(f"a {type(binding).__name__}")
                self.meanings[binding.var] = self._bound(binding.value, binding.var.ty)
        outputs = self._hand_out(_tensors(self._meaning(main.body.body)), whole=parts == 1)
        self.steps = join_steps(self.steps, self.module)
        lives = self._lives()
        return Network(inputs, outputs, tuple(self.steps), tuple(self.weights), lives, plan_memory(lives), parts)

    def _aligned(self, given: Value) -> Value:
        """An input's part where kernels can read it: a copy, if not every part begins where they expect."""
        if given.size % ALIGNMENT == 0:
            return given
        copy = replace(given, kind="between", index=self.between)
        self.between += 1
        self.steps.append(Step(None, (given,), (copy,)))
        return copy

    def _bound(self, value: tvm.ir.Expr, annotation: tvm.ir.Type) -> _Meaning:
        if not isinstance(value, relax.Call):
            return self._meaning(value)
        name = getattr(value.op, "name", "a call")
        if name == "relax.null_value":
            return None
        if name == "relax.reshape":
            # The same bytes in another shape.
            return self._meaning(value.args[0])
        if name != "relax.call_tir" or len(value.args) != 2:
            raise Unsupported(name)
        reads = tuple(_tensors(self._meaning(value.args[1])))
        parts = list(annotation.fields) if isinstance(annotation, tvm.ir.TupleType) else [annotation]
        writes = []
        for part in parts:
            writes.append(self._value("between", self.between, part))
            self.between += 1
        self.steps.append(Step(value.args[0].name_hint, reads, tuple(writes)))
        return tuple(writes) if isinstance(annotation, tvm.ir.TupleType) else writes[0]

    def _meaning(self, expr: tvm.ir.Expr) -> _Meaning:
        if isinstance(expr, tvm.ir.Tuple):
            return tuple(self._meaning(part) for part in expr.fields)
        if isinstance(expr, tvm.ir.TupleGetItem):
            return self._meaning(expr.tuple_value)[expr.index]
        if isinstance(expr, tvm.ir.GenericConst):
            known = next((i for i, weight in enumerate(self.weights) if weight.same_as(expr)), None)
            if known is None:
                known = len(self.weights)
                self.weights.append(expr)
            return self._value("weight", known, expr.ty)
        if isinstance(expr, relax.Call):
            return self._bound(expr, expr.ty)
        if expr not in self.meanings:
            raise Unsupported(f"a {type(expr).__name__}")
        return self.meanings[expr]

    def _value(self, kind: str, index: int, annotation: tvm.ir.Type) -> Value:
        shape = getattr(annotation, "shape", None)
        if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(n, tirx.IntImm) for n in shape):
            raise Unsupported("a value whose shape is not known")
        return Value(kind, index, tuple(int(n) for n in shape), str(annotation.dtype))

    def _hand_out(self, returned: list[Value], whole: bool) -> tuple[Value, ...]:
        """Makes the values returned outputs, which kernels write directly.

        What no kernel of ours writes (an input, a weight) or what is returned a second time is copied, so that no
        output shares its memory with anything. So is a part of an output (not `whole`) that may begin anywhere.
        """
        direct: dict[Value, Value] = {}
        outputs, copies = [], []
        for index, value in enumerate(returned):
            output = Value("output", index, value.shape, value.dtype)
            outputs.append(output)
            aligned = whole or value.size % ALIGNMENT == 0
            if value.kind == "between" and value not in direct and aligned:
                direct[value] = output
            else:
                copies.append(Step(None, (value,), (output,)))
        self.steps = [
            Step(
                step.kernel,
                tuple(direct.get(value, value) for value in step.reads),
                tuple(direct.get(value, value) for value in step.writes),
            )
            for step in [*self.steps, *copies]
        ]
        return tuple(outputs)

    def _lives(self) -> tuple[Life, ...]:
        """The lives of the values between kernels, which are numbered anew: some became outputs, or parts of others.

        A joined value lives from the first of its parts that is written to the last that is read.
        """
        spans: dict[int, Life] = {}
        for number, step in enumerate(self.steps):
            for value in (*step.reads, *step.writes):
                if value.kind == "between":
                    end = value.offset + value.size
                    known = spans.get(value.index, Life(end, number, number))
                    spans[value.index] = Life(max(known.size, end), known.first, number)
        numbers = {index: number for number, index in enumerate(spans)}

        def renamed(value: Value) -> Value:
            return replace(value, index=numbers[value.index]) if value.kind == "between" else value

        self.steps = [
            Step(step.kernel, tuple(map(renamed, step.reads)), tuple(map(renamed, step.writes))) for step in self.steps
        ]
        return tuple(spans.values())


def _tensors(meaning: _Meaning) -> list[Value]:
    """The values in a meaning, in order. What is no tensor (None) is known to the signature."""
    if meaning is None:
        return []
    if isinstance(meaning, tuple):
        return [value for part in meaning for value in _tensors(part)]
    return [meaning]
