"""What kernels over rows have in common: which stages there are, and each of them as a loop over rows and one in a row.

    reductions   one value a row, of all its elements (the last axes of what is read)
    full         a stage with all elements: what stands before a reduction, the powers of a softmax, the result
    scalars      a stage with one value a row: a mean, made of a sum; always computed where it is used
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import DataType
from tvm.s_tir import Schedule
from tvm.tirx import IndexMap

from ..cpu.common import block_names, extents, is_reduction

# tvm.tirx.IterVar's DataPar and CommReduce.
SPATIAL, REDUCED = 0, 2


@dataclass(frozen=True)
class Rows:
    """`count` rows of `length` elements, the widest of `dtype`; the stages by kind, as they stand."""

    count: int
    length: int
    dtype: str
    reductions: tuple[str, ...]
    full: tuple[str, ...]
    scalars: tuple[str, ...]
    output: str


def match_rows(sch: Schedule) -> Rows | None:
    """The stages of a kernel all of whose reductions are over the same last axes; None for any other."""
    names = block_names(sch)
    outputs = [sch.get(block).name_hint for block in sch.get_output_blocks("root")]
    reductions = [name for name in names if is_reduction(sch, sch.get_sblock(name))]
    found = {_reduced(sch, name) for name in reductions}
    shape = found.pop() if len(found) == 1 else None
    if shape is None or len(outputs) != 1:
        return None
    count, length = shape
    full: list[str] = []
    scalars: list[str] = []
    widths: list[tuple[int, str]] = []
    for name in names:
        stage = sch.get(sch.get_sblock(name))
        widths += [(DataType(str(x.source.dtype)).bits, str(x.source.dtype)) for x in (*stage.reads, *stage.writes)]
        if name in reductions:
            continue
        sizes = [int(iv.dom.extent) for iv in stage.iter_vars]
        if extents(sch, sch.get_sblock(name)) != sizes or cut(sizes, count, math.prod(sizes) // count) is None:
            return None
        kind = {count * length: full, count: scalars}.get(math.prod(sizes))
        if kind is None:
            return None
        kind.append(name)
    dtype = max(widths)[1]
    return Rows(count, length, dtype, tuple(reductions), tuple(full), tuple(scalars), outputs[0])


def results_first(sch: Schedule, name: str) -> tuple[Any, list[int], int] | None:
    """Of a reduction of one result whose reduced axes are its last: the stage, its extents, the first reduced axis."""
    block = sch.get_sblock(name)
    stage = sch.get(block)
    kinds = [int(iv.iter_type) for iv in stage.iter_vars]
    sizes = [int(iv.dom.extent) for iv in stage.iter_vars]
    # An index with its value is two results.
    if kinds != sorted(kinds) or SPATIAL not in kinds or len(stage.writes) != 1 or extents(sch, block) != sizes:
        return None
    return stage, sizes, kinds.index(REDUCED)


def _reduced(sch: Schedule, name: str) -> tuple[int, int] | None:
    """Rows and elements of a reduction over the last axes of what it reads; None for another one."""
    found = results_first(sch, name)
    if found is None:
        return None
    stage, sizes, first = found
    count, length = math.prod(sizes[:first]), math.prod(sizes[first:])
    # The axis whose neighbours are neighbours in memory; a row of one element has none.
    inner = [iv.var for iv, size in zip(stage.iter_vars[first:], sizes[first:], strict=True) if size > 1]
    whole = [r for r in stage.reads if math.prod(map(int, r.source.shape)) == count * length]
    if not inner or not whole or not all(read.region[-1].min.same_as(inner[-1]) for read in whole):
        return None
    return count, length


def cut(sizes: Sequence[int], count: int, length: int) -> int | None:
    """Where axes of `sizes` are cut into rows and their elements; None where they are not."""
    cuts = [i for i in range(len(sizes) + 1) if math.prod(sizes[:i]) == count and math.prod(sizes[i:]) == length]
    # Axes of one element belong to the rows.
    return cuts[-1] if cuts else None


def join(index: Sequence[Any], sizes: Sequence[int]) -> Any:
    """The row-major index of `index`."""
    joined: Any = 0
    for number, (i, size) in enumerate(zip(index, sizes, strict=True)):
        joined = joined * size + i if number else i
    return joined


def flatten(sch: Schedule, name: str, rows: Rows) -> None:
    """Rewrite a stage's loops, and its buffer unless it is the output's, as rows and (where it has them) elements."""
    block = sch.get_sblock(name)
    iters = sch.get(block).iter_vars
    sizes = [int(iv.dom.extent) for iv in iters]
    if REDUCED in (kinds := [int(iv.iter_type) for iv in iters]):
        at = kinds.index(REDUCED)
    else:
        at = cut(sizes, rows.count, math.prod(sizes) // rows.count) or 0
    sch.transform_block_layout(block, IndexMap.from_func(grouped(sizes, at), len(sizes), index_dtype=dtype_of(iters)))
    if name != sch.get(sch.get_output_blocks("root")[0]).name_hint:
        sizes = [int(x) for x in sch.get(block).writes[0].source.shape]
        at = cut(sizes, rows.count, math.prod(sizes) // rows.count) or 0
        sch.transform_layout(block, ("write", 0), grouped(sizes, at))


def grouped(sizes: Sequence[int], at: int) -> Any:
    """The index map that joins the axes of `sizes` before `at`, and those from there on, if any."""
    groups = [(0, at), (at, len(sizes))] if at < len(sizes) else [(0, at)]
    return lambda *i: [join(i[a:b], sizes[a:b]) for a, b in groups]


def dtype_of(iters: Sequence[Any]) -> str:
    """The dtype of a block's indices."""
    return str(iters[0].var.ty.dtype)


def stages_to_keep(sch: Schedule, rows: Rows, keep: bool) -> list[str]:
    """Inline all stages but reductions, output and, where `keep`, what several stages read of the rows' elements.

    Returns what is to be kept in registers, in the order it stands: those stages, and copies of the parameters that
    reductions read. What only the output reads needs no copy.
    """
    for name in rows.scalars:
        if name != rows.output:
            sch.compute_inline(sch.get_sblock(name))
    kept = []
    for name in rows.full:
        block = sch.get_sblock(name)
        if name == rows.output:
            continue
        if keep and len(sch.get_consumers(block)) > 1:
            kept.append(name)
        else:
            sch.compute_inline(block)
    if not keep:
        return []
    for name in rows.reductions:
        block = sch.get_sblock(name)
        for place, read in enumerate(sch.get(block).reads):
            sizes = [int(x) for x in read.source.shape]
            written = [sch.get(p).writes[0].source for p in sch.get_producers(block)]
            own = any(read.source.same_as(buffer) for buffer in written)
            if not own and cut(sizes, rows.count, rows.length) is not None:
                kept.append(sch.get(sch.cache_read(block, place, "local")).name_hint)
    return [name for name in block_names(sch) if name in kept]
