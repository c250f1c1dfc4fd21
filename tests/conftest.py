"""Rules of a test run: what needs a GPU is skipped without one, and a run that tested nothing fails."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tvmopt.runtime.executable import Compiled

_outcomes: Counter[str] = Counter()


def _has_gpu() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _has_isa(name: str) -> bool:
    from tvmopt.machine import detect

    # Each x86 set includes those before it.
    order = ("sse", "avx2", "avx512")
    found = detect().isa
    return name == found or (name in order and found in order and order.index(name) <= order.index(found))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `cuda` where there is no GPU, and `isa(name)` on a CPU without it."""
    for item in items:
        for marker in item.iter_markers("isa"):
            if not _has_isa(marker.args[0]):
                item.add_marker(pytest.mark.skip(reason=f"this CPU has no {marker.args[0]}"))
    if any("cuda" in item.keywords for item in items) and not _has_gpu():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture(scope="session", autouse=True)
def _pool_of_all_cores() -> None:
    """TVM's pool as large as it gets, whatever test runs first: one that uses TVM without tvmopt would leave it small.

    The environment stays as it was: what a test starts must set up its own.
    """
    from tvmopt.machine import available_cores
    from tvmopt.runtime.threads import use_threads

    before = dict(os.environ)
    use_threads(available_cores())
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts what ran."""
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        _outcomes[report.outcome] += 1


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which every test was skipped has shown nothing, and fails."""
    if exitstatus == 0 and _outcomes["skipped"] and not _outcomes["passed"]:
        print(f"\nall {_outcomes['skipped']} tests were skipped: nothing was tested")
        session.exitstatus = 1


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`refused(main, *arguments)`: a command's exit status and what it says, which has to be one line.

    In this process: to import what a command needs takes one of its own seconds.
    """
    from tvmopt.options import run

    def call(main: Any, *arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        try:
            status = run(main, arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.endswith("\n"), said
        return status, said

    return call


@pytest.fixture(scope="session")
def build() -> Callable[..., Compiled]:
    """`build(module, *inputs, threads=None)`: compiled by TVM's own default pipeline, without tvmopt's."""

    def make(module: Any, *inputs: Any, threads: int | None = None) -> Compiled:
        import torch
        import tvm
        from tvm.relax.frontend.torch import from_exported_program

        from tvmopt.machine import detect
        from tvmopt.runtime.executable import Compiled
        from tvmopt.runtime.signature import Signature

        machine = detect(threads)
        target = machine.target()
        with torch.no_grad():
            program = torch.export.export(module.eval(), inputs)
        executable = tvm.compile(from_exported_program(program), target)
        meta = {
            "model": type(module).__name__, "variant": "original", "target": str(target), "machine": machine,
            "threads": machine.cores, "compile_s": 0.5, "plan": None,
        }  # fmt: skip
        return Compiled(executable, Signature.from_exported(program), meta)

    return make


@pytest.fixture(scope="session")
def build_function() -> Callable[..., Compiled]:
    """`build_function(module, *inputs)`: compiled as one function, by tvmopt's pipeline without schedules."""

    def make(module: Any, *inputs: Any) -> Compiled:
        from tvmopt.graph.pipeline import build, lower_model
        from tvmopt.machine import detect
        from tvmopt.model import from_module
        from tvmopt.runtime.executable import Compiled
        from tvmopt.runtime.signature import Signature

        machine = detect()
        lowered = lower_model(
            from_module(module.eval(), inputs, name=type(module).__name__), machine, variant="original"
        )
        meta = {
            "model": type(module).__name__, "variant": "original", "target": str(machine.target()), "machine": machine,
            "threads": machine.cores, "compile_s": 0.5, "plan": None,
        }  # fmt: skip
        return Compiled(build(lowered.module, machine), Signature.from_exported(lowered.program), meta)

    return make
