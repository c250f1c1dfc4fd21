"""TVM's lowering of TensorIR to what LLVM takes, and more: sums in registers, no borders, one launch, plain functions.

Of a kernel that takes tensors, TVM knows that their memory is aligned and on which device it lies, puts its body into
a function of its own, and has it return whether it failed. Of one that takes pointers it knows nothing of that, and
is told here.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from tvmopt.graph.borders import skip_borders
from tvmopt.graph.memory import ALIGNMENT
from tvmopt.graph.one_launch import on_the_host, one_launch
from tvmopt.graph.ragged import ragged_loops
from tvmopt.graph.registers import locals_on_the_stack

NAME = "tvmopt"


@tvm.transform.module_pass(opt_level=0, name="tvmopt.PlainFunctions")
def plain_functions(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Gives private functions what TVM's calling convention gives the others."""
    updated = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    for var, func in module.functions_items():
        if "global_symbol" not in func.attrs:
            updated[var] = func.with_body(_complete(func, var.name_hint))
    return updated


def _complete(func: tirx.PrimFunc, name: str) -> tirx.Stmt:
    # LLVM would put all kernels into their caller: one function of many thousand instructions.
    body = tirx.AttrStmt(name, "compute_scope", tvm.ir.StringImm(f"{name}_compute_"), func.body)
    body = on_the_host(body)
    for pointer in (param for param in func.params if isinstance(param.ty, tvm.ir.PointerType)):
        body = tirx.AttrStmt(pointer, "storage_alignment", tirx.IntImm("int32", ALIGNMENT), body)
    # A parallel loop or an allocation that fails returns -1 out of the body.
    return tirx.SeqStmt([body, tirx.Return(tirx.IntImm("int32", 0))])


def _pipeline() -> tuple[tvm.transform.Pass, object, object]:
    lower, finish_host, finish_device = default_s_tir_pipeline()
    before = [locals_on_the_stack, skip_borders, ragged_loops, one_launch, plain_functions]
    return lower, lambda: tvm.transform.Sequential([*before, finish_host()]), finish_device


def compile_kernels(module: tvm.IRModule, target: tvm.target.Target) -> Any:
    """`tvm.compile` for kernels by themselves, lowered for the CPU as those of a network are."""
    return tvm.compile(module, target=target, tir_pipeline=register())


def register() -> str:
    """Makes the pipeline known to TVM, under the name returned."""
    register_tir_pipeline(NAME, _pipeline)
    return NAME
