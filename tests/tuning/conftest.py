"""A kernel and a rule small enough to search in seconds: C = relu(A B), tiled two ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def gemm(size: int = 64, scale: float = 1.0) -> Any:
    """relu(scale * A B) as an unscheduled PrimFunc; all of them `size` x `size` float32."""
    from tvm import te

    a = te.placeholder((size, size), name="A")
    b = te.placeholder((size, size), name="B")
    k = te.reduce_axis((0, size), "k")
    c = te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="dense")
    out = te.compute((size, size), lambda i, j: te.max(c[i, j] * scale, 0.0), name="relu")
    return te.create_prim_func([a, b, out])


def tiled(sch: Any, kernel: Any, machine: Any, choose: Any) -> Any:
    """Two numbers to choose: 4 x 3 points."""
    del machine
    if kernel.op != "dense":
        return None
    block, relu = sch.get_sblock("dense"), sch.get_sblock("relu")
    rows = choose("rows", [1, 2, 4, 8], 4)
    columns = choose("columns", [16, 32, 64], 32)
    i, j = sch.get_loops(relu)
    outer_i, inner_i = sch.split(i, [None, rows])
    outer_j, inner_j = sch.split(j, [None, columns])
    sch.reorder(outer_i, outer_j, inner_i, inner_j)
    sch.parallel(outer_i)
    sch.compute_at(block, outer_j, preserve_unit_loops=True)
    loops = sch.get_loops(block)
    sch.reorder(loops[-1], loops[-3], loops[-2])
    sch.vectorize(sch.get_loops(block)[-1])
    sch.vectorize(inner_j)
    sch.decompose_reduction(block, sch.get_loops(block)[2])
    return sch


def make_kernel(size: int = 64, name: str = "fused_dense_relu") -> Any:
    from tvmopt.graph.kernels import Kernel

    return Kernel(name, gemm(size), "dense", 1, 2 * size**3, 12 * size**2)


@pytest.fixture(scope="session")
def machine() -> Any:
    from tvmopt.machine import configure_threads, detect

    found = detect()
    configure_threads(found.cores)
    return found


@pytest.fixture(scope="session")
def rules() -> list[Any]:
    from tvmopt.registry import Rule

    return [Rule("tiled", 1, tiled)]


@pytest.fixture
def manifest(machine: Any) -> Any:
    from dataclasses import asdict

    from tvmopt.tuning.manifest import Manifest, target_dict, versions

    fields = {name: value for name, value in asdict(machine).items() if name != "assumed"}
    model = {"spec": "test", "name": "test", "digest": "0123456789abcdef"}
    return Manifest(model=model, target=target_dict(machine), machine=fields, versions=versions())


class Silent:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def show(self, session: Any) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def written(tmp_path: Path, machine: Any, rules: list[Any], manifest: Any) -> Path:
    """A log with one workload, two records, two trials and a manifest; nothing in it was measured."""
    from tvmopt.plan import KernelPlan, Plan
    from tvmopt.tuning.lines import Trial
    from tvmopt.tuning.log import Log
    from tvmopt.tuning.template import Space

    kernel = make_kernel()
    path = tmp_path / "log"
    log = Log.start(path)
    space = Space(kernel, machine, rules)
    for rows, seconds in ((8, 2e-6), (2, 1e-6)):
        point = space.at({"rows": rows})
        assert point is not None
        log.add(kernel.func, point.schedule, seconds, machine.target())
        log.add_trial(
            Trial(kernel.key, "template", point.candidate, "ok", seconds, 0.9, "tiled", 1, point.values)
        )  # fmt: skip
    plan = Plan((KernelPlan(kernel.name, kernel.key, "template", "tiled", 1, {"rows": 2, "columns": 32}, 1e-6, 2e-6),))
    manifest.with_plan(plan).write(path)
    return path
