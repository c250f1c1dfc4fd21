"""The whole network as one host function, so that a call of it costs what its kernels cost.

The virtual machine makes and drops a tensor for every value and checks every argument of every kernel. Here a module
gets two functions instead of `main`:

- `main_flat(inputs..., outputs..., table)`: all of them addresses. It calls the kernels one after another, each a
  plain function of pointers in the same library; nothing is allocated or looked up on the way. `table` is an array
  of addresses, of the workspace and of the weights behind it. Where a batch is computed in parts (parts.py) there is
  a loop around the calls. When it is lowered, the calls are put into one launch on all cores (one_launch.py).
- `main_state()`: for the virtual machine, once after loading. It returns the workspace, newly allocated, and the
  weights as they lie in the executable: there is one copy of them.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from tvmopt.graph.network import Network, Unsupported, read_network
from tvmopt.graph.steps import Step, Value

FUNCTION = "main_flat"
STATE = "main_state"
_INT32, _ADDRESS = tvm.ir.PrimType("int32"), "int64"


def one_function(module: tvm.IRModule) -> tuple[tvm.IRModule, Network]:
    """`module` with its kernels taking pointers, and `main_flat` and `main_state` in the place of `main`.

    Raises:
        Unsupported: `main`, or one of its kernels, cannot be called like that.
    """
    network = read_network(module)
    names = {step.kernel for step in network.steps if step.kernel is not None}
    kernels = {tvm.ir.GlobalVar(name): with_pointers(module[name]) for name in sorted(names)}
    by_name = {var.name_hint: var for var in kernels}
    flat = _main(network, by_name).with_attr("global_symbol", FUNCTION)
    # With its own global variable, which the builder made.
    state = _state(network)
    (state_var,) = state.get_global_vars()
    functions = {**kernels, tvm.ir.GlobalVar(FUNCTION): flat, state_var: state[state_var]}
    return tvm.IRModule(functions, attrs=module.attrs), network


def with_pointers(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A kernel as a private function of the addresses of its buffers, which returns 0, or else has failed.

    Raises:
        Unsupported: a parameter that is no buffer of a fixed shape which begins at its address.
    """
    pointers, declared = [], []
    for param in func.params:
        if not isinstance(param.ty, tirx.BufferType) or not _plain(param):
            raise Unsupported(f"parameter {param.name} of a kernel")
        pointer = tirx.Var(param.name, tvm.ir.PointerType(tvm.ir.PrimType(str(param.dtype)), param.scope()))
        pointers.append(pointer)
        declared.append(tirx.DeclBuffer(param, data=pointer))
    body = tirx.SeqStmt([*declared, func.body])
    kernel = tirx.PrimFunc(pointers, body, _INT32, func.attrs)
    return kernel.without_attr("global_symbol") if "global_symbol" in kernel.attrs else kernel


def _plain(buffer: tirx.Buffer) -> bool:
    fixed = all(isinstance(extent, tirx.IntImm) for extent in buffer.shape)
    begins = isinstance(buffer.elem_offset, tirx.IntImm) and int(buffer.elem_offset) == 0
    return fixed and begins and not buffer.strides


def _main(network: Network, kernels: dict[str, tvm.ir.GlobalVar]) -> tirx.PrimFunc:
    inputs = [tirx.Var(f"input{i}", _ADDRESS) for i in range(len(network.inputs))]
    outputs = [tirx.Var(f"output{i}", _ADDRESS) for i in range(len(network.outputs))]
    table = tirx.Var("table", _ADDRESS)
    addresses = tirx.decl_buffer((1 + len(network.weights),), _ADDRESS, "addresses")
    workspace = tirx.Var("workspace", _ADDRESS)
    part = tirx.Var("part", _ADDRESS) if network.parts > 1 else None
    statements: list[tirx.Stmt] = [
        tirx.DeclBuffer(addresses, data=_pointer(table, _ADDRESS)),
        tirx.Bind(workspace, tirx.BufferLoad(addresses, [0])),
    ]

    def address(value: Value) -> tvm.ir.Expr:
        if value.kind == "between":
            return workspace + tirx.IntImm(_ADDRESS, network.offset(value))
        if value.kind == "weight":
            return tirx.BufferLoad(addresses, [1 + value.index])
        # A part of a joined output begins somewhere in it, and a part of the batch behind those before.
        given, whole = (inputs, network.inputs) if value.kind == "input" else (outputs, network.outputs)
        begin = given[value.index] + tirx.IntImm(_ADDRESS, value.offset)
        return begin if part is None else begin + part * tirx.IntImm(_ADDRESS, whole[value.index].size)

    def call(step: Step) -> tirx.Stmt:
        arguments = [_pointer(address(value), value.dtype) for value in (*step.reads, *step.writes)]
        if step.kernel is None:
            (source,), (target,) = step.reads, step.writes
            copied = ["memcpy", _pointer(address(target), "void"), _pointer(address(source), "void")]
            return tirx.Evaluate(tirx.call_extern("handle", *copied, tirx.IntImm("int64", target.size)))
        result = tvm.ir.Call(kernels[step.kernel], arguments, ret_ty=_INT32)
        failed = [tvm.ir.StringImm(f"kernel {step.kernel} failed: out of memory or of threads")]
        # The condition first, which is what TVM 0.27 takes, whatever its signature in Python says.
        return tirx.AssertStmt(tirx.EQ(result, tirx.IntImm("int32", 0)), tvm.ir.StringImm("RuntimeError"), failed)

    calls = [call(step) for step in network.steps]
    if part is not None:
        calls = [tirx.For(part, 0, network.parts, tirx.ForKind.SERIAL, tirx.SeqStmt(calls))]
    statements += calls
    return tirx.PrimFunc([*inputs, *outputs, table], tirx.SeqStmt(statements))


def _pointer(address: tvm.ir.Expr, dtype: str) -> tvm.ir.Expr:
    return tirx.reinterpret(tvm.ir.PointerType(tvm.ir.PrimType(dtype)), address)


def _state(network: Network) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    with builder.function(STATE, []):
        size = relax.ShapeExpr([network.plan.size])
        workspace = builder.emit(relax.op.builtin.alloc_tensor(size, "uint8", 0))
        builder.emit_func_output(relax.Tuple([workspace, *network.weights]))
    return builder.get()
