"""A network as one function: the plan of its memory, its outputs, and what stays with the virtual machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax, te, tirx
from tvm.script import tirx as T

import tvmopt
from tvmopt.graph.network import Network, Unsupported, read_network
from tvmopt.graph.one_function import one_function
from tvmopt.graph.pipeline import build, lower_model
from tvmopt.graph.steps import Value
from tvmopt.machine import detect
from tvmopt.model import load_model
from tvmopt.runtime.artifact import read_metadata
from tvmopt.runtime.executable import Compiled
from tvmopt.runtime.signature import Signature, TensorSpec

ROOT = Path(__file__).resolve().parents[2]


def faults(network: Network) -> list[str]:
    """What goes wrong when the steps run one after another: a value read from where it does not lie (any more)."""
    owner: dict[int, Value] = {}

    def places(value: Value) -> range:
        # Values begin at multiples of 64: an owner for every 64 bytes tells all.
        begin = network.offset(value)
        return range(begin // 64, -(-(begin + value.size) // 64))

    def within(part: Value | None, whole: Value) -> bool:
        return part is not None and part.index == whole.index

    found = []
    for number, step in enumerate(network.steps):
        for value in step.reads:
            # What is read whole may have been written in parts.
            if value.kind == "between" and any(not within(owner.get(place), value) for place in places(value)):
                found.append(f"step {number} reads {value}, which was overwritten")
        for value in step.writes:
            if value.kind == "between":
                taken = {place for other in step.reads if other.kind == "between" for place in places(other)}
                beside = [owner.get(place) for place in places(value)]
                if any(other is not None and other.index == value.index for other in beside):
                    found.append(f"step {number} writes {value} over another part of the same")
                if taken & set(places(value)):
                    found.append(f"step {number} writes {value} over what it reads")
                owner.update(dict.fromkeys(places(value), value))
    return found


@pytest.mark.parametrize("variant", ["original", "manual"])
@pytest.mark.parametrize("spec, shape", [("digits_cnn", None), ("torchvision:resnet18", (3, 64, 64))])
def test_the_workspace_is_smaller_than_what_passes_through_it(spec: str, shape: Any, variant: str) -> None:
    network = read_network(lower_model(load_model(spec, input_shape=shape), detect(), variant=variant).module)
    assert faults(network) == []
    assert len(network.lives) > 5
    assert network.plan.size < 0.7 * sum(life.size for life in network.lives)
    text = network.describe()
    assert text.startswith(f"workspace: {network.plan.size} bytes") and len(text.splitlines()) == 1 + len(network.steps)


def test_a_value_overwritten_too_soon_is_seen() -> None:
    import dataclasses

    network = read_network(lower_model(load_model("digits_cnn"), detect()).module)
    worse = dataclasses.replace(network.plan, offsets=(0,) * len(network.plan.offsets))
    assert faults(dataclasses.replace(network, plan=worse))


class Awkward(nn.Module):
    """Outputs that are each other's inputs, are returned twice, in two shapes, or are no result at all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, ...]:
        z = x @ y.T
        w = torch.relu(z @ x)
        return z, w, z, w.reshape(3, 2), x, self.table, None, z > 0, z.sum()


@pytest.mark.parametrize("numpy", [False, True])
def test_no_output_shares_its_memory(numpy: bool) -> None:
    module, inputs = Awkward().eval(), (torch.randn(2, 3), torch.randn(2, 3))
    compiled = tvmopt.compile(module, inputs, variant="manual")
    assert compiled.meta["workspace_bytes"] is not None
    arguments = [x.numpy().copy() for x in inputs] if numpy else [x.clone() for x in inputs]
    first, wanted = compiled(*arguments), module(*inputs)
    assert first[6] is None
    for spoiled in range(len(wanted)):
        if wanted[spoiled] is None:
            continue
        outputs = [torch.as_tensor(output) for output in compiled(*arguments) if output is not None]
        outputs[spoiled - (spoiled > 6)].zero_()
        for i, want in enumerate(w for w in wanted if w is not None):
            if i != spoiled - (spoiled > 6):
                torch.testing.assert_close(outputs[i], want)
    # Neither the inputs nor what the first call returned were touched.
    for got, want in zip([*arguments, *first], [*inputs, *wanted], strict=True):
        if want is not None:
            torch.testing.assert_close(torch.as_tensor(got), want)


