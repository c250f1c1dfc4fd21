"""Tuning on other machines: a tracker and servers of their own, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cuda_proof.device import NVCC
from tests.tuning.conftest import make_kernel
from tvmopt import tune
from tvmopt.errors import FleetError, UsageError
from tvmopt.machine import available_cores, detect, named_gpu
from tvmopt.options import BuildOptions
from tvmopt.tuning.fleet import Fleet
from tvmopt.tuning.log import key_module
from tvmopt.tuning.rpc_runner import FleetRunner, compare_networks
from tvmopt.tuning.template import Space

START_S = 300


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Servers:
    """Processes that are ended, with all they started, at the end."""

    def __init__(self) -> None:
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(self.port), "--port-end",
                    str(self.port + 1), "--silent")  # fmt: skip
        self.wait(lambda: self.fleet("any").summary() is not None)

    def _start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment},
        )  # fmt: skip
        self.processes.append(process)
        return process

    def fleet(self, key: str) -> Fleet:
        return Fleet("127.0.0.1", self.port, key)

    def serve(self, key: str, threads: int = 1) -> subprocess.Popen[bytes]:
        """Starts one of ours; it is not waited for."""
        address = f"127.0.0.1:{self.port}"
        return self._start("tvmopt.serve", "--host", "127.0.0.1", "--tracker", address, "--key", key, "--threads",
                           str(threads))  # fmt: skip

    def serve_plain(self, key: str) -> None:
        """Starts one of TVM's own."""
        port = free_port()
        self._start(
            "tvm.exec.rpc_server", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1),
            "--tracker", f"127.0.0.1:{self.port}", "--key", key, "--silent", TVM_NUM_THREADS="1", TVM_BIND_THREADS="0",
        )  # fmt: skip

    def wait_for(self, key: str, count: int) -> Fleet:
        fleet = self.fleet(key)
        self.wait(lambda: fleet.servers() == count)
        return fleet

    @staticmethod
    def wait(ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                if ready():
                    return
            except FleetError:
                pass
            assert time.monotonic() < deadline, "the tracker or a server does not start"
            time.sleep(0.3)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    made = Servers()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def pair(servers: Servers) -> Fleet:
    """Two servers of one thread each, whatever this machine has."""
    for _ in range(2):
        servers.serve("pair")
    return servers.wait_for("pair", 2)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=580)


def calling(name: str) -> Any:
    """The module of the small product whose body calls the C function `name` instead."""
    from tvm import tirx

    func = make_kernel().func
    return key_module(func.with_body(tirx.Evaluate(tirx.call_extern("int32", name))))


