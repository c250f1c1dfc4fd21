"""Kernels: the distinct TensorIR functions of a lowered module, each an operator with its fused epilogue."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tvm
from tvm import relax, tirx
from tvm_ffi import structural_hash, structural_walk

from tvmopt.graph.network import Unsupported, read_network
from tvmopt.operators import ANCHORS, FLOPS_ATTR, GEOMETRY_ATTR, OFFSETS_ATTR
from tvmopt.operators.dense import Dense
from tvmopt.operators.sparse import random_offsets
from tvmopt.operators.unstructured import is_described, random_rows

# Stages of element-wise kernels, by which a kernel without an anchor is named in tables.
_KINDS = (("pool", "pool2d"), ("concat", "concat"), ("softmax", "softmax"), ("unpack", "layout"), ("pack", "layout"))


@dataclass(frozen=True)
class Kernel:
    """One PrimFunc of the lowered module.

    name: its global symbol in the module. func: the unscheduled function. op: the name of its anchor block, or of
    what it does (`pool2d`, `reduce`, `elementwise`, ...). calls: how often the network calls it. flops: useful
    multiplications and additions of one call. bytes: size of all its inputs and outputs, each counted once.
    """

    name: str
    func: tirx.PrimFunc
    op: str
    calls: int
    flops: int
    bytes: int

    @cached_property
    def key(self) -> str:
        """16 hex digits that tell kernels apart by what they compute, whatever they are called."""
        plain = self.func.without_attr("global_symbol") if _has(self.func, "global_symbol") else self.func
        return f"{structural_hash(plain) & 0xFFFFFFFFFFFFFFFF:016x}"

    @cached_property
    def geometry(self) -> str | None:
        """The sizes of the convolution or the dense layer that is its anchor, as text; None for other kernels."""
        return geometry_of(self.func)

    @cached_property
    def written(self) -> float:
        """The part of `bytes` that it writes: its output, the last parameter."""
        return _size(self.func.params[-1]) / max(self.bytes, 1)

    @cached_property
    def shape(self) -> str:
        """The shapes of its parameters, for tables: inputs -> output."""
        shapes = ["x".join(str(int(d)) for d in p.shape) or "scalar" for p in self.func.params]
        return ", ".join(shapes[:-1]) + " -> " + shapes[-1]


def _has(func: tirx.PrimFunc, attr: str) -> bool:
    return func.attrs is not None and attr in func.attrs


def block_name(block: tvm.s_tir.SBlock) -> str:
    """The name of a block without the suffix fusion gives a second one of the same name."""
    head, _, tail = block.name_hint.rpartition("_")
    return head if head and tail.isdigit() else block.name_hint


def find_blocks(func: tirx.PrimFunc) -> list[tvm.s_tir.SBlock]:
    """All blocks of `func` but the root, in the order they stand."""
    found: list[tvm.s_tir.SBlock] = []
    structural_walk(func.body, (tvm.s_tir.SBlock, found.append))
    return [block for block in found if block.name_hint != "root"]


def _reduces(block: tvm.s_tir.SBlock) -> bool:
    return any(int(iv.iter_type) == tirx.IterVar.CommReduce for iv in block.iter_vars)


def _constant_extent(extent: object) -> int:
    """An extent, or 1 for one that depends on another loop (average pooling at a border)."""
    return int(extent) if isinstance(extent, tirx.IntImm) else 1


def describe(func: tirx.PrimFunc) -> tuple[str, int]:
    """What `func` does (`Kernel.op`) and how many useful operations one call takes."""
    found = find_blocks(func)
    flops = 0
    op = ""
    for block in found:
        extents = [_constant_extent(iv.dom.extent) for iv in block.iter_vars]
        name = block_name(block)
        if name in ANCHORS:
            op, flops = name, flops + int(block.annotations.get(FLOPS_ATTR, 2 * math.prod(extents)))
        elif _reduces(block):
            flops += int(block.annotations.get(FLOPS_ATTR, math.prod(extents)))
    if op:
        return op, flops
    names = " ".join(block.name_hint for block in found)
    for word, kind in _KINDS:
        if word in names:
            return kind, flops
    return ("reduce" if any(_reduces(block) for block in found) else "elementwise"), flops


def geometry_of(func: tirx.PrimFunc) -> str | None:
    """`Kernel.geometry` of a function that is not scheduled; with what is kept where it skips zeros."""
    blocks = {block_name(block): block for block in find_blocks(func)}
    for block in blocks.values():
        if GEOMETRY_ATTR in block.annotations:
            return str(block.annotations[GEOMETRY_ATTR])
    # Dense products have no such annotation: a packed one would be another kernel than the tuning logs have.
    if "gemm" in blocks:
        _, rows, columns, depth = (int(iv.dom.extent) for iv in blocks["gemm"].iter_vars)
        return Dense(rows, depth, columns).geometry
    if not {"dense", "unblock"} <= set(blocks):
        return None
    *lead, columns = (int(iv.dom.extent) for iv in blocks["unblock"].iter_vars)
    depth = int(blocks["dense"].iter_vars[-1].dom.extent)
    return Dense(math.prod(lead), depth, columns).geometry


def random_integers(func: tirx.PrimFunc, shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Values for an integer parameter of `func`: offsets where it takes those, else 0 or 1, as in a mask."""
    for block in find_blocks(func):
        if OFFSETS_ATTR not in block.annotations:
            continue
        described = str(block.annotations[OFFSETS_ATTR])
        if is_described(described):
            return random_rows(described, shape, generator)
        return random_offsets(described, shape, generator)
    return generator.integers(0, 2, shape)


def bytes_moved(func: tirx.PrimFunc) -> int:
    """Bytes of all parameters of `func`, each counted once: the least it must read and write."""
    return sum(_size(param) for param in func.params)


def _size(parameter: tirx.Var) -> int:
    return math.prod(int(d) for d in parameter.shape) * tvm.DataType(str(parameter.dtype)).bits // 8


def count_calls(mod: tvm.IRModule) -> Counter[str]:
    """How often `main` calls each PrimFunc."""
    calls: Counter[str] = Counter()
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                calls[value.args[0].name_hint] += 1
    return calls


def extract_kernels(mod: tvm.IRModule) -> list[Kernel]:
    """The kernels of a lowered module, in the order `main` first calls them; not those whose work is not needed."""
    try:
        steps = read_network(mod).steps
        calls = Counter(step.kernel for step in steps if step.kernel is not None)
    except Unsupported:
        calls = count_calls(mod)
    kernels = []
    functions = {var.name_hint: func for var, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)}
    for name in calls:
        if name in functions:
            op, flops = describe(functions[name])
            kernels.append(Kernel(name, functions[name], op, calls[name], flops, bytes_moved(functions[name])))
    return kernels