def module_of(dtype: str, emit: Callable[[relax.BlockBuilder, relax.Var], relax.Expr], shape: Any = (5, 7)) -> Any:
    """A Relax module whose `main` returns, as a tuple, what `emit` makes of its parameter."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple([emit(builder, x)]))
        builder.emit_func_output(result)
    return builder.get()


def double(a: Any) -> Any:
    """a + a, elementwise."""
    return te.compute(a.shape, lambda i, j: a[i, j] + a[i, j], name="double")


def compiled_of(module: Any, dtype: str = "float32") -> Compiled:
    spec = TensorSpec("x", (5, 7), dtype)
    return Compiled(build(module, detect()), Signature((spec,), (spec,)), {})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int64"])
def test_every_dtype_finds_its_way(dtype: str) -> None:
    module = module_of(dtype, lambda builder, x: builder.emit_te(double, builder.emit_te(double, x)))
    compiled = compiled_of(module, dtype)
    size = 35 * getattr(torch, dtype).itemsize
    assert size <= compiled.meta["workspace_bytes"] < size + 64
    x = torch.arange(35).reshape(5, 7).to(getattr(torch, dtype))
    assert torch.equal(compiled(x), x * 4)


def test_tensors_without_elements() -> None:
    module = module_of("float32", lambda builder, x: builder.emit_te(double, builder.emit_te(double, x)), (0, 7))
    spec = TensorSpec("x", (0, 7), "float32")
    compiled = Compiled(build(module, detect()), Signature((spec,), (spec,)), {})
    for empty in (torch.zeros(0, 7), np.zeros((0, 7), np.float32)):
        assert [tuple(compiled(empty).shape) for _ in range(2)] == [(0, 7), (0, 7)]


def through_a_packed_function(builder: relax.BlockBuilder, x: relax.Var) -> Any:
    doubled = builder.emit_te(double, x)
    call = relax.call_pure_packed(
        "vm.builtin.reshape", doubled, relax.ShapeExpr([5, 7]), ty_args=relax.TensorType((5, 7), "float32")
    )
    return builder.emit_te(double, builder.emit(call))


def test_what_is_no_kernel_stays_with_the_virtual_machine(tmp_path: Path) -> None:
    module = module_of("float32", through_a_packed_function)
    with pytest.raises(Unsupported, match="call_pure_packed"):
        read_network(module)
    compiled = compiled_of(module)
    assert compiled.meta["workspace_bytes"] is None and "@main:" in compiled.executable.as_text()
    path = compiled.export(tmp_path / "machine.so")
    # Nothing in it is new to a tvmopt that knows the virtual machine only.
    assert read_metadata(path)["format_version"] == 1
    loaded = tvmopt.load(path)
    x = torch.randn(5, 7)
    for way in (compiled, loaded):
        first = way(x)
        assert torch.equal(first, x * 4) and np.array_equal(way(x.numpy()), x.numpy() * 4)
        way(x + 1)
        assert torch.equal(first, x * 4)


def test_shapes_that_are_not_known_stay_with_the_virtual_machine() -> None:
    n = tirx.Var("n", "int64")
    with pytest.raises(Unsupported, match="shape"):
        read_network(module_of("float32", lambda builder, x: builder.emit_te(double, x), (n, 7)))


def test_a_kernel_of_strided_buffers_stays_with_the_virtual_machine() -> None:
    @T.prim_func(private=True, s_tir=True)
    def rows(a: T.Buffer((T.int64(5), T.int64(7)), "float32", strides=(T.int64(8), T.int64(1))),
             b: T.Buffer((T.int64(5), T.int64(7)), "float32")):  # fmt: skip
        for i, j in T.grid(T.int64(5), T.int64(7)):
            with T.sblock("rows"):
                y, x = T.axis.remap("SS", [i, j])
                b[y, x] = a[y, x]

    module = module_of(
        "float32",
        lambda builder, x: builder.emit(
            relax.call_tir(builder.add_func(rows, "rows"), relax.Tuple([x]), relax.TensorType((5, 7), "float32"))
        ),
    )
    with pytest.raises(Unsupported, match="parameter a of a kernel"):
        one_function(module)


def test_a_kernel_that_fails_raises_and_names_itself() -> None:
    @T.prim_func(private=True, s_tir=True)
    def asks(a: T.Buffer((T.int64(5), T.int64(7)), "float32"), b: T.Buffer((T.int64(5), T.int64(7)), "float32")):
        with T.sblock("asks"):
            T.reads(a[T.int64(0), T.int64(0)])
            T.writes(b[T.int64(0), T.int64(0)])
            T.evaluate(T.call_packed("tvmopt.test.absent", a[T.int64(0), T.int64(0)]))
            b[T.int64(0), T.int64(0)] = a[T.int64(0), T.int64(0)]

    module = module_of(
        "float32",
        lambda builder, x: builder.emit(
            relax.call_tir(builder.add_func(asks, "asks"), relax.Tuple([x]), relax.TensorType((5, 7), "float32"))
        ),
    )
    with pytest.raises(Exception, match="kernel asks failed"):
        compiled_of(module)(torch.zeros(5, 7))


@pytest.fixture(scope="module")
def digits() -> Compiled:
    model = load_model("digits_cnn")
    return tvmopt.compile(model.module, model.example_inputs, variant="manual")


def test_nothing_is_left_to_the_virtual_machine_but_the_state(digits: Compiled) -> None:
    text = digits.executable.as_text()
    assert "@main_state:" in text and "@main:" not in text
    assert 0 < digits.meta["workspace_bytes"] < 20_000


def test_the_weights_are_there_once(digits: Compiled) -> None:
    machine = relax.VirtualMachine(digits.executable.jit(), tvm.cpu())
    states = [[tensor.data_ptr() for tensor in machine["main_state"]()] for _ in range(2)]
    assert states[0][1:] == states[1][1:] and len(states[0]) > 10
    assert not any(address % 64 for address in states[0])


def test_loads_in_another_process(digits: Compiled, tmp_path: Path) -> None:
    path = digits.export(tmp_path / "digits.so")
    assert read_metadata(path)["format_version"] == 2
    x = torch.randn(1, 1, 8, 8)
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np, tvmopt\n"
        "m = tvmopt.load(sys.argv[1])\n"
        "print(m.meta['workspace_bytes'], 'torch' in sys.modules)\n"
        "np.save(sys.argv[3], m(np.load(sys.argv[2])))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "x.npy", tmp_path / "y.npy"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert run.returncode == 0 and run.stderr == "", run.stderr
    assert run.stdout.split()[0] == str(digits.meta["workspace_bytes"])
    assert np.array_equal(np.load(tmp_path / "y.npy"), digits(x).numpy())
