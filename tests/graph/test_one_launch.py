"""Kernels in one launch: what they compute, how many launches are left, and that a failure ends the call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tvm import relax
from tvm.script import tirx as T

import tvmopt
from tvmopt.graph.pipeline import build
from tvmopt.machine import detect
from tvmopt.runtime.executable import Compiled
from tvmopt.runtime.signature import Signature, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
ROWS, COLUMNS = 37, 5


@T.prim_func(private=True, s_tir=True)
def doubled(a: T.Buffer((T.int64(37), T.int64(5)), "float32"), b: T.Buffer((T.int64(37), T.int64(5)), "float32")):
    for i in T.parallel(T.int64(37)):
        for j in T.serial(T.int64(5)):
            with T.sblock("doubled"):
                y, x = T.axis.remap("SS", [i, j])
                b[y, x] = a[y, x] * T.float32(2)


@T.prim_func(private=True, s_tir=True)
def plus_one(a: T.Buffer((T.int64(37), T.int64(5)), "float32"), b: T.Buffer((T.int64(37), T.int64(5)), "float32")):
    for i, j in T.grid(T.int64(37), T.int64(5)):
        with T.sblock("plus_one"):
            y, x = T.axis.remap("SS", [i, j])
            b[y, x] = a[y, x] + T.float32(1)


@T.prim_func(private=True, s_tir=True)
def reversed_rows(
    a: T.Buffer((T.int64(37), T.int64(5)), "float32"), b: T.Buffer((T.int64(37), T.int64(5)), "float32")
):
    # Every task reads what another has written: without the barrier between the stages this is wrong.
    between = T.sblock_alloc_buffer((T.int64(37), T.int64(5)), "float32")
    for i in T.parallel(T.int64(37)):
        for j in T.serial(T.int64(5)):
            with T.sblock("negated"):
                y, x = T.axis.remap("SS", [i, j])
                between[y, x] = a[y, x] * T.float32(-1)
    for i in T.parallel(T.int64(37)):
        for j in T.serial(T.int64(5)):
            with T.sblock("reversed"):
                y, x = T.axis.remap("SS", [i, j])
                b[y, x] = between[T.int64(36) - y, x]


@T.prim_func(private=True, s_tir=True)
def much_between(
    a: T.Buffer((T.int64(37), T.int64(5)), "float32"), b: T.Buffer((T.int64(37), T.int64(5)), "float32")
):
    # 189 KB that two loops share: not memory to keep for a whole region.
    between = T.sblock_alloc_buffer((T.int64(37), T.int64(5), T.int64(256)), "float32")
    for i in T.parallel(T.int64(37)):
        for j, k in T.grid(T.int64(5), T.int64(256)):
            with T.sblock("spread"):
                y, x, z = T.axis.remap("SSS", [i, j, k])
                between[y, x, z] = a[y, x] + T.Cast("float32", z)
    for i in T.parallel(T.int64(37)):
        for j in T.serial(T.int64(5)):
            with T.sblock("taken"):
                y, x = T.axis.remap("SS", [i, j])
                b[y, x] = between[y, x, T.int64(3)]


@T.prim_func(private=True, s_tir=True)
def fails(a: T.Buffer((T.int64(37), T.int64(5)), "float32"), b: T.Buffer((T.int64(37), T.int64(5)), "float32")):
    for i in T.parallel(T.int64(37)):
        for j in T.serial(T.int64(5)):
            with T.sblock("fails"):
                y, x = T.axis.remap("SS", [i, j])
                b[y, x] = a[y, x]
                T.evaluate(T.call_packed("tvmopt.test.absent", a[y, x]))


def chain(kernels: Sequence[Any]) -> Compiled:
    """A network that is these kernels, one after another."""
    builder, wanted = relax.BlockBuilder(), relax.TensorType((ROWS, COLUMNS), "float32")
    x = relax.Var("x", wanted)
    with builder.function("main", [x]):
        with builder.dataflow():
            value = x
            for kernel in kernels:
                called = builder.add_func(kernel, kernel.attrs.get("name", "kernel"))
                value = builder.emit(relax.call_tir(called, relax.Tuple([value]), wanted))
            result = builder.emit_output(relax.Tuple([value]))
        builder.emit_func_output(result)
    spec = TensorSpec("x", (ROWS, COLUMNS), "float32")
    return Compiled(build(builder.get(), detect()), Signature((spec,), (spec,)), {"threads": detect().cores})


def launches(compiled: Compiled) -> int:
    """How often the code starts threads."""
    modules, text = list(compiled.executable.mod.imports), ""
    while modules:
        module = modules.pop()
        modules += list(module.imports)
        text += module.inspect_source("ll") if module.kind == "llvm" else ""
    assert text
    return text.count("load ptr, ptr @__TVMBackendParallelLaunch")


@pytest.mark.parametrize(
    "kernels, expected",
    [
        # Three loops, one launch; what is serial in between is done by one thread.
        ([doubled, plus_one, doubled, plus_one, plus_one, doubled], 1),
        # At the ends there is nothing to wait for, and nothing to launch for one loop.
        ([plus_one, doubled, plus_one], 1),
        ([plus_one, plus_one], 0),
        # Two loops of one kernel, which share memory.
        ([reversed_rows], 1),
        ([plus_one, reversed_rows, doubled, reversed_rows], 1),
        # A kernel that is not taken apart ends the region; `doubled` is called in it, and by itself behind.
        ([doubled, doubled, much_between, doubled], 4),
        ([much_between], 2),
    ],
)
def test_chains_in_one_launch(kernels: list[Any], expected: int) -> None:
    compiled = chain(kernels)
    x = torch.randn(ROWS, COLUMNS)
    wanted = x
    for kernel in kernels:
        wanted = {
            "doubled": lambda v: v * 2, "plus_one": lambda v: v + 1, "reversed_rows": lambda v: -v.flip(0),
            "much_between": lambda v: v + 3,
        }[next(name for name, known in globals().items() if known is kernel)](wanted)  # fmt: skip
    for _ in range(300):
        torch.testing.assert_close(compiled(x), wanted)
    assert launches(compiled) == expected


def test_a_failure_in_a_region_ends_the_call() -> None:
    # In a process of its own, for a thread that waits for one that has left would wait for ever.
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import torch\n"
        "from tests.graph.test_one_launch import chain, doubled, fails\n"
        "network = chain([doubled, fails, doubled])\n"
        "for _ in range(3):\n"
        "    try:\n"
        "        network(torch.randn(37, 5))\n"
        "    except Exception as error:\n"
        "        print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120
    )
    assert run.stdout.count("failed") >= 3, run.stdout + run.stderr


class Mixed(nn.Module):
    """Convolutions in parallel, and between them dense layers with few and with many outputs, and copies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1)
        self.down, self.up = nn.Linear(48, 7), nn.Linear(7, 48)
        self.wide, self.head = nn.Linear(48, 3000), nn.Linear(3000, 1001)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.first(x))
        scale = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3))))))
        z = self.second(y * scale[:, :, None, None])
        wide = torch.relu(self.wide((z * z).mean((2, 3))))
        return {"scores": self.head(wide), "same": x, "z": z, "again": z}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_of_all_kinds(batch: int, threads: int) -> None:
    if threads > detect().cores:
        pytest.skip(f"needs {threads} cores")
    torch.manual_seed(0)
    module = Mixed().eval()
    x = torch.randn(batch, 3, 33, 31)
    compiled = tvmopt.compile(module, x, variant="manual", threads=threads)
    for _ in range(3):
        x = torch.randn_like(x)
        with torch.no_grad():
            wanted = module(x)
        torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-4)