@pytest.mark.slow
def test_a_network_is_tuned_on_two_servers_and_replays(pair: Fleet, tmp_path: Path) -> None:
    import tvmopt

    done = command("tvmopt.tune", "--runner", "rpc", "--tracker", pair.tracker, "--key", pair.key, "--kernels", "0,1,5",
                   "--trials", "12", "--log-dir", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (manifest,) = tmp_path.glob("*/*/manifest.json")
    # The servers' directory, not that of this process, which may use more cores.
    assert manifest.parent.parent.name == detect(1).slug
    replayed = command("tvmopt.replay", str(manifest.parent), "--strict", "--threads", "1")
    assert replayed.returncode == 0 and "verified against PyTorch" in replayed.stdout, replayed.stderr
    model = BuildOptions().load("digits_cnn")
    fast = tvmopt.compile(model.module, tuple(model.example_inputs), variant="auto", log_dir=tmp_path, threads=1)
    wanted = model.module(*model.example_inputs).detach()
    torch.testing.assert_close(fast(*model.example_inputs), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_whole_networks_are_timed_and_verified_on_a_server(pair: Fleet) -> None:
    from tvmopt.errors import VerificationError
    from tvmopt.graph.pipeline import lower_model, with_kernels
    from tvmopt.variants import schedule_kernels

    machine = detect(1)
    model = BuildOptions().load("digits_cnn")
    lowered = lower_model(model, machine, {})
    module = with_kernels(lowered.module, schedule_kernels(lowered, "manual", machine).functions)
    compared = compare_networks(pair, machine, module, module, model, lowered.strategies)
    assert 0 < compared.first < 0.1 and 0.5 < compared.ratio < 2.0
    other = BuildOptions().load("digits_cnn")
    with torch.no_grad():
        list(other.module.parameters())[-1].add_(1.0)
    with pytest.raises(VerificationError, match="the network's manual build"):
        compare_networks(pair, machine, module, module, other, lowered.strategies)


@pytest.mark.slow
def test_what_crashes_or_hangs_there_costs_one_candidate(pair: Fleet, rules: list[Any]) -> None:
    kernel = make_kernel()
    space = Space(kernel, detect(1), rules)
    good = space.at({"rows": 8})
    assert good is not None and space.manual is not None
    notes: list[str] = []
    with FleetRunner(pair, notes.append, detect(1), run_limit_s=4.0) as runner:
        assert runner.open(kernel.key, kernel.func, space.manual.schedule.mod) > 0
        modules = [calling("abort"), good.schedule.mod, calling("pause"), key_module(make_kernel().func)]
        found = runner.measure([*modules, key_module(make_kernel(64).func)])
        assert [one.status for one in found] == ["crash", "ok", "timeout", "ok", "ok"], [one.message for one in found]
        # The machine that hung is free again at once, and takes part.
        again = runner.measure([good.schedule.mod] * 4)
        assert all(one.ok and one.seconds > 0 and one.baseline > 0 for one in again)
        assert runner.duel([good.schedule.mod])[0].ok
    assert not notes


def test_a_candidate_that_computes_something_else_is_seen(pair: Fleet, rules: list[Any]) -> None:
    from tests.tuning.conftest import gemm

    kernel = make_kernel()
    manual = Space(kernel, detect(1), rules).manual
    assert manual is not None
    with FleetRunner(pair, print, detect(1)) as runner:
        runner.open(kernel.key, kernel.func, manual.schedule.mod)
        (found,) = runner.measure([key_module(gemm(scale=1.01))])
    assert found.status == "wrong"


@pytest.mark.slow
def test_a_server_that_dies_is_given_up_and_the_last_one_ends_the_run(
    servers: Servers, rules: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvmopt.tuning.rpc_runner.FREE_LIMIT_S", 5.0)
    processes = [servers.serve("mortal") for _ in range(2)]
    fleet = servers.wait_for("mortal", 2)
    kernel = make_kernel()
    manual = Space(kernel, detect(1), rules).manual
    assert manual is not None
    notes: list[str] = []
    with FleetRunner(fleet, notes.append, detect(1)) as runner:
        runner.open(kernel.key, kernel.func, manual.schedule.mod)
        assert all(one.ok for one in runner.measure([manual.schedule.mod] * 2))
        os.killpg(processes[0].pid, signal.SIGKILL)
        found = runner.measure([manual.schedule.mod] * 6)
        assert sorted({one.status for one in found}) in (["ok"], ["crash", "ok"])
        assert [one.status for one in found].count("crash") <= 1
        os.killpg(processes[1].pid, signal.SIGKILL)
        with pytest.raises(FleetError, match="no server is left"):
            for _ in range(3):
                runner.measure([manual.schedule.mod])
    assert any("1 left" in note for note in notes) and any("0 left" in note for note in notes)


@pytest.mark.slow
def test_a_server_of_tvms_own_serves_too(servers: Servers, rules: list[Any]) -> None:
    servers.serve_plain("plain")
    fleet = servers.wait_for("plain", 1)
    machine = fleet.machine(BuildOptions(), print)
    here = detect(1)
    for field in ("llvm_cpu", "isa", "cores", "lanes", "registers", "l1", "l2", "l3", "slug"):
        assert getattr(machine, field) == getattr(here, field), field
    kernel = make_kernel()
    manual = Space(kernel, machine, rules).manual
    assert manual is not None
    with FleetRunner(fleet, print, machine) as runner:
        runner.open(kernel.key, kernel.func, manual.schedule.mod)
        assert runner.measure([manual.schedule.mod])[0].ok
    with pytest.raises(FleetError, match=r"python -m tvmopt\.serve"):
        fleet.machine(BuildOptions(target="cuda"), print)
    with pytest.raises(FleetError, match="1 of 64 threads"):
        fleet.machine(BuildOptions(threads=64), print)


def test_bad_fleets_are_one_line(servers: Servers, pair: Fleet, refused: Callable[..., tuple[int, str]]) -> None:
    with pytest.raises(FleetError, match="no CUDA GPU"):
        pair.machine(BuildOptions(target="cuda"), print)
    for tracker, key, wanted in (
        (f"127.0.0.1:{free_port()}", "pair", "no tracker answers there"),
        (pair.tracker, "cray", "has no server of that key"),
    ):
        status, said = refused(tune.main, "--runner", "rpc", "--tracker", tracker, "--key", key)
        assert status == 1 and wanted in said
    status, said = refused(tune.main, "--tracker", pair.tracker)
    assert status == 2 and "--runner rpc" in said
    for tracker, key in ((None, "k"), ("127.0.0.1:1", None), ("localhost", "k"), ("localhost:99999", "k")):
        with pytest.raises(UsageError):
            Fleet.parse(tracker, key)


@pytest.mark.slow
@pytest.mark.skipif(available_cores() < 2, reason="this process may use one CPU only")
def test_unequal_machines_under_a_key_are_refused(servers: Servers) -> None:
    servers.serve("mixed", 1)
    servers.serve("mixed", 2)
    with pytest.raises(FleetError, match=r"unequal machines \(cores: [12] and [12]\)"):
        servers.wait_for("mixed", 2).machine(BuildOptions(), print)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_cuda_code_is_compiled_here_and_sent_with_its_source() -> None:
    import tvm

    from tvmopt.graph.gpu_build import cuda_source
    from tvmopt.graph.gpu_compiler import digest
    from tvmopt.graph.gpu_default import schedule_default
    from tvmopt.tuning.rpc_worker import _send_machine_code

    target = named_gpu("sm_90").target()
    executable = tvm.compile(key_module(schedule_default(make_kernel().func, target)), target=target)
    sent: dict[str, bytes] = {}

    class Session:
        def get_function(self, name: str) -> Any:
            assert name == "tvmopt.provide"
            return sent.__setitem__

    _send_machine_code(Session(), executable, target)
    ((found, code),) = sent.items()
    assert found == digest(cuda_source(executable.mod))
    # The magic of a fat binary.
    assert np.frombuffer(bytes(code[:4]), "<u4")[0] == 0xBA55ED50
