"""A product of two matrices that lie in memory as they are multiplied, read from the kernel that computes it.

What a kernel that is written out needs to know (wgmma_kernel.py), where others let TensorIR find it: the two operands'
buffers, and the epilogue as a function of a sum. A linear layer over several leading axes, or a 1x1 convolution without
stride or border, is such a product too: its buffers have more axes, but the same elements in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.s_tir import SBlock
from tvm.sym import Analyzer
from tvm_ffi import structural_map, structural_walk


@dataclass(frozen=True)
class Matrices:
    """`output[row, column] = epilogue(sum over k of left[row, k] * right[k, column])`.

    `block` is the one that writes the output, over rows and columns; in it the sums are read from `sums`.
    """

    left: Any
    right: Any
    rows: int
    columns: int
    depth: int
    block: Any
    sums: Any

    def at(self, expression: Any, row: Any, column: Any, value: Any = None) -> Any:
        """`expression`, one of the output's block, at (row, column), where the sum is `value`."""
        variables = [iv.var for iv in self.block.iter_vars]

        def replaced(node: Any) -> Any:
            if isinstance(node, TensorLoad):
                return value if node.source.same_as(self.sums) else node
            for variable, place in zip(variables, (row, column), strict=True):
                if node.same_as(variable):
                    return tirx.Cast(str(node.ty.dtype), place)
            return node

        return structural_map(expression, ((TensorLoad, tirx.Var), replaced))


def read(func: tirx.PrimFunc, anchor: str, output: str) -> Matrices | None:
    """What `func` computes with the product `anchor` and the block `output`, into which all after it is inlined.

    None where an operand is no matrix in memory, or the epilogue reads anything but its own sum and parameters.
    """
    found: list[Any] = []
    structural_walk(func.body, (SBlock, found.append))
    blocks = {block.name_hint: block for block in found}
    product, last = blocks[anchor], blocks[output]
    batch, rows, columns, depth = (int(iv.dom.extent) for iv in product.iter_vars)
    left, right = (
        _matrix(func, next((b for b in found if b.writes and b.writes[0].source.same_as(read.source)), None), width)
        for read, width in zip(product.reads, (depth, columns), strict=True)
    )
    sums = product.writes[0].source
    if batch != 1 or left is None or right is None or [int(iv.dom.extent) for iv in last.iter_vars] != [rows, columns]:
        return None
    if not isinstance(last.body, tirx.BufferStore) or not _is_epilogue(func, last, sums):
        return None
    return Matrices(left, right, rows, columns, depth, last, sums)


def _matrix(func: tirx.PrimFunc, stage: Any, width: int) -> Any | None:
    """The parameter of which `stage`, over (batch, i, j), copies element i * `width` + j; None where it does not."""
    load = getattr(stage.body, "value", None) if stage is not None else None
    if not isinstance(load, TensorLoad) or not any(load.source.same_as(param) for param in func.params):
        return None
    analyzer = Analyzer()
    for iv in stage.iter_vars:
        analyzer.bind(iv.var, iv.dom)
    place: Any = 0
    for index, extent in zip(load.indices, load.source.shape, strict=True):
        place = place * int(extent) + index
    _, i, j = (iv.var for iv in stage.iter_vars)
    return load.source if analyzer.can_prove_equal(place, i * width + j) else None


def _is_epilogue(func: tirx.PrimFunc, block: Any, sums: Any) -> bool:
    """Whether each element that `block` writes is of its own sum, and of parameters, alone."""
    loads: list[Any] = []
    structural_walk(block.body.value, (TensorLoad, loads.append))
    own = [load for load in loads if load.source.same_as(sums)]
    others = [load for load in loads if not load.source.same_as(sums)]
    row, column = (iv.var for iv in block.iter_vars)
    analyzer = Analyzer()
    for iv in block.iter_vars:
        analyzer.bind(iv.var, iv.dom)
    at_home = all(
        analyzer.can_prove_equal(load.indices[1], row) and analyzer.can_prove_equal(load.indices[2], column)
        for load in own
    )
    return bool(own) and at_home and all(any(x.source.same_as(p) for p in func.params) for x in others)
