"""What lies outside of an image is neither read nor multiplied: branches round multiply-adds instead."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.script import ir as I
from tvm.script import tirx as T

from bench.covering import Row, covering
from tests.kernels.support import compiled
from tests.kernels.test_sparse import STRATEGY, mask
from tvmopt.graph.borders import skip_borders
from tvmopt.graph.host_pipeline import compile_kernels
from tvmopt.graph.kernels import random_integers
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import detect
from tvmopt.model import from_module
from tvmopt.registry import rules
from tvmopt.variants import schedule_manual


@I.ir_module
class Taps:
    @T.prim_func(private=True, s_tir=True)
    def main(
        a: T.Buffer((64,), "float32"), w: T.Buffer((4,), "float32x16"), sums: T.Buffer((6,), "float32x16"), y: T.int32
    ):
        for k in range(4):
            sums[0] = sums[0] + T.Broadcast(T.if_then_else(y < k and k >= 1, a[k - 1], T.float32(0)), 16) * w[k]
            sums[1] = sums[1] + T.Broadcast(T.if_then_else(y < k, a[k], T.float32(0)), 16) * w[k]
            sums[2] = sums[2] + T.Broadcast(T.if_then_else(y < k, a[k + 1], T.float32(0)), 16) * w[k]
            # Another row of the window: a condition of its own.
            sums[3] = sums[3] + T.Broadcast(T.if_then_else(y + 1 < k, a[k + 9], T.float32(0)), 16) * w[k]
            # Not a multiply-add of what may be outside: as they are.
            sums[4] = sums[4] + T.Broadcast(a[k], 16) * w[k]
            sums[5] = sums[5] + T.Broadcast(T.if_then_else(y < k, a[k], T.float32(1)), 16) * w[k]


def test_what_a_row_of_pixels_shares_is_one_branch() -> None:
    text = skip_borders(Taps)["main"].script(show_meta=False)
    lines = [line.strip() for line in text.splitlines()]
    guards = [line for line in lines if line.startswith("if ")]
    assert guards == ["if y < k:", "if k >= 1:", "if y + 1 < k:"]
    # Inside the first: the pixel that has a condition more, and the two that have not.
    first, last = lines.index("if y < k:"), lines.index("if y + 1 < k:")
    assert [line.split(" = ")[0] for line in lines[first:last] if line.startswith("sums")] == [
        "sums[0]", "sums[1]", "sums[2]",
    ]  # fmt: skip
    # Only what is 1 outside, and not 0, is still chosen.
    assert len(re.findall("if_then_else", text)) == 1


FACTORS = {
    "channels": [16, 17, 48], "height": [1, 3, 8, 13], "width": [1, 5, 14, 31], "kernel": [3, 5, 7], "stride": [1, 2],
    "padding": [(1, 1), (2, 0), (0, 3)], "dilation": [1, 2], "batch": [1, 3],
}  # fmt: skip


def _valid(row: Row) -> bool:
    span = (row["kernel"] - 1) * row["dilation"] + 1
    down, across = row["padding"]
    return span <= row["height"] + 2 * down and span <= row["width"] + 2 * across


@pytest.mark.parametrize("row", covering(FACTORS, 2, _valid), ids=str)
def test_nothing_outside_of_the_image_is_read(row: Row) -> None:
    """The input lies between values that are no numbers: a multiply-add with one of them would show."""
    torch.manual_seed(0)
    conv = nn.Conv2d(row["channels"], 33, row["kernel"], row["stride"], row["padding"], row["dilation"])
    shape = (row["batch"], row["channels"], row["height"], row["width"])
    with torch.no_grad():
        conv.weight.mul_(mask(tuple(conv.weight.shape), "blocks"))
    # The first convolution brings the image into blocks, which the sparse one needs.
    net = nn.Sequential(nn.Conv2d(row["channels"], row["channels"], 1), conv).eval()
    machine = detect()
    lowered = lower_model(from_module(net, (torch.zeros(shape),), name="borders"), machine, STRATEGY)
    (kernel,) = (one for one in lowered.kernels if one.op == "conv2d_sparse")
    scheduled, _ = schedule_manual(kernel, machine, rules(machine.kind))
    library = compile_kernels(
        tvm.IRModule({"main": scheduled.with_attr("global_symbol", "main")}), machine.target()
    ).jit()
    plain = tvm.compile(
        tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")}), target=machine.target()
    ).jit()
    generator = np.random.default_rng(0)
    arguments, surrounded = [], []
    for param in kernel.func.params:
        extents, dtype = [int(extent) for extent in param.shape], str(param.dtype)
        if dtype == "int32":
            value = random_integers(kernel.func, extents, generator).astype(dtype)
        else:
            value = generator.standard_normal(extents).astype(dtype)
        arguments.append(tvm.runtime.tensor(value))
        surrounded.append(_among_no_numbers(value))
    library["main"](*surrounded)
    plain["main"](*arguments)
    np.testing.assert_allclose(surrounded[-1].numpy(), arguments[-1].numpy(), rtol=1e-4, atol=1e-4)


def _among_no_numbers(value: np.ndarray) -> tvm.runtime.Tensor:
    """`value` in memory aligned to a line of the cache, with a page of NaN (or of huge integers) on both sides."""
    room, before = 4096 + value.nbytes + 4096, 4096
    memory = np.full(room + 64, 0xFF, np.uint8)
    begin = before + -(memory.ctypes.data + before) % 64
    inside = memory[begin : begin + value.nbytes].view(value.dtype).reshape(value.shape)
    inside[...] = value
    return tvm.runtime.from_dlpack(inside)


def test_inputs_that_are_no_numbers_stay_where_they_are() -> None:
    """Of a NaN in a corner, PyTorch's convolution spoils what its window reaches, and so does ours."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(mask((16, 16, 3, 3), "blocks"))
    net = nn.Sequential(nn.Conv2d(16, 16, 1), conv).eval()
    x = torch.randn(1, 16, 6, 6)
    built, _ = compiled(from_module(net, (x,), name="corner"), None, STRATEGY)
    x[0, :, 5, 5] = float("nan")
    with torch.no_grad():
        expected = net(x)
    found = built(x)
    assert torch.equal(torch.isnan(torch.as_tensor(np.asarray(found))), torch.isnan(expected))
