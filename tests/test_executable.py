"""A compiled model is called like the model: kinds, structures, copies, errors."""

from __future__ import annotations

import collections
import threading

import numpy as np
import pytest
import torch
from torch import nn

from tvmopt.errors import InputError

Pair = collections.namedtuple("Pair", "first second")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.out = nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x)).flatten(1))


class Structured(nn.Module):
    """Returns its outputs in the structure called for."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x, y):
        total, product = x + y, x * y
        if self.kind == "tuple":
            return total, product
        if self.kind == "single":
            return (total,)
        if self.kind == "dict":
            return {"sum": total, "rest": [product, {"again": total - 1}]}
        if self.kind == "namedtuple":
            return Pair(total, (product,))
        if self.kind == "none":
            return total, None
        return total, self.table * 2


@pytest.fixture(scope="module", params=["machine", "function"])
def build(request, build, build_function):
    """Both ways a network runs: by the virtual machine, and as one function."""
    return build if request.param == "machine" else build_function


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def compiled(net, build):
    return build(net, torch.zeros(2, 2, 6, 6))


def without_memory():
    x = torch.zeros(2, 2, 6, 6)
    x.untyped_storage().resize_(0)
    return x


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_torch_in_torch_out(compiled, net):
    x = torch.randn(2, 2, 6, 6)
    y = compiled(x)
    assert type(y) is torch.Tensor and y.dtype is torch.float32 and not y.requires_grad
    close(y, net(x).detach())


def test_numpy_in_numpy_out(compiled, net):
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32)
    y = compiled(x)
    assert type(y) is np.ndarray and y.flags.writeable
    close(torch.from_numpy(y), net(torch.from_numpy(x)).detach())


def test_input_by_name(compiled, net):
    x = torch.randn(2, 2, 6, 6)
    close(compiled(x=x), net(x).detach())
    with pytest.raises(InputError, match="expected the inputs x, not 0 by position and z"):
        compiled(z=x)


@pytest.mark.parametrize("kind", ["tuple", "single", "dict", "namedtuple", "none", "constant"])
@pytest.mark.parametrize("numpy", [False, True])
def test_structure_is_the_models(build, kind, numpy, tmp_path):
    import tvmopt

    module = Structured(kind)
    x, y = torch.randn(3), torch.randn(3)
    compiled = build(module, x, y)
    args = (x.numpy(), y.numpy()) if numpy else (x, y)
    expected = module(x, y)
    actual = compiled(*args)
    assert type(actual) is type(expected)
    flat = torch.utils._pytree.tree_flatten(actual)
    wanted = torch.utils._pytree.tree_flatten(expected)
    assert flat[1] == wanted[1]
    for a, b in zip(flat[0], wanted[0], strict=True):
        if b is None:
            assert a is None
        else:
            assert isinstance(a, np.ndarray) is numpy
            close(torch.as_tensor(a), b)
    # And so does an artifact, named tuples by an equal class of the same name.
    loaded = tvmopt.load(compiled.export(tmp_path / "m.so"))(*args)
    if kind == "namedtuple":
        assert type(loaded).__name__ == "Pair" and loaded._fields == Pair._fields
        loaded = Pair(*loaded)
    assert torch.utils._pytree.tree_flatten(loaded)[1] == wanted[1]


@pytest.mark.parametrize("numpy", [False, True])
def test_outputs_are_never_overwritten(compiled, numpy):
    inputs = [torch.randn(2, 2, 6, 6) for _ in range(20)]
    args = [x.numpy() for x in inputs] if numpy else inputs
    kept = [compiled(x) for x in args]
    copies = [np.asarray(y).copy() for y in kept]
    for x in args:
        compiled(x)
    assert all(np.array_equal(np.asarray(y), copy) for y, copy in zip(kept, copies, strict=True))
    assert len({y.ctypes.data if numpy else y.data_ptr() for y in kept}) == len(kept)


def test_constant_output_is_the_callers_own(build):
    x = torch.randn(3)
    compiled = build(Structured("constant"), x, x)
    assert compiled.signature.constant == {1}
    compiled(x, x)[1].fill_(99)
    close(compiled(x, x)[1], torch.arange(3.0) * 2)
    compiled(x.numpy(), x.numpy())[1][...] = 99
    close(compiled(x, x)[1], torch.arange(3.0) * 2)


def test_no_copy_of_usable_inputs(compiled, monkeypatch):
    seen = []
    main = compiled._main
    monkeypatch.setattr(compiled, "_main", lambda *args: (seen.extend(args), main(*args))[1])
    # The quick way calls the function itself, and is taken from the second call on.
    monkeypatch.setattr(compiled, "_one_to_one", None)
    x = torch.randn(2, 2, 6, 6)
    compiled(x)
    # Tensors to the virtual machine, addresses to a function; the last call's arguments begin with the input.
    assert seen[0] == x.data_ptr() if compiled.meta["workspace_bytes"] else seen[0].data_ptr() == x.data_ptr()
    seen.clear()
    memory = np.zeros(x.numel() * 4 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + x.numel() * 4].view(np.float32).reshape(x.shape)
    compiled(array)
    if compiled.meta["workspace_bytes"]:
        assert seen[0] == array.ctypes.data
    else:
        assert np.shares_memory(np.from_dlpack(seen[0]), array)


@pytest.mark.parametrize("offset", [1, 2, 4, 8, 15])
def test_misaligned_inputs_are_copied(compiled, net, offset):
    # Handed over as they are, these end in a segmentation fault.
    memory = torch.randn(2 * 2 * 6 * 6 + 16)
    x = memory[offset : offset + 144].view(2, 2, 6, 6)
    assert x.data_ptr() % 64
    close(compiled(x), net(x).detach())
    close(torch.from_numpy(compiled(x.numpy())), net(x).detach())


def test_the_quick_way_reads_the_input_where_it_lies(build_function, net):
    compiled = build_function(net, torch.zeros(2, 2, 6, 6))
    x = torch.randn(2, 2, 6, 6)
    first = compiled(x)
    quick = compiled._one_to_one
    assert torch.equal(quick(x), first) and quick(nn.Parameter(x)) is not None
    memory = torch.randn(2 * 2 * 6 * 6 + 16)
    refused = (
        x[:1],
        x.double(),
        x.mT,
        memory[1:145].view(2, 2, 6, 6),
        x.to_sparse(),
        x.numpy(),
        without_memory(),
        None,
    )
    assert all(quick(other) is None for other in refused)


def test_other_layouts_and_gradients(compiled, net):
    x = torch.randn(2, 2, 6, 6)
    close(compiled(x.to(memory_format=torch.channels_last)), net(x).detach())
    close(compiled(torch.randn(2, 2, 6, 12)[..., ::2].copy_(x)), net(x).detach())
    close(compiled(x[:1].expand(2, 2, 6, 6)), net(x[:1].expand(2, 2, 6, 6)).detach())
    close(compiled(x.clone().requires_grad_()), net(x).detach())
    close(compiled(nn.Parameter(x)), net(x).detach())
    array = x.numpy()
    for other in (np.asfortranarray(array), array[:, :, ::-1].copy()[:, :, ::-1], array.astype(">f4")):
        close(torch.from_numpy(compiled(other)), net(x).detach())
    frozen = array.copy()
    frozen.flags.writeable = False
    close(torch.from_numpy(compiled(frozen)), net(x).detach())


def test_one_channel_in_channels_last(build):
    # Contiguous to torch, with strides that are not what TVM would compute.
    module = nn.Conv2d(1, 3, 3)
    x = torch.randn(2, 1, 5, 5).to(memory_format=torch.channels_last)
    close(build(module, torch.zeros(2, 1, 5, 5))(x), module(x).detach())


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: (), r"expected 1 input \(x: float32 \[2, 2, 6, 6\]\), not 0"),
        (lambda: (torch.zeros(2, 2, 6, 6),) * 2, "expected 1 input .*, not 2"),
        (
            lambda: (torch.zeros(1, 2, 6, 6),),
            r"input 0 \(x\): expected float32 \[2, 2, 6, 6\] on the CPU, not float32 ",
        ),
        (lambda: (torch.zeros(2, 2, 36),), r"not float32 \[2, 2, 36\]"),
        (lambda: (torch.zeros(2, 2, 6, 6, dtype=torch.float64),), "not float64"),
        (lambda: (np.zeros((2, 2, 6, 6)),), "not float64"),
        (lambda: (np.zeros((2, 2, 6), np.float32),), r"not float32 \[2, 2, 6\]"),
        (lambda: (torch.zeros(2, 2, 6, 6, device="meta"),), "not a tensor on meta"),
        (lambda: (torch.zeros(2, 2, 6, 6).to_sparse(),), "not a torch.sparse_coo tensor"),
        (lambda: (without_memory(),), "not a tensor whose memory was given back"),
        (lambda: ([[1.0]],), "not a list"),
        (lambda: (None,), "not a NoneType"),
    ],
)
def test_wrong_inputs(compiled, wrong, message):
    compiled(torch.zeros(2, 2, 6, 6))
    with pytest.raises(InputError, match=message) as caught:
        compiled(*wrong())
    assert "\n" not in str(caught.value)


def test_mixed_kinds(build):
    compiled = build(Structured("tuple"), torch.randn(3), torch.randn(3))
    with pytest.raises(InputError, match=r"input 1 \(y\).*not a ndarray beside torch tensors"):
        compiled(torch.zeros(3), np.zeros(3, np.float32))
    with pytest.raises(InputError, match=r"input 0 \(x\).*not a ndarray beside torch tensors"):
        compiled(np.zeros(3, np.float32), torch.zeros(3))


def test_integer_inputs(build):
    module = nn.Embedding(10, 4)
    x = torch.tensor([1, 5, 9])
    compiled = build(module, x)
    close(compiled(x), module(x).detach())
    with pytest.raises(InputError, match=r"expected int64 \[3\]"):
        compiled(x.int())


def test_outputs_are_on_the_cpu_whatever_torchs_default(compiled, net):
    x = torch.randn(2, 2, 6, 6)
    with torch.device("meta"):
        y = compiled(x)
    close(y, net(x).detach())


def test_in_inference_mode(compiled, net):
    x = torch.randn(2, 2, 6, 6)
    with torch.inference_mode():
        y = compiled(x)
    close(y, net(x).detach())


def test_calls_from_several_threads(compiled, net):
    inputs = [torch.randn(2, 2, 6, 6) for _ in range(4)]
    wanted = [net(x).detach() for x in inputs]
    failures = []

    def work(index):
        try:
            for _ in range(50):
                close(compiled(inputs[index]), wanted[index])
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_what_is_known_of_it(compiled):
    assert compiled.variant == "original" and compiled.compile_s == 0.5 and compiled.plan is None
    assert '"kind":"llvm"' in compiled.target and compiled.machine.cores == compiled.threads
    assert [str(spec) for spec in compiled.inputs] == ["float32 [2, 2, 6, 6]"]
    assert [str(spec) for spec in compiled.outputs] == ["float32 [2, 5]"]
    assert "Net original (x: float32 [2, 2, 6, 6])" in repr(compiled)
